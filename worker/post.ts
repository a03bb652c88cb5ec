/**
 * What a worker is in one generation: its device with the program of its role, its place in the exchange, its shards. The
 * state of its device outlives the generation: the next post of the same role goes on with it.
 *
 * A step goes compute (or forward, backward) -> reduce -> commit, once for each of its rounds. Until its commit a round has
 * changed nothing, and it may begin again; calls out of that order are refused before any work.
 * One file, because every call checks and moves the same position.
 */
import { isDeepStrictEqual } from 'node:util';
import { sha256 } from '../core/digest.ts';
import { BraidError } from '../core/errors.ts';
import { bytesOf } from '../core/floats.ts';
import { discardPages } from '../core/libc.ts';
import type { LossScale } from '../core/loss-scale.ts';
import type { Direction, Link, WorkerMetrics } from '../core/metrics.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { distinctMicroSizes } from '../core/sampler.ts';
import { alignedSharedBuffer } from '../core/shared-buffer.ts';
import type { Device, DeviceOptions, Program, Role } from '../nn/device.ts';
import { applyPhase, clearPhase, gradientPhase, isOverlapped, SLOTS, trainingPhase } from '../nn/phases.ts';
import { addScores, readScores, type Score } from '../nn/scores.ts';
import type {
  BadSample,
  ClassifierScore,
  CommitRequest,
  ComputeRequest,
  ComputeResponse,
  ForwardRequest,
  Messages,
  Part,
  Position,
  PrepareRequest,
  ReduceResponse,
  ShardsRequest,
} from '../proto/messages.ts';
import { collect } from '../proto/parts.ts';
import type { Exchange } from './exchange/exchange.ts';
import { exchangePlan } from './exchange-plan.ts';
import { closeOwnData, openOwnData } from './own-data.ts';
import { PostSamples } from './post-samples.ts';

export interface PostOptions {
  request: PrepareRequest;
  /** The run's. */
  secret: string;
  exchange: Exchange;
  threads: number;
  openDevice(options: DeviceOptions): Promise<Device>;
  pullShards(request: ShardsRequest, signal: AbortSignal): Messages<Part>;
  metrics: WorkerMetrics;
  /** The run's recipe is known. */
  onRecipe(recipe: Recipe): Promise<void>;
  /** Seconds, monotonic. */
  now(): number;
  /** What this worker was in the generation before; it is over from here on. null: nothing. */
  before: Post | null;
}

type Progress = 'begun' | 'forward' | 'computed' | 'reduced';

/** What a generation leaves to the next one. */
interface Legacy {
  device: Device;
  /** Of the program that the device runs; one with equal options is the same. */
  options: DeviceOptions;
  /** null: the device holds no whole state. */
  position: Position | null;
}

/** Kinds of phases that are a training step's. */
const OF_A_STEP = new Set(['compute', 'trunkBackward', 'forward', 'backward', 'apply']);

export class Post {
  readonly request: PrepareRequest;
  private readonly options: PostOptions;
  private readonly recipe: Recipe;
  private readonly device: Device;
  private readonly deviceOptions: DeviceOptions;
  private readonly samples: PostSamples;
  /** The step that is next to be committed; null exactly before the first state has been written. */
  private step: number | null = null;
  /** The step whose update is under way; null between updates. */
  private applying: number | null = null;
  private progress: Progress = 'begun';
  /** Of the step under way, from compute or forward on. */
  private round = 0;
  /** Rounds of the step that have been committed, and what there is of the loss scale then. */
  private committed = 0;
  private scale: LossScale = { lossScale: 1, goodUpdates: 0 };
  /** Between forward and backward. */
  private shardWeight = 0;
  private lossScale = 1;
  /** Micro-batches of the round under way that have been forward, and backward. */
  private forwarded = 0;
  private backwarded = 0;
  /** Seconds since the last reduce that the device has worked in training steps. */
  private deviceSeconds = 0;
  /** Where the state is read to: one for all times, as V8 would not hurry to free it. */
  private stateMemory: SharedArrayBuffer | null = null;

  private constructor(
    options: PostOptions,
    recipe: Recipe,
    { device, options: deviceOptions, position }: Legacy,
    samples: PostSamples,
  ) {
    this.options = options;
    this.request = options.request;
    this.recipe = recipe;
    this.samples = samples;
    this.device = device;
    this.deviceOptions = deviceOptions;
    const { metrics } = options;
    device.onRun = ({ phase, seconds, tensors }) => {
      const kind = kindOf(phase);
      metrics.deviceSeconds.inc({ phase: kind }, seconds);
      if (OF_A_STEP.has(kind)) this.deviceSeconds += seconds;
      metrics.tensors.set(tensors);
    };
    if (position !== null) this.goOnFrom(position);
  }

