/**
 * The shards of every replica, encoded when they are asked for: a pure function of (split, step, replica), so that a
 * stream can begin anywhere and nothing has to be remembered.
 */
import { evaluationBatchOf } from '../core/recipe.ts';
import { batchOf, shardBounds } from '../core/sampler.ts';
import type { Dataset } from '../input/dataset.ts';
import { encodeShard } from '../input/shard.ts';
import type { Split } from '../proto/messages.ts';
import { type Plan, samplerOf } from './plan.ts';

/**
 * Encoded shards kept for a replica's other branches, which read the same ones a little earlier or later: twice what a
 * stream can hold on its way (16 parts of 1 MiB).
 */
const KEPT_BYTES_A_REPLICA = 32 << 20;
/** In place of a sample that cannot be read, which no decoder takes; and of all that workers read themselves. */
const NO_BYTES = new Uint8Array(0);

interface Kept {
  encoded: Promise<Uint8Array>;
  /** 0 while it is being made. */
  bytes: number;
}

export class Shards {
  private readonly plan: Plan;
  /** By split, step and replica, the oldest first. Empty where each shard has only one reader. */
  private readonly kept = new Map<string, Kept>();
  private keptBytes = 0;

  constructor(plan: Plan) {
    this.plan = plan;
  }

  get replicas(): number {
    return this.plan.replicas;
  }

  /** How many shards a replica has in all. */
  count(split: Split, replica: number): number {
    const { steps, testBatches, replicas } = this.plan;
    return split === 'SPLIT_TRAIN' ? steps : Math.max(0, Math.ceil((testBatches - replica) / replicas));
  }

  /** The samples of a shard, by id. */
  sampleIds(split: Split, step: number, replica: number): Int32Array {
    const { recipe, train, test, replicas } = this.plan;
    if (split === 'SPLIT_TRAIN') {
      const { sampleIds } = batchOf(step, samplerOf(recipe, train.length));
      return sampleIds.subarray(...shardBounds(sampleIds.length, replicas, replica));
    }
    const batch = evaluationBatchOf(recipe);
    const first = (step * replicas + replica) * batch;
    return Int32Array.from({ length: Math.min(batch, test.length - first) }, (_, i) => first + i);
  }

  /** i32[n] */
  labels(split: Split, step: number, replica: number): Int32Array {
    const dataset = this.datasetOf(split);
    return this.sampleIds(split, step, replica).map((id) => dataset.label(id));
  }

  /** The payload of a shard, as it goes to the workers of its replica. */
  encoded(split: Split, step: number, replica: number): Promise<Uint8Array> {
    const key = `${split} ${step} ${replica}`;
    const kept = this.kept.get(key);
    if (kept !== undefined) return kept.encoded;
    const encoded = this.encode(split, step, replica);
    if (split === 'SPLIT_TRAIN' && this.plan.recipe.cluster.placement === 'split') {
      this.keep(key, { encoded, bytes: 0 });
    }
    return encoded;
  }

  private keep(key: string, kept: Kept): void {
    this.kept.set(key, kept);
    kept.encoded.then(
      ({ length }) => {
        if (this.kept.get(key) !== kept) return;
        kept.bytes = length;
        this.keptBytes += length;
        this.forget();
      },
      () => this.kept.delete(key),
    );
  }

  private forget(): void {
    for (const [oldest, { bytes }] of this.kept) {
      if (this.keptBytes <= KEPT_BYTES_A_REPLICA * this.plan.replicas) return;
      this.kept.delete(oldest);
      this.keptBytes -= bytes;
    }
  }

  private async encode(split: Split, step: number, replica: number): Promise<Uint8Array> {
    const dataset = this.datasetOf(split);
    const sampleIds = this.sampleIds(split, step, replica);
    const skips = this.plan.recipe.data.onBadSample === 'skip' && split === 'SPLIT_TRAIN';
    const byId = this.plan.recipe.data.send === 'ids';
    const records = await Promise.all(
      Array.from(sampleIds, async (id) => {
        if (byId) return NO_BYTES;
        try {
          return await dataset.read(id);
        } catch (error) {
          if (!skips) throw error;
          return NO_BYTES;
        }
      }),
    );
    return encodeShard({
      step,
      epoch: split === 'SPLIT_TRAIN' ? Math.floor(step / this.plan.stepsPerEpoch) : 0,
      encoding: byId ? 'by-id' : dataset.encoding,
      image: dataset.image,
      sampleIds,
      labels: this.labels(split, step, replica),
      records,
    });
  }

  private datasetOf(split: Split): Dataset {
    return split === 'SPLIT_TRAIN' ? this.plan.train : this.plan.test;
  }
}
