/**
 * Which samples the run was trained on, by what passed the proxies and not by what anybody says of it: the shards that were
 * sent to the workers of the generation in which a step was committed last. An epoch must have every sample once.
 */
import { batchOf, type SamplerOptions, stepsPerEpoch } from '../core/sampler.ts';
import { decodeShard } from '../input/shard.ts';
import type { CommitRequest, Part, ShardsRequest } from '../proto/messages.ts';

export interface AuditResult {
  /** Samples of an epoch that no committed step had, over all epochs. */
  lost: number;
  /** Times that a sample came again in its epoch. */
  doubled: number;
  /** Steps whose samples are not the sampler's, or not in its order. */
  otherSteps: number;
}

export class Audit {
  private generation = 0;
  /** Of that generation: by step and replica. */
  private readonly sent = new Map<number, Int32Array[]>();
  /** By step: the shards of its latest commit. */
  private readonly trained = new Map<number, Int32Array[]>();

  /** Generations are counted from 1 again: nobody is left who knew of them. */
  anew(): void {
    this.generation = 0;
    this.sent.clear();
  }

  shard({ generation, replica }: ShardsRequest, { step, data }: Part): void {
    if (generation < this.generation) return;
    if (generation > this.generation) this.sent.clear();
    this.generation = generation;
    const shards = this.sent.get(step) ?? [];
    shards[replica] = decodeShard(data).sampleIds.slice();
    this.sent.set(step, shards);
  }

  /** Also of a commit that comes to nothing: what follows it tells. */
  commit({ generation, step }: CommitRequest): void {
    const shards = this.sent.get(step);
    if (generation !== this.generation || shards === undefined) return;
    this.trained.set(step, shards);
    this.sent.delete(step - 1);
  }

  /** @param steps that have been committed */
  check(steps: number, sampler: SamplerOptions): AuditResult {
    const result = { lost: 0, doubled: 0, otherSteps: 0 };
    const perEpoch = stepsPerEpoch(sampler.samples, sampler.batch);
    for (let first = 0; first < steps; first += perEpoch) {
      const times = new Map<number, number>();
      let due = 0;
      for (let step = first; step < Math.min(steps, first + perEpoch); step++) {
        const wanted = batchOf(step, sampler).sampleIds;
        const ids = (this.trained.get(step) ?? []).flatMap((shard) => [...shard]);
        due += wanted.length;
        for (const id of ids) times.set(id, (times.get(id) ?? 0) + 1);
        if (ids.join() !== wanted.join()) result.otherSteps++;
      }
      result.lost += due - times.size;
      for (const count of times.values()) result.doubled += count - 1;
    }
    return result;
  }
}
