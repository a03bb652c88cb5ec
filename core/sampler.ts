/**
 * Which samples a step trains on: a pure function of (step, data set size, batch, seed). There is no iterator, so resume
 * is exact and the order does not depend on how many workers there are.
 */
import { BraidError } from './errors.ts';
import { Random, Stream } from './random.ts';

export interface SamplerOptions {
  /** Size of the data set. */
  samples: number;
  /** Samples of a global batch. */
  batch: number;
  seed: number;
  /** false: every epoch goes through the data set in its own order. */
  shuffle: boolean;
}

/** The global batch of a step. */
export interface Batch {
  epoch: number;
  /** Of this batch in its epoch. */
  index: number;
  /** Each in [0, samples). */
  sampleIds: Int32Array;
}

/** The last batch of an epoch holds what is left, so that an epoch visits every sample exactly once. */
export function stepsPerEpoch(samples: number, batch: number): number {
  return Math.ceil(samples / batch);
}

export function batchOf(step: number, { samples, batch, seed, shuffle }: SamplerOptions): Batch {
  const steps = stepsPerEpoch(samples, batch);
  const epoch = Math.floor(step / steps);
  const index = step % steps;
  const [first, end] = [index * batch, Math.min(samples, (index + 1) * batch)];
  const sampleIds = shuffle
    ? permutation(samples, seed, epoch).slice(first, end)
    : Int32Array.from({ length: end - first }, (_, i) => first + i);
  return { epoch, index, sampleIds };
}

/**
 * How a batch of `samples` splits over the replicas, in rank order: sizes differ by at most one, larger first.
 * @throws BraidError INVALID_RECIPE when a replica would get none
 */
export function shardSizes(samples: number, replicas: number): number[] {
  if (samples < replicas) {
    throw new BraidError('INVALID_RECIPE', `a batch of ${samples} samples cannot be split over ${replicas} replicas`, {
      remedy: `Use at most ${samples} replicas (cluster.replicas), or a larger batch (training.batch).`,
    });
  }
  return Array.from({ length: replicas }, (_, replica) => {
    const [first, end] = shardBounds(samples, replicas, replica);
    return end - first;
  });
}

/** Where a replica's shard lies in a batch of `samples`: [first, end), the shards one after another as `shardSizes` says. */
export function shardBounds(samples: number, replicas: number, replica: number): [number, number] {
  const [size, larger] = [Math.floor(samples / replicas), samples % replicas];
  const boundary = (before: number) => before * size + Math.min(before, larger);
  return [boundary(replica), boundary(replica + 1)];
}

/** How a shard is cut into micro-batches, in order: sizes differ by at most one, larger first; none is empty. */
export function microSizes(samples: number, microBatches: number): number[] {
  return shardSizes(samples, Math.min(samples, microBatches));
}

/** Every number of samples that a micro-batch of such shards has, descending. */
export function distinctMicroSizes(shards: number[], microBatches: number): number[] {
  return [...new Set(shards.flatMap((samples) => microSizes(samples, microBatches)))].sort((a, b) => b - a);
}

/**
 * Every number of samples that a shard of this run can have, descending: at most four.
 * @throws BraidError INVALID_RECIPE when the last batch of an epoch has fewer samples than there are replicas
 */
export function distinctShardSizes(samples: number, batch: number, replicas: number): number[] {
  const last = samples % batch === 0 ? Math.min(samples, batch) : samples % batch;
  if (last < replicas) {
    throw new BraidError(
      'INVALID_RECIPE',
      `${samples} samples in batches of ${batch} leave a last batch of ${last}, fewer than the ${replicas} replicas`,
      { remedy: remedyFor(samples, batch, replicas), details: { samples, batch, replicas, last } },
    );
  }
  const whole = samples < batch ? [] : shardSizes(batch, replicas);
  return [...new Set([...whole, ...shardSizes(last, replicas)])].sort((a, b) => b - a);
}

function remedyFor(samples: number, batch: number, replicas: number): string {
  for (let other = batch - replicas; other >= replicas; other -= replicas) {
    const last = samples % other;
    if (last === 0 || last >= replicas) {
      return `Set training.batch to ${other}, or use fewer replicas (cluster.replicas).`;
    }
  }
  return 'Use fewer replicas (cluster.replicas), or another batch (training.batch).';
}

/** Epochs whose order is kept: training reads ahead over an epoch's end, and more than one run may share a process. */
const KEPT_PERMUTATIONS = 4;
const permutations = new Map<string, Int32Array>();

/** The order of an epoch: Fisher-Yates, keyed by (seed, epoch). Memory: 4 bytes a sample. */
function permutation(samples: number, seed: number, epoch: number): Int32Array {
  const key = `${samples} ${seed} ${epoch}`;
  const kept = permutations.get(key);
  if (kept !== undefined) return kept;
  const random = new Random(Stream.SHUFFLE, seed, epoch);
  const order = Int32Array.from({ length: samples }, (_, i) => i);
  for (let i = samples - 1; i > 0; i--) {
    const j = random.int(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  if (permutations.size >= KEPT_PERMUTATIONS) permutations.delete(permutations.keys().next().value!);
  permutations.set(key, order);
  return order;
}
