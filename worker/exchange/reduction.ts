/**
 * One segment's all-reduce, seen from one rank of its group:
 *
 *     scatter   send every peer its slice of the own gradient; receive the peers' pieces of the own slice
 *     sum       each chunk of the own slice in rank order, the own piece in its place, as soon as its turn has come
 *     gather    send each summed chunk to every peer; receive theirs, into place
 *
 * What a peer has to send is known to the byte beforehand, so that a frame is either the expected one or refused.
 * The order of additions depends on ranks alone: all ranks end with the same bits, whoever is fast.
 */
import type { BraidError } from '../../core/errors.ts';
import type { Header, Phase } from './frame.ts';
import type { GradientMemory } from './gradient-memory.ts';
import type { Expected } from './inbound.ts';
import { Payload } from './outbound.ts';
import { chunksOf, type Range, slicesOf } from './slices.ts';

/** How a reduction reaches one other rank of its group. */
export interface Link {
  /** Addresses of the window for its pieces of the own slice. */
  window: number[];
  send(header: Header, payload: Payload, sent: () => void): void;
  /** Its next frame may be expected now. */
  wake(): void;
}

export interface ReductionOptions {
  generation: number;
  step: number;
  bucket: number;
  /** f32 elements into the gradient. */
  offset: number;
  length: number;
  /** Ascending, with `rank` among them. */
  ranks: number[];
  rank: number;
  memory: GradientMemory;
  /** One a rank of the group but the own. */
  links: Map<number, Link>;
}

/** A chunk of the own slice. */
interface Piece {
  range: Range;
  /** How many of the group's ranks, from the first, are in. */
  folded: number;
  /** Where the first rank's contribution is, until the second joins it. */
  first: number;
  /** Rank to address of contributions whose turn has not come. */
  waiting: Map<number, number>;
}

/** What one peer still has to send. */
interface Inflow {
  link: Link;
  /** Its own slice, summed by it. */
  theirs: Range[];
  /** Frames received: first all of scatter, then all of gather. */
  received: number;
  free: number[];
  /** Where the piece that comes next goes: null unless it has been announced. */
  slot: number | null;
}

export class Reduction {
  /** Sum of squares of the reduced segment, f64, the same on every rank: not finite exactly when an element is not. */
  readonly done: Promise<number>;
  private readonly options: ReductionOptions;
  private readonly settle = Promise.withResolvers<number>();
  private readonly slices: Range[];
  private readonly pieces: Piece[];
  private readonly inflows = new Map<number, Inflow>();
  /** One a chunk of the segment, added up in order at the end. */
  private readonly squares = new Map<number, number>();
  /** Frames not yet received, and not yet handed to the kernel. */
  private pending = 0;

  constructor(options: ReductionOptions) {
    this.options = options;
    this.done = this.settle.promise;
    this.done.catch(() => {}); // it may fail before it is awaited
    this.slices = slicesOf(options.length, options.ranks.length);
    const own = chunksOf(this.slices[options.ranks.indexOf(options.rank)]!);
    this.pieces = own.map((range) => ({ range, folded: 0, first: 0, waiting: new Map() }));
    for (const [rank, link] of options.links) {
      const theirs = chunksOf(this.slices[options.ranks.indexOf(rank)]!);
      this.inflows.set(rank, { link, theirs, received: 0, free: [...link.window], slot: null });
      this.pending += 2 * (own.length + theirs.length);
    }
  }

  start(): void {
    for (const { link, theirs } of this.inflows.values()) {
      for (const range of theirs) {
        const { gradient } = this.options.memory;
        link.send(this.header('scatter', this.options.rank, range), this.payload(gradient, range), () => this.count());
      }
    }
    for (let i = 0; i < this.pieces.length; i++) this.fold(i);
    for (const { link } of this.inflows.values()) link.wake();
    if (this.pending === 0) this.finish();
  }

  fail(error: BraidError): void {
    this.settle.reject(error);
  }

