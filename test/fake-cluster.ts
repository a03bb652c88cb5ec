/**
 * A whole cluster in one process, without TensorFlow: real servers and connections, scripted workers whose "network" is
 * a few numbers and whose gradient is a sum of sample ids. For tests of the coordinator.
 */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Server } from '@grpc/grpc-js';
import type { RunEvent } from '../coordinator/events.ts';
import type { MethodDevice } from '../coordinator/method.ts';
import { type RunOptions, runCoordinator, type World } from '../coordinator/run.ts';
import type { Summary } from '../coordinator/summary.ts';
import { BraidError } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { checkRecipe, type Recipe, workersOf } from '../core/recipe.ts';
import type { Dataset } from '../input/dataset.ts';
import { decodeShard, type EncodedShard } from '../input/shard.ts';
import { stateLength, type VariableSpec } from '../nn/variables.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type { CoordinatorService, PrepareRequest, Split, StepRequest, WorkerService } from '../proto/messages.ts';
import { collect, parts, payloads } from '../proto/parts.ts';
import { VERSION } from '../proto/version.ts';

const MOMENTUM = 0.9;
const MAX_BYTES = 1 << 20;
/** f32 elements of a branch's outputs for one sample: the mean of its image, and a constant. */
const OUTPUTS_A_SAMPLE = 2;

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

/** Sample i is four pixels of value i, of class i % 3. */
export function fakeDataset(name: string, length: number): Dataset {
  return {
    name,
    length,
    classes: 3,
    image: { height: 2, width: 2, channels: 1 },
    encoding: 'raw-hwc',
    read: (index) => ({ bytes: new Uint8Array(4).fill(index), label: index % 3 }),
    where: (index) => `${name}, sample ${index}`,
    close() {},
  };
}

export type Rpc = keyof WorkerService;

/** What goes wrong, where. `die`: all of the worker's connections end at once, as when its process is killed. */
export interface Fault {
  rank: number;
  rpc: Rpc;
  step: number;
  what: 'die' | 'hang' | 'not a number' | 'diverge' | BraidError;
}

export interface ClusterOptions {
  recipe: Recipe;
  fault?: Fault;
  run?: Partial<RunOptions>;
  world?: Partial<World>;
  /** Fewer than the recipe takes: the others never come. */
  workers?: number;
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
  const exchange = new FakeExchange();
  const world: World = {
    openDataset: async (_, split) =>
      split === 'train' ? fakeDataset('train', TRAIN_SAMPLES) : fakeDataset('test', TEST_SAMPLES),
    openMethodDevice: async ({ branches }) => new FakeMethodDevice(branches),
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
    for (let rank = 0; rank < (options.workers ?? workersOf(recipe)); rank++) {
      const worker = new FakeWorker(recipe, exchange, cluster.calls, fault);
      cluster.workers.push(worker);
      await worker.join(address);
    }
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
    await Promise.allSettled(starting);
    for (const worker of cluster.workers) worker.die();
  });
  return { ...cluster, running };
}

// ---------------------------------------------------------------- the fakes

/** Sums what the ranks of a segment bring, in rank order. */
class FakeExchange {
  private readonly sums = new Map<
    string,
    { brought: Map<number, Float32Array>; whole: PromiseWithResolvers<Float32Array> }
  >();

  sum(key: string, rank: number, ranks: number[], values: Float32Array): Promise<Float32Array> {
    const entry = this.sums.get(key) ?? { brought: new Map(), whole: Promise.withResolvers<Float32Array>() };
    this.sums.set(key, entry);
    entry.brought.set(rank, values);
    if (entry.brought.size === ranks.length) {
      const sum = new Float32Array(values.length);
      for (const each of ranks) {
        for (let i = 0; i < sum.length; i++) sum[i]! += entry.brought.get(each)![i]!;
      }
      this.sums.delete(key);
      entry.whole.resolve(sum);
    }
    return entry.whole.promise;
  }
}

/** Values of a program: each variable has two elements. */
function programOf(names: [string, VariableSpec['segment']][]): VariableSpec[] {
  return names.map(([name, segment], i) => ({
    name,
    segment,
    shape: [2],
    kind: 'vector',
    trainable: true,
    initialiser: { kind: 'uniform', bound: 1 },
    offset: 2 * i,
    size: 2,
    momentumOffset: 2 * (names.length + i),
  }));
}

function apply(state: Float32Array, gradient: Float32Array, learningRate: number): void {
  gradient.forEach((g, i) => {
    const v = i + gradient.length;
    state[v] = MOMENTUM * state[v]! + g;
    state[i]! -= learningRate * state[v]!;
  });
}

export class FakeWorker implements WorkerService {
  rank = -1;
  /** By split: the sample ids of every shard that was used, in order. */
  readonly seen: Record<string, number[][]> = { SPLIT_TRAIN: [], SPLIT_TEST: [] };
  state = new Float32Array(0);
  private readonly recipe: Recipe;
  private readonly exchange: FakeExchange;
  private readonly calls: string[];
  private readonly fault: Fault | undefined;
  private readonly server = new Server(serverOptions);
  private readonly ending = new AbortController();
  private coordinator: Connection<CoordinatorService> | null = null;
  private prepared: PrepareRequest | null = null;
  private variables: VariableSpec[] = [];
  private gradient = new Float32Array(0);
  private reduced = new Float32Array(0);
  private shardWeight = 0;
  private readonly streams = new Map<Split, AsyncIterator<{ step: number; bytes: Uint8Array }>>();