  /**
   * The post, and its exchange on the way to being connected: a peer that never comes takes nothing from the post's state.
   * @throws BraidError CAPTURE or DEVICE; nothing is left open then
   */
  static async open(options: PostOptions, signal: AbortSignal): Promise<{ post: Post; connected: Promise<void> }> {
    const { request, secret, exchange, threads, before } = options;
    const { height, width, channels, classes, shardSizes } = request;
    const recipe = checkRecipe(JSON.parse(request.recipe), 'the recipe of Prepare');
    await options.onRecipe(recipe);
    const role: Role = request.branch === undefined ? { kind: 'replica' } : { kind: 'branch', branch: request.branch };
    const wanted = { recipe, role, image: { height, width, channels }, classes, shardSizes, threads };
    const own = await openOwnData(recipe.data, request).catch(async (error) => {
      await before?.close();
      throw error;
    });
    const legacy = await inherit(options, wanted, before).catch((error) => {
      closeOwnData(own);
      throw error;
    });
    const post = new Post(options, recipe, legacy, new PostSamples({ ...options, recipe, own }));
    const connected = (async () =>
      exchange.connect({ ...exchangePlan(request, post.program, recipe.cluster), secret }, signal))();
    connected.catch(() => {}); // awaited by whoever has the post
    return { post, connected };
  }

  get program(): Program {
    return this.device.program;
  }

  /** Every size of a micro-batch, descending. */
  get microSizes(): number[] {
    return distinctMicroSizes(this.request.shardSizes, this.recipe.training.microBatches);
  }

  /** Where training is on this worker; null while it has no state. */
  get position(): Position | null {
    return this.step === null ? null : { step: this.step, round: this.committed, ...this.scale };
  }

  /** For those who look on: the step that is next, or is being applied; null while there is no state. */
  get shownStep(): number | null {
    return this.step ?? this.applying;
  }

  /** Shards that wait, decoded, for the device. */
  get readyShards(): number {
    return this.samples.ready;
  }

  /** `together`: forward, method and backward; leaves the gradient in the exchange. */
  async compute({ step, distillWeight, shardWeight, round, lossScale }: ComputeRequest): Promise<ComputeResponse> {
    this.require(step, ['begun', 'computed', 'reduced'], 'compute');
    this.begin(round);
    const shard = await this.samples.take(step);
    const losses = this.program.rounds[round]!.losses.map(() => 0);
    await this.options.exchange.idle();
    await this.clear();
    const { segments } = this.program.rounds[round]!;
    const overlapped = isOverlapped(segments);
    for (const piece of this.samples.pieces(shard)) {
      const { images, labels, part } = piece;
      const feeds = { images, labels, distillWeight, shardWeight: shardWeight * part, lossScale };
      const phase = trainingPhase('compute', round, labels.length);
      const gradient = this.gradient(overlapped ? segments[0] : undefined);
      const results = await this.device.run(phase, feeds, this.adds ? {} : { gradient });
      results['losses']!.forEach((loss, i) => {
        losses[i]! += part * loss;
      });
      if (!overlapped) continue;
      this.options.exchange.begin(step, round);
      const rest = trainingPhase('trunkBackward', round, labels.length);
      await this.device.run(rest, {}, { gradient: this.gradient(segments[1]) });
    }
    await this.takeSum();
    this.progress = 'computed';
    return { losses };
  }

  /** `split`: the branch's flat f32 outputs on a micro-batch of this step's shard, or on an evaluation batch. */
  async forward(request: ForwardRequest): Promise<Float32Array> {
    const { step, split, shardWeight, round, microBatch, lossScale } = request;
    if (split === 'SPLIT_TEST') return this.forwardTest(step);
    this.require(step, microBatch === 0 ? ['begun', 'forward', 'computed', 'reduced'] : ['forward'], 'forward');
    if (microBatch === 0) this.begin(round);
    const pieces = this.samples.pieces(await this.samples.take(step));
    const learns = this.gradient().length > 0; // what does not learn has no backward
    if (
      microBatch !== this.forwarded ||
      microBatch >= pieces.length ||
      (learns && microBatch >= this.backwarded + SLOTS)
    ) {
      const where = `${this.forwarded} forward, ${this.backwarded} backward of ${pieces.length}`;
      throw new BraidError('PROTOCOL', `micro-batch ${microBatch} is asked for, but of step ${step} are ${where}`);
    }
    if (microBatch === 0) await this.clear();
    this.forwarded++;
    this.shardWeight = shardWeight;
    this.lossScale = lossScale;
    this.progress = learns || this.forwarded < pieces.length ? 'forward' : 'computed';
    const { images, labels } = pieces[microBatch]!;
    const phase = trainingPhase('forward', round, labels.length, microBatch % SLOTS);
    const outputs = (await this.device.run(phase, { images }))['outputs']!;
    this.moved('outputs', 'sent', outputs.byteLength);
    return outputs;
  }

