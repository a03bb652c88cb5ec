/** What a real API server, its controllers and the scheduler make of the overlays. */
import { join } from 'node:path';
import { ControlPlane, type Manifest } from './control-plane.ts';
import { named, overlays, render } from './manifests.ts';
import type { Report } from './report.ts';
import { CACHE, type installTools } from './tools.ts';

type Folders = Awaited<ReturnType<typeof installTools>>;

const WORKERS = 'app.kubernetes.io/component=worker';
const podsOf = (plane: ControlPlane) => plane.list('pods', WORKERS);
const isRunning = ({ status, metadata }: Manifest) => status.phase === 'Running' && !('deletionTimestamp' in metadata);

export async function checkCluster(report: Report, folders: Folders, nodes: number): Promise<void> {
  await using plane = await ControlPlane.start(folders.kwok);
  await report.check(`${nodes} nodes with 8 GPUs each are ready`, () => plane.nodes(nodes));
  await report.check('the definitions of cert-manager, JobSet, Kueue and the Prometheus operator are taken', () =>
    defineResources(plane, folders),
  );
  const namespace = (await render('local')).filter(({ kind }) => ['Namespace', 'ServiceAccount'].includes(kind));
  await plane.kubectl(['apply', '--server-side', '--validate=false', '-f', '-'], namespace);
  for (const overlay of overlays) {
    await report.check(
      `overlay ${overlay}: a strict server-side dry run takes all of it, without a warning`,
      async () => {
        const manifests = await render(overlay);
        await plane.kubectl(
          ['apply', '--server-side', '--dry-run=server', '--validate=strict', '--warnings-as-errors', '-f', '-'],
          manifests,
        );
      },
    );
  }
  await podSecurity(report, plane);
  await oneRun(report, plane);
  await upgrade(report, plane);
  await manyWorkers(report, plane, nodes);
  await gang(report, plane);
}

async function defineResources(plane: ControlPlane, folders: Folders): Promise<void> {
  for (const folder of [
    join(folders.certManager, 'deploy/crds'),
    join(folders.jobset, 'config/components/crd/bases'),
    join(folders.kueue, 'config/components/crd/bases'),
    join(CACHE, 'crds'),
  ]) {
    // Outside of a cluster no webhook converts between versions: the stored one is enough here.
    await plane.kubectl(['apply', '--server-side', '-f', folder]);
  }
  await plane.until(
    'the definitions are served',
    async () =>
      await plane.kubectl(['get', 'podmonitors,certificates,jobsets,localqueues', '-A']).then(
        () => true,
        () => false,
      ),
  );
}

/** The namespace refuses what `restricted` does not allow. */
async function podSecurity(report: Report, plane: ControlPlane): Promise<void> {
  const pod = named(await render('local'), 'Job', 'braid-worker').spec.template;
  const spoilt: Record<string, (spec: Manifest['spec']) => void> = {
    'a privileged container': (spec) => {
      spec.containers[0].securityContext = { privileged: true };
    },
    'a container that may become root': (spec) => {
      delete spec.securityContext.runAsNonRoot;
    },
    'kept capabilities': (spec) => {
      delete spec.containers[0].securityContext.capabilities;
    },
    'no seccomp profile': (spec) => {
      delete spec.securityContext.seccompProfile;
    },
    "the node's network": (spec) => {
      spec.hostNetwork = true;
    },
    "a folder of the node's": (spec) => {
      spec.volumes.push({ name: 'node', hostPath: { path: '/' } });
    },
  };
  const create = (spec: Manifest['spec']) => {
    const manifest = { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'alone', namespace: 'braid' }, spec };
    return plane.kubectl(['create', '--dry-run=server', '-f', '-'], [manifest]);
  };
  await report.check("Pod Security takes a worker's pod as it is", () => create(pod.spec));
  for (const [what, spoil] of Object.entries(spoilt)) {
    await report.check(`Pod Security refuses ${what}`, async () => {
      const spec = structuredClone(pod.spec);
      spoil(spec);
      await refused(create(spec), /violates PodSecurity "restricted/);
    });
  }
}