  constructor(recipe: Recipe, exchange: FakeExchange, calls: string[], fault: Fault | undefined) {
    this.recipe = recipe;
    this.exchange = exchange;
    this.calls = calls;
    this.fault = fault;
    implement(this.server, workerService, this as WorkerService);
  }

  /** Returns when it has its rank. @throws BraidError when it is refused */
  async join(coordinator: string, changes: { version?: string } = {}): Promise<void> {
    const address = await listen(this.server, '127.0.0.1:0');
    this.coordinator = connect(coordinatorService, coordinator, { peer: 'the coordinator' });
    const identity = { version: VERSION, host: 'test', pid: 7, threads: 1, device: 'fake', ...changes };
    const stream = this.coordinator.join(
      { ...identity, address, exchangeAddress: address },
      { signal: this.ending.signal },
    );
    const membership = (stream as AsyncIterable<{ rank: number }>)[Symbol.asyncIterator]();
    const { value } = await membership.next();
    this.rank = value!.rank;
    membership.next().then(
      () => this.die(), // dismissed
      () => this.die(),
    );
  }

  /** Ends every connection at once. */
  die(): void {
    this.ending.abort();
    this.server.forceShutdown();
    this.coordinator?.close();
  }

  async prepare(request: PrepareRequest) {
    this.prepared = request;
    await this.enter('prepare', { ...request, step: 0 });
    const branches: [string, VariableSpec['segment']][] =
      request.branch === undefined
        ? [
            ['branch.0.fc.bias', 'branch'],
            ['branch.1.fc.bias', 'branch'],
            ['fusion.fc.bias', 'method'],
          ]
        : [[`branch.${request.branch}.fc.bias`, 'branch']];
    this.variables = programOf([['trunk.0.bn.bias', 'trunk'], ...branches]);
    const outputs = [...request.shardSizes, this.recipe.evaluation.batch].map((n) => n * OUTPUTS_A_SAMPLE);
    const together = request.branch === undefined;
    return {
      variables: JSON.stringify(this.variables),
      stateLength: stateLength(this.variables),
      rounds: [
        {
          gradientLength: stateLength(this.variables) / 2,
          segments: request.groups.map(({ segment }) => segment),
          losses: together ? ['ce.0', 'total'] : [],
        },
      ],
      classifiers: together ? ['branch.0', 'branch.1', 'ensemble', 'fused'] : [],
      outputLengths: together ? [] : outputs,
    };
  }

  async *readState(request: StepRequest) {
    await this.enter('readState', request);
    yield* parts(request, new Uint8Array(this.state.slice().buffer));
  }

  async writeState(stream: Parameters<WorkerService['writeState']>[0]) {
    const bytes = await collect(stream, { maxBytes: MAX_BYTES });
    await this.enter('writeState', { step: 0 });
    this.state = new Float32Array(bytes.slice().buffer);
    return {};
  }

  async hashState(request: StepRequest) {
    const wrong = await this.enter('hashState', request);
    if (wrong === 'diverge') this.state[0]! += 1;
    return { sha256: createHash('sha256').update(this.state).digest() };
  }

  /** "Loss": the mean sample id of the shard. Gradient: that, times the variable's place. */
  async compute({ shardWeight, ...request }: Parameters<WorkerService['compute']>[0]) {
    const wrong = await this.enter('compute', request);
    const { sampleIds } = await this.shard('SPLIT_TRAIN', request.step);
    const mean = sampleIds.reduce((sum, id) => sum + id, 0) / sampleIds.length;
    this.gradient = new Float32Array(this.state.length / 2).map((_, i) => (shardWeight * mean * (i + 1)) / 64);
    const total = wrong === 'not a number' ? Number.NaN : mean;
    return { losses: [mean, total], deviceSeconds: 0.5, inputSeconds: 0.25 };
  }

  /** Outputs: each sample's pixel, and 1. */
  async *forward({ split, shardWeight, ...request }: Parameters<WorkerService['forward']>[0]) {
    await this.enter('forward', request);
    const { records } = await this.shard(split, request.step);
    this.shardWeight = shardWeight;
    const samples = split === 'SPLIT_TRAIN' ? records.length : this.recipe.evaluation.batch;
    const outputs = new Float32Array(samples * OUTPUTS_A_SAMPLE);
    for (const [i, record] of records.entries()) outputs.set([record[0]!, 1], i * OUTPUTS_A_SAMPLE);
    yield* parts(request, new Uint8Array(outputs.buffer));
  }

