/**
 * A segment's all-reduce round a ring: every rank receives from the one before it and sends to the one after it, however many
 * there are.
 *
 *     scatter   slice k sets out from the rank after its owner k; each rank on its way adds its own piece, the owner last:
 *               ((g[k+1] + g[k+2]) + ...) + g[k], counted within the group and round its end
 *     gather    the owner's sum goes round the same way, and stops before it would come back
 *
 * A slice is added up along one path, so every rank ends with the same bits. With bf16 on the wire the sum is rounded on
 * each leg of the way: ranks - 1 times, and once more by the owner.
 */
import { neighboursOf } from './plan.ts';
import { type Frame, Reduction, type ReductionOptions } from './reduction.ts';
import type { Range } from './slices.ts';

export class RingReduction extends Reduction {
  private readonly after: number;
  /** Chunks of the own slice, by their beginning. */
  private readonly own: Set<number>;
  /** Chunks that have gone all the way when they come here, by their beginning. */
  private readonly last: Set<number>;

  constructor(options: ReductionOptions) {
    super(options);
    const { ranks, rank } = options;
    const { before, after } = neighboursOf(ranks, rank);
    this.after = after;
    this.own = starts(this.chunksBack(0));
    this.last = starts(this.chunksBack(ranks.length - 1));
    const legs = Array.from({ length: ranks.length - 1 }, (_, i) => i + 1);
    const frames = (phase: Frame['phase'], legsBack: number[]) =>
      legsBack.flatMap((back) => this.chunksBack(back)).map((range) => ({ phase, range }));
    this.expect(before, [...frames('scatter', [...legs.slice(1), ranks.length]), ...frames('gather', legs)]);
    this.promise(after, frames('scatter', legs).length + frames('gather', [0, ...legs.slice(0, -1)]).length);
  }

  protected begin(): void {
    for (const range of this.chunksBack(1)) {
      this.send(this.after, { phase: 'scatter', range }, this.payload(this.options.memory.gradient, range));
    }
  }

  /** In place: what was sent from there has come to the next rank, or this could not have come round. */
  protected place(_: number, { range }: Frame): number {
    return this.address(this.options.memory.reduced, range);
  }

  protected scattered(_: number, range: Range, at: number): void {
    const { memory } = this.options;
    const piece = this.address(memory.gradient, range);
    if (this.own.has(range.start)) {
      this.forward('gather', range, this.addLast(range, at, piece));
    } else {
      memory.kernels.sum(at, at, piece, range.length);
      this.forward('scatter', range);
    }
  }

  protected gathered(_: number, range: Range, squares: number): void {
    if (!this.last.has(range.start)) this.forward('gather', range, squares);
  }

  private forward(phase: Frame['phase'], range: Range, squares = 0): void {
    this.send(this.after, { phase, range }, this.payload(this.options.memory.reduced, range), squares);
  }

  /** Of the slice whose owner is so many places before this rank. */
  private chunksBack(places: number): Range[] {
    const { ranks, rank } = this.options;
    return this.chunksOf((ranks.indexOf(rank) - places + ranks.length) % ranks.length);
  }
}

function starts(chunks: Range[]): Set<number> {
  return new Set(chunks.map(({ start }) => start));
}
