/** What deploy/ says agrees with itself and with the code. `npm run check:deploy` shows it to real components. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { parse, parseAllDocuments } from 'yaml';
import { loadRecipe, workersOf } from '../core/recipe.ts';
import { rulesPage } from '../deploy/kubernetes/components/monitoring/rules.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const KUBERNETES = join(ROOT, 'deploy/kubernetes');
const COMPOSE = join(ROOT, 'deploy/compose');

const files = readdirSync(KUBERNETES, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.yaml'));
// biome-ignore lint/suspicious/noExplicitAny: manifests of many kinds
const read = (file: string): any[] =>
  parseAllDocuments(readFileSync(join(KUBERNETES, file), 'utf8')).map((document) => {
    if (document.errors.length > 0) throw new Error(`${file}: ${document.errors[0]!.message}`);
    return document.toJS();
  });
const kustomizations = files.filter((file) => file.endsWith('kustomization.yaml'));
const [, coordinator] = read('base/coordinator.yaml');
const [, worker] = read('base/worker.yaml');
const compose = parse(readFileSync(join(COMPOSE, 'compose.yaml'), 'utf8'), { merge: true });
const pods = { coordinator: coordinator.spec.template.spec, worker: worker.spec.template.spec };

test('every kustomization names files that exist, and no file is left out', (t) => {
  const used = new Set<string>();
  for (const file of kustomizations) {
    const [{ resources = [], components = [], configMapGenerator = [] }] = read(file);
    const named = [
      ...resources,
      ...components,
      ...configMapGenerator.flatMap((g: { files?: string[] }) => g.files ?? []),
    ];
    for (const name of named) {
      const path = join(dirname(join(KUBERNETES, file)), name);
      const at = existsSync(join(path, 'kustomization.yaml')) ? join(path, 'kustomization.yaml') : path;
      t.true(existsSync(at) && at.endsWith('.yaml'), `${file}: ${name}`);
      used.add(relative(KUBERNETES, at));
    }
  }
  const unused = files.filter((file) => !used.has(file) && !file.startsWith('overlays/'));
  t.deepEqual(unused, []);
});

for (const [name, pod] of Object.entries(pods)) {
  const [container] = pod.containers;

  test(`the ${name}'s pod: restricted, probed by gRPC, with resources and time to end`, (t) => {
    t.like(pod.securityContext, { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } });
    t.like(container.securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true });
    t.deepEqual(container.securityContext.capabilities, { drop: ['ALL'] });
    t.false(pod.automountServiceAccountToken);
    const health = container.ports.find((port: { name: string }) => port.name === 'health').containerPort;
    for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe']) {
      t.is(container[probe].grpc.port, health);
      t.is(container[probe].grpc.service, probe === 'readinessProbe' ? 'readiness' : 'liveness');
    }
    for (const resource of ['cpu', 'memory', 'ephemeral-storage']) {
      t.truthy(container.resources.requests[resource]);
      t.truthy(container.resources.limits[resource]);
    }
    t.true(pod.terminationGracePeriodSeconds > 60, 'a worker is given 60 s to finish its step');
    for (const { name: volume } of container.volumeMounts) {
      const claims = name === 'coordinator' ? coordinator.spec.volumeClaimTemplates : [];
      t.true(
        [
          ...pod.volumes.map((v: { name: string }) => v.name),
          ...claims.map((c: { metadata: { name: string } }) => c.metadata.name),
        ].includes(volume),
      );
    }
  });
}

for (const [name, commands] of Object.entries({
  coordinator: [pods.coordinator.containers[0].args, compose.services.coordinator.command],
  worker: [pods.worker.containers[0].args, compose.services.worker.entrypoint.at(-1).split(' ').slice(2)],
})) {
  test(`the ${name}'s commands are ones that braid knows`, (t) => {
    const usage = readFileSync(join(ROOT, `cli/${name}.ts`), 'utf8');
    for (const [command, ...args] of commands as string[][]) {
      t.is(command, name);
      for (const flag of args.filter((arg) => arg.startsWith('--') && !arg.startsWith('--set='))) {
        const option = flag.slice(2).split('=')[0]!;
        t.regex(usage, new RegExp(`--${option}\\b`), flag);
      }
    }
  });
}

test('the image is pinned to the version of package.json', (t) => {
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const pinned = new RegExp(`^(braid:)?${version.replaceAll('.', '\\.')}-(cpu|gpu)$`);
  for (const file of kustomizations) {
    for (const { newTag } of read(file)[0].images ?? []) t.regex(newTag, pinned, file);
  }
  for (const name of ['coordinator', 'worker']) t.regex(compose.services[name].image, pinned);
});

test('what compose mounts is there, and it asks for as many workers as its recipe', (t) => {
  for (const { volumes = [] } of Object.values<{ volumes?: string[] }>(compose.services)) {
    const mounted = volumes.map((volume) => volume.split(':')[0]!).filter((source) => source.startsWith('.'));
    for (const source of mounted) t.true(existsSync(join(COMPOSE, source)), source);
  }
  const [, recipe] = compose.services.coordinator.command as string[];
  t.is(compose.services.worker.deploy.replicas, workersOf(loadRecipe(recipe!.replace('/opt/braid', ROOT))));
  const { rule_files } = parse(readFileSync(join(COMPOSE, 'prometheus.yml'), 'utf8'));
  const { providers } = parse(readFileSync(join(COMPOSE, 'grafana-dashboards.yml'), 'utf8'));
  t.true(compose.services.grafana.volumes.includes(`../grafana:${providers[0].options.path}:ro`));
  for (const file of rule_files) t.true(existsSync(join(ROOT, 'deploy/prometheus', basename(file))), file);
});

test('exit codes mean the same to Kubernetes as to braid: 75 again, 1 never', (t) => {
  const main = readFileSync(join(ROOT, 'cli/main.ts'), 'utf8');
  const constant = (name: string) => Number(new RegExp(`const ${name} = (\\d+);`).exec(main)?.[1]);
  const [jobset] = read('components/jobset/copy/jobset.yaml');
  const policies = [
    worker.spec,
    ...jobset.spec.replicatedJobs.map((job: { template: { spec: unknown } }) => job.template.spec),
  ];
  for (const { podFailurePolicy } of policies) {
    const actionOf = (code: number) =>
      podFailurePolicy.rules.find((rule: { onExitCodes?: { values: number[] } }) =>
        rule.onExitCodes?.values.includes(code),
      )?.action;
    t.is(actionOf(constant('EXIT_TRY_AGAIN')), 'Ignore');
    t.is(actionOf(constant('EXIT_FAILED')), 'FailJob');
    t.like(podFailurePolicy.rules[0].onPodConditions[0], { type: 'DisruptionTarget' });
  }
});

test('recipes are whole, and ask for as many workers as there are', (t) => {
  const base = loadRecipe(join(KUBERNETES, 'base/recipe.yaml'));
  t.is(workersOf(base), worker.spec.completions);
  t.is(worker.spec.completions, worker.spec.parallelism);
  const gpu = loadRecipe(join(KUBERNETES, 'overlays/gpu/recipe.yaml'));
  const text = readFileSync(join(KUBERNETES, 'overlays/gpu/kustomization.yaml'), 'utf8');
  t.regex(text, new RegExp(`/spec/completions, value: ${workersOf(gpu)} `));
  for (const { data } of [base, gpu]) t.true(data.path.startsWith('/data/'), 'on the volume');
});

test('every overlay and component is in the page about Kubernetes', (t) => {
  const page = readFileSync(join(ROOT, 'docs/kubernetes.md'), 'utf8');
  for (const folder of ['overlays', 'components']) {
    for (const name of readdirSync(join(KUBERNETES, folder))) t.true(page.includes(`\`${name}\``), `${folder}/${name}`);
  }
});

test('the PrometheusRule is in step with deploy/prometheus, and every dashboard is brought along', (t) => {
  t.is(readFileSync(join(KUBERNETES, 'components/monitoring/rules.yaml'), 'utf8'), rulesPage());
  const page = readFileSync(join(ROOT, 'deploy/grafana/kustomization.yaml'), 'utf8');
  const dashboards = readdirSync(join(ROOT, 'deploy/grafana')).filter((file) => file.endsWith('.json'));
  t.true(dashboards.length > 0);
  for (const file of dashboards) t.true(page.includes(`[${file}]`), file);
});

test('the image holds every folder that a command imports from', (t) => {
  const kept = readFileSync(join(ROOT, '.dockerignore'), 'utf8').split('\n');
  const folders = kept.filter((line) => line.startsWith('!')).map((line) => line.slice(1));
  const sources = folders.filter((folder) => statSync(join(ROOT, folder)).isDirectory() && folder !== 'setup');
  for (const folder of sources) {
    for (const file of readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })) {
      if (!file.endsWith('.ts')) continue;
      const path = join(ROOT, folder, file);
      for (const [, name] of readFileSync(path, 'utf8').matchAll(/^(?:import .*|\}) from '(\.[^']+)'/gm)) {
        const target = relative(ROOT, join(dirname(path), name!));
        t.true(
          folders.some((kept) => target.startsWith(`${kept}/`)),
          `${folder}/${file} imports ${target}`,
        );
      }
    }
  }
});