/** The local overlay's two workers through what Kubernetes does to them. */
async function oneRun(report: Report, plane: ControlPlane): Promise<void> {
  const manifests = await render('local');
  await plane.kubectl(['apply', '-f', '-'], manifests);
  const running = async (count: number) => (await podsOf(plane)).filter(isRunning).length === count;
  await report.check('a coordinator with its volume and two workers are scheduled and run', async () => {
    await plane.until('two workers run', () => running(2));
    await plane.until('the coordinator runs', async () =>
      (await plane.list('pods', 'app.kubernetes.io/component=coordinator')).some(isRunning),
    );
    const [claim] = await plane.list('persistentvolumeclaims');
    equal(claim?.status.phase, 'Bound');
  });
  await report.check('workers have the names that they advertise', async () => {
    for (const { spec, metadata } of await podsOf(plane)) {
      const index = metadata.labels!['batch.kubernetes.io/job-completion-index'];
      equal(`${spec.hostname}.${spec.subdomain}`, `braid-worker-${index}.braid-worker`);
    }
  });
  await report.check('exit code 75 starts another, and is not counted as a failure', async () => {
    await endPod(plane, 75);
    await plane.until('two workers run again', () => running(2));
    const [job] = await plane.list('jobs');
    equal(job?.status.failed ?? 0, 0);
  });
  await report.check('137 (SIGKILL) starts another, and is counted', async () => {
    await endPod(plane, 137);
    await plane.until('two workers run again', () => running(2));
    const [job] = await plane.list('jobs');
    equal(job?.status.failed, 1);
  });
  await report.check('the budget lets one worker be evicted, and refuses the second with 429', async () => {
    const [first, second] = (await podsOf(plane)).filter(isRunning);
    await plane.until('the budget knows its pods', async () => {
      const budgets = await plane.list('poddisruptionbudgets');
      return budgets.find(({ metadata }) => metadata.name === 'braid-worker')?.status?.currentHealthy === 2;
    });
    await evict(plane, first!);
    await refused(evict(plane, second!), /TooManyRequests|disruption budget/);
  });
  await report.check('the evicted worker is replaced, and its end is no failure', async () => {
    // No kubelet is here to end it: it ends as a kubelet would say.
    await plane.until('two workers run again', async () => {
      for (const pod of await podsOf(plane)) {
        if ('deletionTimestamp' in pod.metadata) await endPod(plane, 75, pod).catch(() => {});
      }
      return running(2);
    });
    const [job] = await plane.list('jobs');
    equal(job?.status.failed, 1);
  });
  for (const count of [4, 2, 6]) {
    await report.check(`the workers are resized to ${count} while they run`, async () => {
      await resize(plane, count);
      await plane.until(`${count} workers run`, () => running(count));
    });
  }
  await report.check('0 of every worker completes the job', async () => {
    await resize(plane, 2);
    await plane.until('two workers run', () => running(2));
    for (const pod of (await podsOf(plane)).filter(isRunning)) await endPod(plane, 0, pod);
    await plane.kubectl(['wait', '--for=condition=complete', 'job/braid-worker', '-n', 'braid', '--timeout=60s']);
  });
  await report.check('1 fails the job at once', async () => {
    await plane.kubectl(['delete', 'job', 'braid-worker', '-n', 'braid', '--cascade=foreground']);
    await plane.kubectl(['apply', '-f', '-'], manifests);
    await plane.until('two workers run', () => running(2));
    await endPod(plane, 1);
    await plane.kubectl(['wait', '--for=condition=failed', 'job/braid-worker', '-n', 'braid', '--timeout=60s']);
    const [job] = await plane.list('jobs');
    equal(job?.status.conditions.find(({ type }: { type: string }) => type === 'Failed').reason, 'PodFailurePolicy');
  });
  await clear(plane);
}