  /** For errors: how far it is, and whom it waits for. */
  get where(): string {
    const { step, bucket } = this.options;
    const late = [...this.inflows].filter(([, inflow]) => inflow.received < this.expectedOf(inflow));
    const scattering = late.some(([, { received }]) => received < this.pieces.length);
    const waiting =
      late.length === 0 ? 'sending the last frames' : `waiting for rank ${late.map(([rank]) => rank).join(', ')}`;
    return `in the ${scattering ? 'reduce-scatter' : 'all-gather'} of step ${step}, bucket ${bucket}, ${waiting}`;
  }

  /** The frame that has to come next from `rank`; null when it has sent all, or must wait for a lower rank's. */
  next(rank: number): Expected | null {
    const inflow = this.inflows.get(rank);
    if (inflow === undefined || inflow.received === this.expectedOf(inflow)) return null;
    if (inflow.received < this.pieces.length) {
      inflow.slot = inflow.free.pop() ?? null;
      if (inflow.slot === null) return null;
      const { range } = this.pieces[inflow.received]!;
      const into = this.options.memory.bytes(inflow.slot, range.length * 4);
      return { header: this.header('scatter', rank, range), into };
    }
    const range = inflow.theirs[inflow.received - this.pieces.length]!;
    const into = this.options.memory.bytes(this.address(this.options.memory.reduced, range), range.length * 4);
    return { header: this.header('gather', rank, range), into };
  }

  /** The frame that `next` announced is in place. */
  received(rank: number): void {
    const inflow = this.inflows.get(rank)!;
    const index = inflow.received++;
    if (index < this.pieces.length) {
      this.pieces[index]!.waiting.set(rank, inflow.slot!);
      inflow.slot = null;
      this.fold(index);
    } else {
      this.measure(inflow.theirs[index - this.pieces.length]!);
    }
    this.count();
  }

  /** Adds to a chunk of the own slice whatever has its turn now. */
  private fold(index: number): void {
    const { ranks, rank: own, memory } = this.options;
    const piece = this.pieces[index]!;
    const { range, waiting } = piece;
    const to = this.address(memory.reduced, range);
    while (piece.folded < ranks.length) {
      const rank = ranks[piece.folded]!;
      const at = rank === own ? this.address(memory.gradient, range) : waiting.get(rank);
      if (at === undefined) return;
      if (piece.folded === 0) {
        piece.first = at;
      } else {
        memory.kernels.sum(to, piece.folded === 1 ? piece.first : to, at, range.length);
        if (piece.folded === 1) this.release(ranks[0]!, piece.first);
        this.release(rank, at);
      }
      piece.folded++;
    }
    this.measure(range);
    const payload = this.payload(memory.reduced, range);
    for (const { link } of this.inflows.values()) {
      link.send(this.header('gather', own, range), payload, () => this.count());
    }
  }

  private release(rank: number, slot: number): void {
    const inflow = this.inflows.get(rank);
    if (inflow === undefined) return; // the own piece lies in the gradient
    inflow.free.push(slot);
    inflow.link.wake();
  }

  private measure(range: Range): void {
    const { kernels, reduced } = this.options.memory;
    this.squares.set(range.start, kernels.sumSquares(this.address(reduced, range), range.length));
  }

  private count(): void {
    this.pending--;
    if (this.pending === 0) this.finish();
  }

  private finish(): void {
    const inOrder = this.slices.flatMap((slice) => chunksOf(slice));
    this.settle.resolve(inOrder.reduce((sum, { start }) => sum + this.squares.get(start)!, 0));
  }

  private expectedOf(inflow: Inflow): number {
    return this.pieces.length + inflow.theirs.length;
  }

  private header(phase: Phase, source: number, { start, length }: Range): Header {
    const { generation, step, bucket } = this.options;
    return { phase, generation, step, bucket, source, offset: start, length: length * 4 };
  }

  /** Byte address of a range of the segment. */
  private address(vector: Float32Array, { start }: Range): number {
    return vector.byteOffset + (this.options.offset + start) * 4;
  }

  private payload(vector: Float32Array, range: Range): Payload {
    return new Payload(this.options.memory, this.address(vector, range), range.length * 4);
  }
}
