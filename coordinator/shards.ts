/**
 * The shards of every replica, encoded when they are asked for: a pure function of (split, step, replica), so that a
 * stream can begin anywhere and nothing has to be remembered.
 */
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
const UNREADABLE = new Uint8Array(0);
/** In place of a label that has not been read yet. */
const UNKNOWN = -1;

export class Shards {
  private readonly plan: Plan;
  /** By split, step and replica, the oldest first. Empty where each shard has only one reader. */
  private readonly kept = new Map<string, Uint8Array>();
  private keptBytes = 0;
  /** By split and sample id, as far as they have been read: an image file is not read once more for its label. */
  private readonly known: Record<'train' | 'test', Int32Array>;

  constructor(plan: Plan) {
    this.plan = plan;
    this.known = { train: unknown(plan.train.length), test: unknown(plan.test.length) };
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
    const { batch } = recipe.evaluation;
    const first = (step * replicas + replica) * batch;
    return Int32Array.from({ length: Math.min(batch, test.length - first) }, (_, i) => first + i);
  }

  /** i32[n] */
  labels(split: Split, step: number, replica: number): Int32Array {
    const { dataset, known } = this.side(split);
    return this.sampleIds(split, step, replica).map((id) => {
      if (known[id] === UNKNOWN) known[id] = dataset.read(id).label;
      return known[id]!;
    });
  }

  /** The payload of a shard, as it goes to the workers of its replica. */
  encoded(split: Split, step: number, replica: number): Uint8Array {
    const key = `${split} ${step} ${replica}`;
    const kept = this.kept.get(key);
    if (kept !== undefined) return kept;
    const encoded = this.encode(split, step, replica);
    if (split === 'SPLIT_TRAIN' && this.plan.recipe.cluster.placement === 'split') {
      this.keep(key, encoded);
    }
    return encoded;
  }

  private keep(key: string, encoded: Uint8Array): void {
    this.kept.set(key, encoded);
    this.keptBytes += encoded.length;
    for (const [oldest, { length }] of this.kept) {
      if (this.keptBytes <= KEPT_BYTES_A_REPLICA * this.plan.replicas) return;
      this.kept.delete(oldest);
      this.keptBytes -= length;
    }
  }

  private encode(split: Split, step: number, replica: number): Uint8Array {
    const { dataset, known } = this.side(split);
    const sampleIds = this.sampleIds(split, step, replica);
    const skips = this.plan.recipe.data.onBadSample === 'skip' && split === 'SPLIT_TRAIN';
    const records = Array.from(sampleIds, (id) => {
      try {
        const { bytes, label } = dataset.read(id);
        known[id] = label;
        return bytes;
      } catch (error) {
        if (!skips) throw error;
        known[id] = 0; // whatever: another sample stands in
        return UNREADABLE; // and no decoder takes it
      }
    });
    return encodeShard({
      step,
      epoch: split === 'SPLIT_TRAIN' ? Math.floor(step / this.plan.stepsPerEpoch) : 0,
      encoding: dataset.encoding,
      image: dataset.image,
      sampleIds,
      labels: sampleIds.map((id) => known[id]!),
      records,
    });
  }

  private side(split: Split): { dataset: Dataset; known: Int32Array } {
    const side = split === 'SPLIT_TRAIN' ? 'train' : 'test';
    return { dataset: this.plan[side], known: this.known[side] };
  }
}

function unknown(length: number): Int32Array {
  return new Int32Array(length).fill(UNKNOWN);
}
