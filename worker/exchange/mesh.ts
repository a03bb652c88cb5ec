/**
 * A segment's all-reduce, each rank with each:
 *
 *     scatter   send every peer its slice of the own gradient; receive the peers' pieces of the own slice
 *     sum       each chunk of the own slice in rank order, the own piece in its place, as soon as its turn has come:
 *               ((g0 + g1) + g2) + ...
 *     gather    send each summed chunk to every peer; receive theirs, into place
 *
 * What a rank of the same machine sends is read in its memory: then frames are empty, and only say that it is there.
 *
 * A slice is added up by its owner alone, so every rank ends with the same bits. With bf16 on the wire the owner adds its own
 * piece as f32 to the others' rounded ones, and rounds the sum.
 */
import { type Frame, Reduction, type ReductionOptions } from './reduction.ts';
import type { Range } from './slices.ts';

/** A chunk of the own slice. */
interface Piece {
  /** How many of the group's ranks, from the first, are in. */
  folded: number;
  /** Where the first rank's contribution is, until the second joins it. */
  first: number;
  /** Rank to address of contributions whose turn has not come. */
  waiting: Map<number, number>;
}

export class MeshReduction extends Reduction {
  private readonly peers: number[];
  /** By the chunk's beginning. */
  private readonly pieces = new Map<number, Piece>();
  /** Places in each peer's window that hold nothing. */
  private readonly free = new Map<number, number[]>();

  constructor(options: ReductionOptions) {
    super(options);
    const { ranks, rank, links } = options;
    this.peers = ranks.filter((other) => other !== rank);
    const own = this.sliceOf(rank);
    for (const { start } of own) this.pieces.set(start, { folded: 0, first: 0, waiting: new Map() });
    for (const peer of this.peers) {
      const theirs = this.sliceOf(peer);
      this.free.set(peer, [...links.window(peer)]);
      this.expect(peer, [...own.map(scatter), ...theirs.map(gather)]);
      this.promise(peer, theirs.length + own.length);
    }
  }

  protected begin(): void {
    const { rank, memory } = this.options;
    for (const peer of this.peers) {
      for (const range of this.sliceOf(peer)) {
        this.send(peer, scatter(range), this.payload(memory.gradient, range));
      }
    }
    for (const range of this.sliceOf(rank)) this.fold(range);
  }

  protected place(rank: number, { phase, range }: Frame): number | null {
    if (phase === 'gather') return this.address(this.options.memory.reduced, range);
    const readable = this.options.links.readable(rank);
    if (readable !== null) return this.address(readable.gradient, range);
    return this.free.get(rank)!.pop() ?? null;
  }

  protected override travels(rank: number, way: 'in' | 'out'): boolean {
    const { links } = this.options;
    return way === 'in' ? links.readable(rank) === null : !links.isReader(rank);
  }

  protected scattered(rank: number, range: Range, at: number): void {
    this.pieces.get(range.start)!.waiting.set(rank, at);
    this.fold(range);
  }

  protected gathered(rank: number, range: Range): void {
    const { memory, links } = this.options;
    const readable = links.readable(rank);
    if (readable === null) return;
    memory.copy(this.address(memory.reduced, range), this.address(readable.reduced, range), range.length);
  }

  /** Adds to a chunk of the own slice whatever has its turn now. */
  private fold(range: Range): void {
    const { ranks, rank: own, memory } = this.options;
    const piece = this.pieces.get(range.start)!;
    const to = this.address(memory.reduced, range);
    while (piece.folded < ranks.length) {
      const rank = ranks[piece.folded]!;
      const at = rank === own ? this.address(memory.gradient, range) : piece.waiting.get(rank);
      if (at === undefined) return;
      const before = piece.folded === 1 ? piece.first : to;
      if (piece.folded === ranks.length - 1) this.complete(range, before, at);
      else if (piece.folded > 0) memory.kernels.sum(to, before, at, range.length);
      else piece.first = at;
      if (piece.folded === 1) this.release(ranks[0]!, piece.first);
      if (piece.folded > 0) this.release(rank, at);
      piece.folded++;
    }
  }

  private complete(range: Range, a: number, b: number): void {
    const squares = this.addLast(range, a, b);
    const payload = this.payload(this.options.memory.reduced, range);
    for (const peer of this.peers) this.send(peer, gather(range), payload, squares);
  }

  private release(rank: number, at: number): void {
    if (rank === this.options.rank || !this.travels(rank, 'in')) return; // it lies in a gradient
    this.free.get(rank)!.push(at);
    this.options.links.wake(rank);
  }

  private sliceOf(rank: number): Range[] {
    return this.chunksOf(this.options.ranks.indexOf(rank));
  }
}

const scatter = (range: Range): Frame => ({ phase: 'scatter', range });
const gather = (range: Range): Frame => ({ phase: 'gather', range });
