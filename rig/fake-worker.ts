/**
 * A scripted worker without TensorFlow: a real server and real connections, a "network" of a few numbers, and a gradient that
 * is a sum of sample ids.
 */
import { createHash } from 'node:crypto';
import { Server } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { evaluationBatchOf, type Recipe } from '../core/recipe.ts';
import { ALIGNED_ELEMENTS } from '../core/shared-buffer.ts';
import { decodeShard, type EncodedShard } from '../input/shard.ts';
import { stateLength, type VariableSpec } from '../nn/variables.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type {
  CoordinatorService,
  JoinResponse,
  Position,
  PrepareRequest,
  Split,
  StepRequest,
  WorkerService,
} from '../proto/messages.ts';
import { parts, payloads } from '../proto/parts.ts';
import { VERSION } from '../proto/version.ts';

const MOMENTUM = 0.9;
const MAX_BYTES = 1 << 20;
/** f32 elements of a branch's outputs for one sample: the mean of its image, and a constant. */
export const OUTPUTS_A_SAMPLE = 2;

export type Rpc = keyof WorkerService;

/**
 * What goes wrong, where, once. `die`: all of the worker's connections end at once, as when its process is killed; `freeze`:
 * it answers nothing any more; `hang`: this one call.
 */
export interface Fault {
  /** Member number: that of the rank in the first generation. */
  rank: number;
  rpc: Rpc;
  step: number;
  what: 'die' | 'freeze' | 'hang' | 'not a number' | 'diverge' | BraidError;
}

export interface FakeExchange {
  /** @param key of the call: the same for all of `ranks`   @returns the sum of what they bring */
  sum(key: string, rank: number, ranks: number[], values: Float32Array): Promise<Float32Array>;
}

/** Within a process: sums what the ranks of a segment bring, in rank order. */
export class SharedExchange implements FakeExchange {
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
export function programOf(names: [string, VariableSpec['segment']][]): VariableSpec[] {
  return names.map(([name, segment], i) => ({
    name,
    segment,
    shape: [2],
    kind: 'vector',
    trainable: true,
    initialiser: { kind: 'uniform', bound: 1 },
    offset: ALIGNED_ELEMENTS * i,
    size: 2,
    momentumOffset: ALIGNED_ELEMENTS * (names.length + i),
  }));
}

export function apply(state: Float32Array, gradient: Float32Array, learningRate: number): void {
  gradient.forEach((g, i) => {
    const v = i + gradient.length;
    state[v] = MOMENTUM * state[v]! + g;
    state[i]! -= learningRate * state[v]!;
  });
}

/** Told of every call in the order of arrival: "0 compute 3". */
type Calls = { push(call: string): unknown };

export class FakeWorker implements WorkerService {
  private static count = 0;
  rank = -1;
  /** The run's, once it has joined. */
  secret: string | null = null;
  /** By split: the sample ids of every shard that was used, in order. */
  readonly seen: Record<string, number[][]> = { SPLIT_TRAIN: [], SPLIT_TEST: [] };
  state = new Float32Array(0);
  private readonly recipe: Recipe;
  private readonly exchange: FakeExchange;
  private readonly calls: Calls;
  private readonly fault: Fault | undefined;
  private readonly server = new Server(serverOptions);
  private readonly ending = new AbortController();
  private coordinator: Connection<CoordinatorService> | null = null;
  private prepared: PrepareRequest | null = null;
  private variables: VariableSpec[] = [];
  private gradient = new Float32Array(0);
  private reduced = new Float32Array(0);
  private shardWeight = 0;
  /** Where training is on it. */
  position: Position | null = null;
  private frozen = false;
  /** What its membership has ended with; null: well, or not yet. */
  why: BraidError | null = null;
  /** Resolves when its membership has ended. */
  readonly gone: Promise<void>;
  private readonly streams = new Map<Split, AsyncIterator<{ step: number; bytes: Uint8Array }>>();

  constructor(recipe: Recipe, exchange: FakeExchange, calls: Calls, fault?: Fault) {
    this.recipe = recipe;
    this.exchange = exchange;
    this.calls = calls;
    this.fault = fault;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.gone = promise;
    this.ending.signal.addEventListener('abort', () => resolve());
    implement(this.server, workerService, this as WorkerService);
  }

  /** Returns when it has its rank. @throws BraidError when it is refused */
  async join(coordinator: string, changes: { version?: string } = {}): Promise<void> {
    const beside = coordinator.startsWith('unix:') ? `${coordinator}-${FakeWorker.count++}` : '127.0.0.1:0';
    const address = await listen(this.server, beside);
    const secret = () => this.secret;
    this.coordinator = connect(coordinatorService, coordinator, { peer: 'the coordinator', secret });
    const identity = { version: VERSION, host: 'test', pid: 7, threads: 1, device: 'fake', generation: 0, ...changes };
    const stream = this.coordinator.join(
      { ...identity, address, exchangeAddress: address },
      { signal: this.ending.signal },
    );
    const membership = (stream as AsyncIterable<JoinResponse>)[Symbol.asyncIterator]();
    const { value } = await membership.next();
    this.rank = value!.member;
    this.secret = value!.secret;
    membership.next().then(
      () => this.die(), // dismissed
      (error) => {
        this.why = error;
        this.die();
      },
    );
  }

