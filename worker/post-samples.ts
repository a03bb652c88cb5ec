/**
 * A post's samples, decoded ahead of need: training shards in step order, with their micro-batches, and its part of the test
 * set in batches.
 */
import { BraidError } from '../core/errors.ts';
import type { WorkerMetrics } from '../core/metrics.ts';
import { branchesOf, evaluationBatchOf, type Recipe } from '../core/recipe.ts';
import { microSizes, shardBounds } from '../core/sampler.ts';
import { within } from '../core/spans.ts';
import { shardBytes } from '../input/shard.ts';
import type { Messages, Part, PrepareRequest, ShardsRequest } from '../proto/messages.ts';
import type { Eye } from './input/eye.ts';
import { InputPool, type ReadyShard } from './input/pool.ts';
import { closeOwnData, type OwnData } from './own-data.ts';
import { ShardReader } from './shards.ts';

export interface PostSamplesOptions {
  request: PrepareRequest;
  recipe: Recipe;
  /** null: shards come with their bytes. */
  own: OwnData | null;
  pullShards(request: ShardsRequest, signal: AbortSignal): Messages<Part>;
  metrics: WorkerMetrics;
  /** Seconds, monotonic. */
  now(): number;
}

/** As the graph takes it: what a batch lacks is labelled -1. */
interface TestBatch {
  images: Uint8Array;
  labels: Int32Array;
  /** That are there. */
  samples: number;
}

export class PostSamples {
  private readonly request: PrepareRequest;
  private readonly recipe: Recipe;
  private readonly own: OwnData | null;
  private readonly pullShards: PostSamplesOptions['pullShards'];
  private readonly metrics: PostSamplesOptions['metrics'];
  private readonly now: () => number;
  private readonly trainPool: InputPool;
  private readonly testPool: InputPool;
  private train: ShardReader | null = null;
  private test: ShardReader | null = null;
  /** The evaluation batch that `test` has next. */
  private batch = 0;
  private waitedSeconds = 0;

  constructor({ request, recipe, own, pullShards, metrics, now }: PostSamplesOptions) {
    this.request = request;
    this.recipe = recipe;
    this.own = own;
    this.pullShards = pullShards;
    this.metrics = metrics;
    this.now = now;
    const { inputThreads: threads, prefetch } = recipe.cluster;
    const { augment, resizedCrop, onBadSample } = recipe.data;
    const onPrepared = (images: number, seconds: number) => {
      metrics.images.inc(images);
      metrics.decodeSeconds.inc(seconds);
    };
    // One buffer is in use by the device while the others fill.
    const pool = { threads, seed: recipe.seed, resizedCrop, buffers: prefetch + 1, onPrepared };
    this.trainPool = new InputPool({ ...pool, onBadSample, augment, eyes: eyesOf(recipe, request) });
    this.testPool = new InputPool({ ...pool, onBadSample: 'fail', augment: null });
  }

  /** Training shards that wait, decoded. */
  get ready(): number {
    return this.train?.readyShards ?? 0;
  }

  /** Training shards come from this step on. */
  goOnFrom(step: number): void {
    this.train?.close();
    this.train = this.open('SPLIT_TRAIN', step, this.trainPool);
  }

  /** The training shard of a step; the ones before it must have been released. */
  async take(step: number): Promise<ReadyShard> {
    const start = this.now();
    const shard = await within('input', () => this.train!.take(step));
    const seconds = this.now() - start;
    this.metrics.inputSeconds.inc(seconds);
    this.waitedSeconds += seconds;
    if (this.request.shardSizes.includes(shard.labels.length)) return shard;
    const sizes = this.request.shardSizes.join(' or ');
    throw new BraidError('PROTOCOL', `the shard of step ${step} has ${shard.labels.length} samples, not ${sizes}`);
  }

  /** @returns seconds since the last call in which training waited for its shards */
  waited(): number {
    const seconds = this.waitedSeconds;
    this.waitedSeconds = 0;
    return seconds;
  }

  /** Its memory may be filled anew. */
  release(step: number): void {
    this.train!.release(step);
  }

  /** The shard's micro-batches, in order, each with its part of the shard's samples. */
  pieces({ images, labels }: ReadyShard): { images: Uint8Array; labels: Int32Array; part: number }[] {
    const bytes = images.length / labels.length; // of all that the worker's branches see of a sample
    const count = microSizes(labels.length, this.recipe.training.microBatches).length;
    return Array.from({ length: count }, (_, i) => {
      const [first, end] = shardBounds(labels.length, count, i);
      const part = (end - first) / labels.length;
      return { images: images.subarray(first * bytes, end * bytes), labels: labels.subarray(first, end), part };
    });
  }

  /** All of the part, from its beginning. */
  async *testSet(): AsyncGenerator<TestBatch> {
    for await (const shard of this.openTest(0).rest(0)) yield this.padded(shard);
  }

  /** One evaluation batch's images, for as long as they are used; those that follow one another are read ahead. */
  async testBatch<T>(batch: number, use: (images: Uint8Array) => Promise<T>): Promise<T> {
    const shards = this.test === null || batch !== this.batch ? this.openTest(batch) : this.test;
    const { images } = this.padded(await shards.take(batch));
    const result = await use(images);
    shards.release(batch);
    this.batch = batch + 1;
    return result;
  }

  async close(): Promise<void> {
    this.train?.close();
    this.test?.close();
    await Promise.all([this.trainPool.close(), this.testPool.close()]);
    closeOwnData(this.own);
  }

  private openTest(batch: number): ShardReader {
    this.test?.close();
    this.test = this.open('SPLIT_TEST', batch, this.testPool);
    this.batch = batch;
    return this.test;
  }

  private open(split: 'SPLIT_TRAIN' | 'SPLIT_TEST', firstStep: number, pool: InputPool): ShardReader {
    const { run, generation, replica, height, width, channels, shardSizes, recordBytes } = this.request;
    const samples = split === 'SPLIT_TRAIN' ? Math.max(...shardSizes) : evaluationBatchOf(this.recipe);
    const maxBytes = shardBytes(samples, recordBytes);
    const request = { run, generation, split, replica, firstStep };
    return new ShardReader({
      run,
      generation,
      firstStep,
      image: { height, width, channels },
      maxBytes,
      maxSamples: samples,
      pool,
      samples: this.own === null ? null : split === 'SPLIT_TRAIN' ? this.own.train : this.own.test,
      pull: (signal) => this.pullShards(request, signal),
      onRead: (bytes) => this.metrics.bytes.inc({ link: 'shards', direction: 'received' }, bytes),
    });
  }

  /** Filled up to the size that the graph takes. */
  private padded({ images, labels }: ReadyShard): TestBatch {
    const batch = evaluationBatchOf(this.recipe);
    const samples = labels.length;
    if (samples === batch) return { images, labels, samples };
    const { height, width, channels } = this.request;
    const whole = { images: new Uint8Array(batch * height * width * channels), labels: new Int32Array(batch).fill(-1) };
    whole.images.set(images);
    whole.labels.set(labels);
    return { ...whole, samples };
  }
}

/** Those of the branches that the worker holds. */
function eyesOf(recipe: Recipe, { branch }: PrepareRequest): Eye[] {
  if (!recipe.data.perBranch) return ['all'];
  return branch === undefined ? branchesOf(recipe).map((_, k) => k) : [branch];
}
