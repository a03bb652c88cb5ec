/** A whole cluster in one process, without TensorFlow: scripted workers (rig/fake-worker.ts). For tests of the coordinator. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { RunEvent } from '../coordinator/events.ts';
import { methodThreadsOf } from '../coordinator/method.ts';
import { type MethodDevice, MethodShare } from '../coordinator/method-share.ts';
import { type RunOptions, runCoordinator, type World } from '../coordinator/run.ts';
import type { Summary } from '../coordinator/summary.ts';
import { silentLog } from '../core/log.ts';
import { checkRecipe, type Recipe, workersOf } from '../core/recipe.ts';
import { ALIGNED_ELEMENTS } from '../core/shared-buffer.ts';
import { fakeDataset } from '../rig/fake-dataset.ts';
import { apply, FakeWorker, type Fault, programOf, SharedExchange } from '../rig/fake-worker.ts';

/** Of this process's clusters. */
const temporary = mkdtempSync(join(tmpdir(), 'braid-test-'));
process.on('exit', () => rmSync(temporary, { recursive: true }));

export const TRAIN_SAMPLES = 22;
export const TEST_SAMPLES = 11;

/** A recipe of small numbers: 22 samples in batches of 8 make 3 steps an epoch, the last one of 6. */
export function smallRecipe(changes: Record<string, unknown> = {}): Recipe {
  const merge = (base: Record<string, unknown>, over: Record<string, unknown>): Record<string, unknown> =>
    Object.fromEntries(
      [...new Set([...Object.keys(base), ...Object.keys(over)])].map((key) => {
        const [a, b] = [base[key], over[key]];
        const nested = [a, b].every((v) => typeof v === 'object' && v !== null && !Array.isArray(v));
        return [key, nested ? merge(a as Record<string, unknown>, b as Record<string, unknown>) : (b ?? a)];
      }),
    );
  const base = {
    name: 'small',
    data: { format: 'idx', path: '/nowhere', mean: [0], std: [1], augment: { pad: 0 } },
    branches: [{ network: 'resnet', count: 2, depth: 8 }],
    method: { name: 'ffl' },
    training: { epochs: 2, batch: 8, learningRate: 0.125, milestones: [1] },
    evaluation: { batch: 4 },
    cluster: { replicas: 2, joinTimeoutSeconds: 20, stepTimeoutSeconds: 20 },
    metrics: { logEverySteps: 2 },
  };
  return checkRecipe(merge(base, changes));
}

export function lastCheckpoint(folder: string): { name: string; model: Buffer; optimizer: Buffer } {
  const name = readdirSync(join(folder, 'checkpoints')).sort().at(-1)!;
  const read = (file: string) => readFileSync(join(folder, 'checkpoints', name, file));
  return { name, model: read('model.safetensors'), optimizer: read('optimizer.safetensors') };
}

export interface ClusterOptions {
  recipe: Recipe;
  fault?: Fault;
  run?: Partial<RunOptions>;
  world?: Partial<World>;
  /** Fewer than the recipe takes: the others never come. */
  workers?: number;
  /** Whether one that has died is followed by another. */
  respawn?: boolean;
}

export interface Cluster {
  /** Settles as the run does. */
  running: Promise<Summary>;
  events: RunEvent[];
  /** Every call in the order of arrival: "0 compute 3". */
  calls: string[];
  workers: FakeWorker[];
  folder: string;
}

