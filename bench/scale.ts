/**
 * `scale`: a coordinator with hundreds of workers on one machine, whose computing is empty: what is measured is the control
 * plane alone. Workers are scripted (rig/fake-worker.ts), with real servers and connections; they read no images.
 */
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { cpuSeconds, residentBytes } from './processes.ts';
import type { Measurement } from './report.ts';
import { type Child, Children } from './scale-children.ts';

export interface Scale {
  members: number;
  /** That are waited for; the run has more. */
  steps: number;
}

export interface ScaleOptions {
  /** Timed ones. */
  steps: number;
  say(line: string): void;
}

const MEMBERS = [256, 1024];
const MEMBERS_A_PROCESS = 128;
/** First runs of everything: code that is compiled, buffers that grow. */
const WARM_UP_STEPS = 5;
const IDLE_MS = 15_000;

export function scaleRecipe({ members }: Scale): Recipe {
  return checkRecipe({
    name: 'scale',
    data: { format: 'idx', path: '/nowhere', mean: [0], std: [1], augment: { pad: 0 } },
    branches: [{ network: 'resnet', count: 2, depth: 8 }],
    method: { name: 'ffl' },
    training: { epochs: 1, batch: members },
    evaluation: { batch: 1 },
    cluster: { replicas: members, joinTimeoutSeconds: 600 },
    metrics: { logEverySteps: 1000 },
  });
}

export async function benchScale({ steps, say }: ScaleOptions): Promise<Measurement[]> {
  const measurements: Measurement[] = [];
  for (const members of MEMBERS) measurements.push(await measure({ members, steps: WARM_UP_STEPS + steps }, say));
  return measurements;
}

async function measure(scale: Scale, say: (line: string) => void): Promise<Measurement> {
  const { members } = scale;
  const name = `${members.toLocaleString('en')} members`;
  using children = new Children(scale);
  say(`scale, ${name}: joining`);
  const coordinator = children.start('scale-coordinator.ts');
  const { pid } = coordinator;
  const { address } = await coordinator.heard('listening');
  const hosts = Array.from({ length: Math.ceil(members / MEMBERS_A_PROCESS) }, () =>
    children.start('scale-workers.ts'),
  );
  await Promise.all(hosts.map((host) => host.heard('ready')));
  const before = { bytes: residentBytes(pid)!, cpu: cpuSeconds(pid)!, at: seconds() };
  hosts.forEach((host, i) => {
    host.tell({
      kind: 'join',
      coordinator: address,
      count: Math.min(MEMBERS_A_PROCESS, members - i * MEMBERS_A_PROCESS),
    });
  });
  await coordinator.heard('all joined');
  const joined = seconds();
  await coordinator.heard('prepared');
  const prepared = { cpu: cpuSeconds(pid)!, at: seconds() };

  say(`scale, ${name}: idle`);
  const idle = await during(IDLE_MS, pid, hosts);
  const idleBytes = residentBytes(pid)!;

  say(`scale, ${name}: stepping`);
  for (const host of hosts) host.tell({ kind: 'work' });
  await coordinator.heard('steps', ({ steps }) => steps === WARM_UP_STEPS);
  const warm = { cpu: cpuSeconds(pid)!, at: seconds() };
  await coordinator.heard('steps', ({ steps }) => steps === scale.steps);
  const timed = scale.steps - WARM_UP_STEPS;
  const stepping = { cpu: cpuSeconds(pid)! - warm.cpu, seconds: seconds() - warm.at };
  const steppedBytes = residentBytes(pid)!;
  await children.end();
  return {
    bench: 'scale',
    case: name,
    figures: {
      'join seconds': joined - before.at,
      'prepare seconds': prepared.at - joined,
      'join and prepare CPU seconds': prepared.cpu - before.cpu,
      'heartbeats a second, idle': idle.beats / idle.seconds,
      'coordinator CPU, idle, cores': idle.cpu / idle.seconds,
      'steps a second': timed / stepping.seconds,
      'coordinator CPU, stepping, cores': stepping.cpu / stepping.seconds,
      'CPU microseconds a member and step': (1e6 * stepping.cpu) / (timed * members),
      'resident KiB a member, idle': (idleBytes - before.bytes) / 1024 / members,
      'resident MiB, idle': idleBytes / 2 ** 20,
      'resident MiB, after the steps': steppedBytes / 2 ** 20,
    },
    wrong: children.complaints,
  };
}

async function during(ms: number, pid: number, hosts: Child[]) {
  const beats = async () => {
    const counts = hosts.map(async (host) => {
      host.tell({ kind: 'beats' });
      return (await host.heard('beats')).beats;
    });
    return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
  };
  const before = { beats: await beats(), cpu: cpuSeconds(pid)!, at: seconds() };
  await new Promise((resolve) => setTimeout(resolve, ms));
  const after = { beats: await beats(), cpu: cpuSeconds(pid)!, at: seconds() };
  return { beats: after.beats - before.beats, cpu: after.cpu - before.cpu, seconds: after.at - before.at };
}

function seconds(): number {
  return performance.now() / 1000;
}