  /** Gradient: the sum of the cotangents, times the variable's place. */
  async backward(stream: Parameters<WorkerService['backward']>[0]) {
    let step = 0;
    let sum = 0;
    for await (const payload of payloads(stream, { maxBytes: MAX_BYTES })) {
      step = payload.step;
      sum = new Float32Array(payload.bytes.slice().buffer).reduce((a, b) => a + b, 0);
    }
    await this.enter('backward', { step });
    this.gradient = new Float32Array(this.state.length / 2).map((_, i) => (this.shardWeight * sum * (i + 1)) / 64);
    return {};
  }

  async reduce(request: StepRequest) {
    const wrong = await this.enter('reduce', request);
    const groups = this.prepared!.groups;
    const width = this.gradient.length / groups.length; // every variable has two elements, trunk and branch one each
    const sums = await Promise.all(
      groups.map(({ segment, ranks }, i) => {
        const key = `${request.step} ${segment} ${ranks}`;
        return this.exchange.sum(key, this.rank, ranks, this.gradient.slice(i * width, (i + 1) * width));
      }),
    );
    this.reduced = Float32Array.from(sums.flatMap((sum) => [...sum]));
    const segmentNorms = sums.map((sum) => (wrong === 'not a number' ? Number.NaN : Math.hypot(...sum)));
    return { segmentNorms, sentBytes: 8, receivedBytes: 8 };
  }

  async commit({ learningRate, ...request }: Parameters<WorkerService['commit']>[0]) {
    await this.enter('commit', request);
    apply(this.state, this.reduced, learningRate);
    return {};
  }

  /** Right about even ids; each branch and the others alike. */
  async evaluate(request: StepRequest) {
    await this.enter('evaluate', request);
    const score = { samples: 0, top1: 0, top5: 0, lossSum: 0, bins: new Array<number>(45).fill(0) };
    this.streams.delete('SPLIT_TEST');
    for await (const { bytes } of payloads(this.pull('SPLIT_TEST', 0), { maxBytes: MAX_BYTES })) {
      const { sampleIds } = decodeShard(bytes);
      this.seen.SPLIT_TEST!.push([...sampleIds]);
      score.samples += sampleIds.length;
      score.top1 += sampleIds.filter((id) => id % 2 === 0).length;
      score.top5 += sampleIds.length;
      score.lossSum += sampleIds.length;
    }
    return { scores: Array.from({ length: 4 }, () => score) };
  }

  async stop(request: StepRequest) {
    await this.enter('stop', request);
    return {};
  }

  /** Notes the call, and does what is scripted for it. */
  private async enter(rpc: Rpc, { step }: { step: number }): Promise<Fault['what'] | null> {
    this.calls.push(`${this.rank} ${rpc} ${step}`);
    const { fault } = this;
    if (fault === undefined || fault.rank !== this.rank || fault.rpc !== rpc || fault.step !== step) return null;
    if (fault.what instanceof BraidError) throw fault.what;
    if (fault.what === 'die') {
      this.die();
      await new Promise(() => {}); // as silent as the dead
    }
    if (fault.what === 'hang') await new Promise(() => {});
    return fault.what;
  }

  private async shard(split: Split, step: number): Promise<EncodedShard> {
    let stream = this.streams.get(split);
    if (stream === undefined || (split === 'SPLIT_TEST' && step === 0)) {
      stream = payloads(this.pull(split, step), { maxBytes: MAX_BYTES });
      this.streams.set(split, stream);
    }
    const { value } = await stream.next();
    const shard = decodeShard(value.bytes);
    if (shard.step !== step) throw new BraidError('PROTOCOL', `shard ${shard.step} came for step ${step}`);
    this.seen[split]!.push([...shard.sampleIds]);
    return shard;
  }

  private pull(split: Split, firstStep: number) {
    const { run, generation, replica } = this.prepared!;
    return this.coordinator!.shards({ run, generation, split, replica, firstStep }, { signal: this.ending.signal });
  }
}

/** The method of the fake outputs: losses are their means, cotangents constants. One variable of two elements. */
class FakeMethodDevice implements MethodDevice {
  readonly program;
  private state = new Float32Array(4);

  constructor(branches: number) {
    const variables = programOf([['fusion.fc.bias', 'method']]);
    const names = Array.from({ length: branches }, (_, k) => `branch.${k}`);
    this.program = {
      variables,
      stateLength: 4,
      rounds: [
        {
          gradientLength: 2,
          segments: [{ name: 'method' as const, offset: 0, length: 2 }],
          losses: ['ce.0', 'total'],
          gradientOrder: [],
        },
      ],
      classifiers: [...names, 'ensemble', 'fused'],
      outputLengths: {},
    };
  }

  async run(phase: string, feeds: Record<string, unknown>): Promise<Record<string, Float32Array>> {
    const outputs = Object.entries(feeds).filter(([name]) => name.startsWith('outputs.')) as [string, Float32Array][];
    const labels = feeds.labels as Int32Array;
    if (phase.startsWith('fuse@')) {
      const first = outputs[0]![1];
      const mean = first.filter((_, i) => i % 2 === 0).reduce((a, b) => a + b, 0) / labels.length;
      const shardWeight = feeds.shardWeight as number;
      return {
        losses: Float32Array.of(mean, mean),
        gradient: Float32Array.of((shardWeight * mean * 1) / 64, (shardWeight * mean * 2) / 64),
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