/** As docs/kubernetes.md says, there and back. */
async function upgrade(report: Report, plane: ControlPlane): Promise<void> {
  const tagged = async (tag: string) =>
    JSON.parse(JSON.stringify(await render('local')).replaceAll(/"braid:[^"]+"/g, `"braid:${tag}"`)) as Manifest[];
  const all = async (tag: string) => {
    const pods = (await plane.list('pods', 'app.kubernetes.io/name=braid')).filter(isRunning);
    return pods.length === 3 && pods.every(({ spec }) => spec.containers[0].image === `braid:${tag}`);
  };
  await plane.kubectl(['apply', '-f', '-'], await tagged('old'));
  await plane.until('the old version runs', () => all('old'));
  for (const [what, tag] of [
    ['upgrade', 'new'],
    ['rollback', 'old'],
  ] as const) {
    await report.check(`${what}: with its Job deleted and another tag, all pods are of that version`, async () => {
      await plane.kubectl(['delete', 'job', 'braid-worker', '-n', 'braid']);
      await plane.kubectl(['apply', '-f', '-'], await tagged(tag));
      await plane.until(`${tag} runs alone`, () => all(tag));
    });
  }
  await report.check('another tag without deleting the Job is refused', async () => {
    await refused(plane.kubectl(['apply', '-f', '-'], await tagged('new')), /field is immutable/);
  });
  await clear(plane);
}

/** The GPU overlay, with as many workers as nodes. */
async function manyWorkers(report: Report, plane: ControlPlane, workers: number): Promise<void> {
  await report.check(`${workers} GPU workers are scheduled, no GPU twice, none on a spot node`, async () => {
    const job = named(await render('gpu'), 'Job', 'braid-worker');
    Object.assign(job.spec, { completions: workers, parallelism: workers });
    await plane.kubectl(['apply', '-f', '-'], [job]);
    const seconds = await plane.until(
      'all run',
      async () => (await podsOf(plane)).filter(isRunning).length === workers,
      300,
    );
    const perNode = new Map<string, number>();
    for (const { spec } of await podsOf(plane)) perNode.set(spec.nodeName, (perNode.get(spec.nodeName) ?? 0) + 1);
    if ([...perNode].some(([node, count]) => count > 8 || Number(node.slice(4)) % 2 === 1)) {
      throw new Error(`on ${JSON.stringify([...perNode])}`);
    }
    report.note(`${workers} workers in ${seconds.toFixed(1)} s, on ${perNode.size} nodes`);
  });
  await report.check('spot workers are scheduled on spot nodes, the coordinator is not', async () => {
    await plane.kubectl(['delete', 'job', '--all', '-n', 'braid', '--cascade=foreground']);
    const manifests = (await render('spot')).filter(
      ({ kind }) => !['PodMonitor', 'Certificate', 'Issuer'].includes(kind),
    );
    await plane.kubectl(['apply', '-f', '-'], manifests);
    await plane.until('all run', async () => (await podsOf(plane)).filter(isRunning).length === 8);
    for (const { spec } of await podsOf(plane)) equal(Number(spec.nodeName.slice(4)) % 2, 1);
    const [coordinator] = await plane.list('pods', 'app.kubernetes.io/component=coordinator');
    equal(Number(coordinator?.spec.nodeName.slice(4)) % 2, 0);
    await clear(plane);
  });
}

/** All or nothing: where seven of eight workers fit, none is bound; with room for the eighth all are. */
async function gang(report: Report, plane: ControlPlane): Promise<void> {
  const manifests = (await render('gang')).filter(({ kind }) => ['Job', 'PodGroup'].includes(kind));
  const spec = named(manifests, 'Job', 'braid-worker').spec.template.spec;
  spec.nodeSelector = { gang: 'true' };
  spec.containers[0].resources.limits['nvidia.com/gpu'] = 4;
  spec.containers[0].resources.requests['nvidia.com/gpu'] = 4;
  const label = (node: number) => plane.kubectl(['label', 'node', `gpu-${node}`, 'gang=true', '--overwrite']);
  await report.check('a gang that does not fit as a whole is not bound in part', async () => {
    for (const node of [0, 2, 4]) await label(node);
    await plane.kubectl(['apply', '-f', '-'], manifests);
    await plane.until('eight workers wait', async () => (await podsOf(plane)).length === 8);
    await plane.until('the scheduler has tried', async () =>
      (await podsOf(plane)).some(({ status }) =>
        status.conditions?.some((c: { reason: string }) => c.reason === 'Unschedulable'),
      ),
    );
    equal((await podsOf(plane)).filter(({ spec: { nodeName } }) => nodeName !== undefined).length, 0);
  });
  await report.check('and is bound as a whole once there is room', async () => {
    await label(6);
    await plane.until('all run', async () => (await podsOf(plane)).filter(isRunning).length === 8, 180);
  });
}

/** A container of the worker's ends with this code, as a kubelet would tell. */
async function endPod(plane: ControlPlane, exitCode: number, pod?: Manifest): Promise<void> {
  const { metadata } = pod ?? (await podsOf(plane)).filter(isRunning)[0]!;
  const status = {
    phase: exitCode === 0 ? 'Succeeded' : 'Failed',
    conditions: [{ type: 'Ready', status: 'False' }],
    containerStatuses: [
      {
        ...{ name: 'worker', image: 'braid', imageID: '', ready: false, restartCount: 0 },
        state: { terminated: { exitCode, reason: exitCode === 0 ? 'Completed' : 'Error' } },
      },
    ],
  };
  const patch = JSON.stringify({ status });
  await plane.kubectl(['patch', 'pod', metadata.name, '-n', 'braid', '--subresource=status', '-p', patch]);
}

function resize(plane: ControlPlane, workers: number): Promise<string> {
  const patch = JSON.stringify({ spec: { completions: workers, parallelism: workers } });
  return plane.kubectl(['patch', 'job', 'braid-worker', '-n', 'braid', '-p', patch]);
}

function evict(plane: ControlPlane, { metadata: { name } }: Manifest): Promise<string> {
  const eviction = { apiVersion: 'policy/v1', kind: 'Eviction', metadata: { name, namespace: 'braid' } };
  return plane.kubectl(
    ['create', '--raw', `/api/v1/namespaces/braid/pods/${name}/eviction`, '-f', '-'],
    JSON.stringify(eviction),
  );
}

/** Takes a run away. */
function clear(plane: ControlPlane): Promise<string> {
  return plane.kubectl(['delete', 'job,statefulset,pdb', '--all', '-n', 'braid', '--cascade=foreground']);
}

async function refused(asked: Promise<unknown>, why: RegExp): Promise<void> {
  const message = await asked.then(
    () => 'it was taken',
    (error: Error) => error.message,
  );
  if (!why.test(message)) throw new Error(`expected ${why}: ${message}`);
}

function equal(found: unknown, expected: unknown): void {
  if (found !== expected) throw new Error(`found ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
}