/** Starts a coordinator, and workers one after another so that ranks are known. */
export function startCluster(options: ClusterOptions): Cluster {
  const { recipe, fault } = options;
  const folder = options.run?.runFolder ?? join(mkdtempSync(join(temporary, 'c-')), 'run');
  const cluster = { events: [] as RunEvent[], calls: [] as string[], workers: [] as FakeWorker[], folder };
  const exchange = new SharedExchange();
  const world: World = {
    openDataset: async (_, split) =>
      split === 'train' ? fakeDataset('train', TRAIN_SAMPLES) : fakeDataset('test', TEST_SAMPLES),
    openShares: async ({ recipe: own, branches, replicas }, trust) =>
      Array.from(
        { length: methodThreadsOf(own, replicas) },
        () => new MethodShare(new FakeMethodDevice(branches), branches, trust),
      ),
    now: () => performance.now() / 1000,
    nameRun: ({ name }) => `${name}-run`,
    ...options.world,
  };
  const starting: Promise<void>[] = [];
  const onEvent = (event: RunEvent) => {
    cluster.events.push(event);
    options.run?.onEvent?.(event);
    if (event.kind === 'listening') starting.push(startWorkers(event.address));
  };
  const startWorkers = async (address: string) => {
    for (let rank = 0; rank < (options.workers ?? workersOf(recipe)); rank++) await startWorker(address);
  };
  let over = false;
  const startWorker = async (address: string): Promise<void> => {
    const worker = new FakeWorker(recipe, exchange, cluster.calls, fault);
    cluster.workers.push(worker);
    await worker.join(address);
    void worker.gone.then(async () => {
      if (!over && options.respawn) await startWorker(address).catch(() => {}); // the run may be over by then
    });
  };
  const run = runCoordinator(
    {
      recipe,
      listen: '127.0.0.1:0',
      resume: false,
      signal: new AbortController().signal,
      log: silentLog,
      ...options.run,
      runFolder: folder,
      onEvent,
    },
    world,
  );
  const running = run.finally(async () => {
    over = true;
    await Promise.allSettled(starting);
    for (const worker of cluster.workers) worker.die();
  });
  return { ...cluster, running };
}

/** The method of the fake outputs: losses are their means, cotangents constants. One variable of two elements. */
class FakeMethodDevice implements MethodDevice {
  readonly program;
  private state = new Float32Array(2 * ALIGNED_ELEMENTS);

  constructor(branches: number) {
    const variables = programOf([['fusion.fc.bias', 'method']]);
    const names = Array.from({ length: branches }, (_, k) => `branch.${k}`);
    this.program = {
      variables,
      stateLength: 2 * ALIGNED_ELEMENTS,
      rounds: [
        {
          gradientLength: ALIGNED_ELEMENTS,
          segments: [{ name: 'method' as const, offset: 0, length: ALIGNED_ELEMENTS }],
          losses: ['ce.0', 'total'],
          gradientOffsets: {},
        },
      ],
      classifiers: [...names, 'ensemble', 'fused'],
      outputLengths: {},
    };
  }

  async run(
    phase: string,
    feeds: Record<string, unknown>,
    into: Record<string, Float32Array> = {},
  ): Promise<Record<string, Float32Array>> {
    const outputs = Object.entries(feeds).filter(([name]) => name.startsWith('outputs.')) as [string, Float32Array][];
    const labels = feeds.labels as Int32Array;
    if (phase.startsWith('fuse@')) {
      const first = outputs[0]![1];
      const mean = first.filter((_, i) => i % 2 === 0).reduce((a, b) => a + b, 0) / labels.length;
      const shardWeight = feeds.shardWeight as number;
      into.gradient!.set([(shardWeight * mean * 1) / 64, (shardWeight * mean * 2) / 64]);
      return {
        losses: Float32Array.of(mean, mean),
        ...Object.fromEntries(
          outputs.map(([, output], k) => [`cotangents.${k}`, output.map((x) => x / (64 * labels.length))]),
        ),
      };
    }
    if (phase === 'evaluate') {
      // right where the pixel is even; padding is not counted
      const first = outputs[0]![1];
      const right = labels.reduce((sum, label, i) => sum + (label >= 0 && first[2 * i]! % 2 === 0 ? 1 : 0), 0);
      const samples = labels.filter((label) => label >= 0).length;
      const bins = new Array<number>(45).fill(0);
      return { scores: Float32Array.from(this.program.classifiers.flatMap(() => [right, samples, samples, ...bins])) };
    }
    if (phase === 'apply') apply(this.state, feeds.gradient as Float32Array, feeds.learningRate as number);
    if (phase === 'write') this.state = (feeds.state as Float32Array).slice();
    return phase === 'read' ? { state: this.state.slice() } : {};
  }

  async close() {}
}