  /** `split`: the vector-Jacobian product; leaves the gradient in the exchange. */
  async backward(stream: Messages<Part>): Promise<void> {
    const step = this.requireState();
    this.require(step, ['forward'], 'backward');
    const pieces = this.samples.pieces(await this.samples.take(step));
    const at = this.backwarded;
    if (at >= this.forwarded) {
      throw new BraidError('PROTOCOL', `backward of micro-batch ${at} of step ${step}, but it has not been forward`);
    }
    const { labels, part } = pieces[at]!;
    const length = this.program.outputLengths[`train@${labels.length}`]!;
    const { run, generation } = this.request;
    const bytes = await collect(stream, { maxBytes: 4 * length, expect: { run, generation, step } });
    this.moved('cotangents', 'received', bytes.length);
    const { lossScale } = this;
    const shardWeight = this.shardWeight * part;
    const feeds = { cotangents: floats(bytes, length, 'cotangents'), shardWeight, lossScale };
    const phase = trainingPhase('backward', this.round, labels.length, at % SLOTS);
    await this.device.run(phase, feeds, this.adds ? {} : { gradient: this.gradient() });
    this.backwarded = at + 1;
    if (this.backwarded < pieces.length) return;
    await this.takeSum();
    this.progress = 'computed';
  }

  async reduce(step: number, signal: AbortSignal): Promise<ReduceResponse> {
    this.require(step, ['computed', 'reduced'], 'reduce');
    const reduced = await this.options.exchange.reduce(step, this.round, signal);
    this.progress = 'reduced';
    this.moved('gradients', 'sent', reduced.sentBytes);
    this.moved('gradients', 'received', reduced.receivedBytes);
    const { deviceSeconds } = this;
    this.deviceSeconds = 0;
    return { ...reduced, deviceSeconds, inputSeconds: this.samples.waited() };
  }

  /** Samples of the step's shard that others stand in for. */
  async inspect(step: number): Promise<BadSample[]> {
    const { bad } = await this.samples.take(step);
    return bad.map(({ place, sampleId: sample, reason }) => ({ place, sample, reason }));
  }

  /** The first line of a round that changes a weight. One that has been committed already stays as it is. */
  async commit({ step, round, learningRate, last, skip, lossScale, goodUpdates }: CommitRequest): Promise<void> {
    const current = this.requireState();
    if (step < current || (step === current && round < this.committed)) return;
    this.require(step, skip ? ['begun', 'forward', 'computed', 'reduced'] : ['reduced'], 'commit');
    const { gradientLength } = this.program.rounds[this.round]!;
    this.applying = step;
    this.step = null; // an apply that fails may have changed some weights: only a new state helps then
    try {
      if (gradientLength > 0 && !skip) {
        const gradient = this.options.exchange.reduced.subarray(0, gradientLength);
        await this.device.run(applyPhase(this.round), { gradient, learningRate });
      }
    } finally {
      this.applying = null;
    }
    if (last) this.samples.release(step);
    this.step = last ? step + 1 : step;
    this.committed = last ? 0 : round + 1;
    this.scale = { lossScale, goodUpdates };
    this.progress = 'begun';
  }

  /** `together`: this replica's part of the test set, summed. */
  async evaluate(): Promise<ClassifierScore[]> {
    const { classifiers } = this.program;
    const parts: Score[][] = [];
    for await (const { images, labels, samples } of this.samples.testSet()) {
      const { scores } = await this.device.run('evaluate', { images, labels });
      parts.push(readScores(classifiers, scores!, samples));
    }
    return addScores(classifiers, parts);
  }

  /** f32[stateLength], until the state is read again. */
  async readState(): Promise<Float32Array> {
    this.requireState();
    this.stateMemory ??= alignedSharedBuffer(4 * this.program.stateLength);
    return await readState(this.device, this.stateMemory);
  }

  async hashState(): Promise<Uint8Array> {
    return await sha256(bytesOf(await this.readState()));
  }

  /** From here on the worker is at the state's step, whatever it was doing. */
  async writeState(stream: Messages<Part>): Promise<void> {
    const { run, generation } = this.request;
    let position: Position | null = null;
    const observed = (async function* () {
      for await (const part of stream) {
        const { step, round, lossScale, goodUpdates } = part;
        position = { step, round, lossScale, goodUpdates };
        yield part;
      }
    })();
    const length = this.program.stateLength;
    const memory = alignedSharedBuffer(4 * length);
    const into = new Uint8Array(memory, 0, 4 * length);
    const bytes = await collect(observed, { maxBytes: 4 * length, expect: { run, generation }, into });
    this.moved('state', 'received', bytes.length);
    const state = floats(bytes, length, 'state');
    this.step = null;
    await this.device.run('write', { state });
    discardPages(new Uint8Array(memory));
    this.goOnFrom(position!);
  }