  /** Asks to be let go. */
  async leave(): Promise<void> {
    const run = this.prepared!.run;
    await this.coordinator!.leave({ run, member: this.rank }, { signal: this.ending.signal });
  }

  /** Ends every connection at once. */
  die(): void {
    this.ending.abort();
    this.server.forceShutdown();
    this.coordinator?.close();
  }

  async status() {
    if (this.frozen) await new Promise(() => {});
    const { generation = 0 } = this.prepared ?? {};
    const doing = { phase: '', phaseSeconds: 0, readyShards: 0 };
    const vitals = { residentBytes: 0, deviceBytes: 0, eventLoopLagSeconds: 0 };
    return { member: this.rank, generation, step: this.position?.step ?? 0, ...doing, ...vitals };
  }

  async trace() {
    return { nowMs: performance.timeOrigin + performance.now(), spans: [] };
  }

  async prepare(request: PrepareRequest) {
    const before = this.prepared;
    this.prepared = request;
    this.streams.clear();
    await this.enter('prepare', { ...request, step: 0 });
    if (before?.branch !== request.branch) this.position = null;
    const branches: [string, VariableSpec['segment']][] =
      request.branch === undefined
        ? [
            ['branch.0.fc.bias', 'branch'],
            ['branch.1.fc.bias', 'branch'],
            ['fusion.fc.bias', 'method'],
          ]
        : [[`branch.${request.branch}.fc.bias`, 'branch']];
    this.variables = programOf([['trunk.0.bn.bias', 'trunk'], ...branches]);
    const outputs = [...request.shardSizes, evaluationBatchOf(this.recipe)].map((n) => n * OUTPUTS_A_SAMPLE);
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
      ...(this.position !== null && { held: this.position }),
    };
  }

  async *readState(request: StepRequest) {
    await this.enter('readState', request);
    yield* parts(request, new Uint8Array(this.state.slice().buffer));
  }

  async writeState(stream: Parameters<WorkerService['writeState']>[0]) {
    for await (const { step, round, lossScale, goodUpdates, bytes } of payloads(stream, { maxBytes: MAX_BYTES })) {
      await this.enter('writeState', { step });
      this.state = new Float32Array(bytes.slice().buffer);
      this.position = { step, round, lossScale, goodUpdates };
    }
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
    return { losses: [mean, total] };
  }

  /** Outputs: each sample's pixel, and 1. */
  async *forward({ split, shardWeight, ...request }: Parameters<WorkerService['forward']>[0]) {
    await this.enter('forward', request);
    const { records } = await this.shard(split, request.step);
    this.shardWeight = shardWeight;
    const samples = split === 'SPLIT_TRAIN' ? records.length : evaluationBatchOf(this.recipe);
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

  async inspect() {
    return { badSamples: [] };
  }

  async reduce(request: StepRequest) {
    const wrong = await this.enter('reduce', request);
    const groups = this.prepared!.groups;
    const width = this.gradient.length / groups.length; // every variable has two elements, trunk and branch one each
    const sums = await Promise.all(
      groups.map(({ segment, ranks }, i) => {
        const key = `${request.generation} ${request.step} ${segment} ${ranks}`;
        return this.exchange.sum(key, this.prepared!.rank, ranks, this.gradient.slice(i * width, (i + 1) * width));
      }),
    );
    this.reduced = Float32Array.from(sums.flatMap((sum) => [...sum]));
    const segmentNorms = sums.map((sum) => (wrong === 'not a number' ? Number.NaN : Math.hypot(...sum)));
    const spent = { deviceSeconds: 0.5, inputSeconds: 0.25 };
    return { segmentNorms, sentBytes: 8, receivedBytes: 8, culprit: wrong === 'not a number', ...spent };
  }

  async commit({ learningRate, skip, lossScale, goodUpdates, ...request }: Parameters<WorkerService['commit']>[0]) {
    if (request.step < this.position!.step) return {};
    await this.enter('commit', request);
    if (!skip) apply(this.state, this.reduced, learningRate);
    this.position = { step: request.step + 1, round: 0, lossScale, goodUpdates };
    await this.enter('commit', { step: request.step + 0.5 }); // done, and nobody has heard of it
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
    if (this.frozen) await new Promise(() => {});
    if (Number.isInteger(step)) this.calls.push(`${this.rank} ${rpc} ${step}`);
    const { fault } = this;
    if (fault === undefined || fault.rank !== this.rank || fault.rpc !== rpc || fault.step !== step) return null;
    if (fault.what instanceof BraidError) throw fault.what;
    if (fault.what === 'die') {
      this.die();
      await new Promise(() => {}); // as silent as the dead
    }
    if (fault.what === 'freeze') this.frozen = true;
    if (fault.what === 'hang' || fault.what === 'freeze') await new Promise(() => {});
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