  /** Ends everything but the device, which the next generation may go on with. */
  async end(): Promise<Legacy> {
    const { device, deviceOptions: options, position } = this;
    this.step = null;
    await this.samples.close();
    if (this.stateMemory !== null) discardPages(new Uint8Array(this.stateMemory));
    this.stateMemory = null;
    return { device, options, position };
  }

  async close(): Promise<void> {
    const { device } = await this.end();
    await device.close();
  }

  private goOnFrom({ step, round, ...scale }: Position): void {
    this.samples.goOnFrom(step);
    this.step = step;
    this.committed = round;
    this.scale = scale;
    this.progress = 'begun';
  }

  private forwardTest(batch: number): Promise<Float32Array> {
    return this.samples.testBatch(
      batch,
      async (images) => (await this.device.run('forwardTest', { images }))['outputs']!,
    );
  }

  private moved(link: Link, direction: Direction, bytes: number): void {
    this.options.metrics.bytes.inc({ link, direction }, bytes);
  }

  /** A round is computed anew: what an earlier attempt left is being overwritten. */
  private begin(round: number): void {
    if (this.program.rounds[round] === undefined) {
      throw new BraidError('PROTOCOL', `round ${round}, but the program has ${this.program.rounds.length}`);
    }
    this.round = round;
    this.progress = 'begun';
    this.forwarded = 0;
    this.backwarded = 0;
  }

  /** Whether gradients are added up on the device, micro-batch by micro-batch. */
  private get adds(): boolean {
    return this.recipe.training.microBatches > 1 && this.gradient().length > 0;
  }

  private async clear(): Promise<void> {
    if (this.adds) await this.device.run(clearPhase(this.round), {});
  }

  private async takeSum(): Promise<void> {
    if (this.adds) await this.device.run(gradientPhase(this.round), {}, { gradient: this.gradient() });
  }

  /** Of the current round, whole or a segment of it, on the exchange's memory. */
  private gradient({ offset, length } = { offset: 0, length: this.program.rounds[this.round]!.gradientLength }) {
    return this.options.exchange.gradient.subarray(offset, offset + length);
  }

  private requireState(): number {
    if (this.step !== null) return this.step;
    throw new BraidError('PROTOCOL', `worker ${this.request.rank} has no state yet: WriteState comes first`);
  }

  private require(step: number, allowed: Progress[], what: string): void {
    const current = this.requireState();
    if (step !== current || !allowed.includes(this.progress)) {
      const { rank } = this.request;
      throw new BraidError(
        'PROTOCOL',
        `${what} of step ${step}, but worker ${rank} is at step ${current} (${this.progress})`,
      );
    }
  }
}

/** The device that runs what is wanted, with the state of the generation before where that is of the same run and role. */
async function inherit(
  { request, openDevice }: PostOptions,
  wanted: DeviceOptions,
  before: Post | null,
): Promise<Legacy> {
  const legacy = (await before?.end()) ?? null;
  if (legacy !== null && before!.request.run !== request.run) legacy.position = null;
  if (legacy !== null && isDeepStrictEqual(legacy.options, wanted)) return legacy;
  const kept = legacy?.position != null && isDeepStrictEqual(legacy.options.role, wanted.role);
  const memory = kept ? alignedSharedBuffer(4 * legacy.device.program.stateLength) : null;
  const state = memory && (await readState(legacy!.device, memory));
  await legacy?.device.close();
  const device = await openDevice(wanted);
  try {
    if (state !== null) await device.run('write', { state });
    if (memory !== null) discardPages(new Uint8Array(memory));
    return { device, options: wanted, position: kept ? legacy.position : null };
  } catch (error) {
    await device.close();
    throw error;
  }
}

/** @param memory of 4 stateLength bytes at least   @returns f32[stateLength] there */
async function readState(device: Device, memory: SharedArrayBuffer): Promise<Float32Array> {
  const state = new Float32Array(memory, 0, device.program.stateLength);
  await device.run('read', {}, { state });
  return state;
}

function floats(bytes: Uint8Array, length: number, what: string): Float32Array {
  if (bytes.length === 4 * length) return new Float32Array(bytes.buffer, bytes.byteOffset, length);
  throw new BraidError('PROTOCOL', `${what} of ${bytes.length} bytes, the program takes ${4 * length}`);
}

/** "compute" of "compute.1@64": what there are few of. */
function kindOf(phase: string): string {
  return /^[a-zA-Z]+/.exec(phase)![0];
}
