/**
 * One segment's all-reduce, seen from one rank of its group: what meshes and rings have in common.
 *
 * The segment is cut into a slice a rank, and each slice into chunks (slices.ts). `scatter` frames bring parts of a slice's
 * sum to its owner, `gather` frames its sum to everybody. What a peer has to send is known to the byte beforehand, so that a
 * frame is either the expected one or refused. The order of additions depends on ranks alone: all ranks end with the same
 * bits, whoever is fast.
 */
import type { BraidError } from '../../core/errors.ts';
import type { Announced, Header } from './frame.ts';
import type { GradientMemory, Readable } from './gradient-memory.ts';
import type { Expected } from './inbound.ts';
import { Payload } from './payload.ts';
import { chunksOf, type Range, slicesOf } from './slices.ts';

/** How a reduction reaches the other ranks of its group. */
export interface Links {
  /** Addresses of the chunks that `rank` may send before their turn has come. */
  window(rank: number): number[];
  /** The vectors of a rank on this machine; null when what it sends has to travel. */
  readable(rank: number): Readable | null;
  /** Whether `rank` reads what it is sent in this worker's memory. */
  isReader(rank: number): boolean;
  /** The payload must not change until `sent` is called. */
  send(rank: number, header: Header, payload: Payload, sent: () => void): void;
  /** The next frame of `rank` may be expected now. */
  wake(rank: number): void;
}

export interface ReductionOptions {
  generation: number;
  step: number;
  bucket: number;
  /** f32 elements into the gradient. */
  offset: number;
  length: number;
  /** Ascending, with `rank` among them; at least two. */
  ranks: number[];
  rank: number;
  memory: GradientMemory;
  links: Links;
}

export interface Frame {
  phase: 'scatter' | 'gather';
  range: Range;
}

/** What one peer has to send, in order. */
interface Flow {
  frames: Frame[];
  received: number;
  /** f32 address that the frame which comes next was promised. */
  at: number;
}

export abstract class Reduction {
  /** Sum of squares of the reduced segment, f64, the same on every rank: not finite exactly when an element is not. */
  readonly done: Promise<number>;
  protected readonly options: ReductionOptions;
  /** One a rank of the group, in order. */
  private readonly slices: Range[];
  private readonly nothing: Payload;
  private readonly settle = Promise.withResolvers<number>();
  private readonly flows = new Map<number, Flow>();
  /** Frames that the kernel does not have yet, by rank. */
  private readonly unsent = new Map<number, number>();
  /** One a chunk of the segment, added up in order at the end. */
  private readonly squares = new Map<number, number>();
  /** Frames not yet received, and not yet handed to the kernel. */
  private pending = 0;

  constructor(options: ReductionOptions) {
    this.options = options;
    this.slices = slicesOf(options.length, options.ranks.length);
    this.done = this.settle.promise;
    this.nothing = new Payload(options.memory, 0, 0, 0);
  }

  start(): void {
    this.begin();
    for (const rank of this.flows.keys()) this.options.links.wake(rank);
    if (this.pending === 0) this.finish();
  }

  fail(error: BraidError): void {
    this.settle.reject(error);
  }

  /** For errors: how far it is, and whom it waits for. */
  get where(): string {
    const { step, bucket } = this.options;
    const late = [...this.flows].filter(([, { frames, received }]) => received < frames.length);
    const scattering = late.some(([, { frames, received }]) => frames[received]!.phase === 'scatter');
    const [what, ranks] =
      late.length > 0
        ? ['waiting for', late.map(([rank]) => rank)]
        : ['sending to', [...this.unsent].filter(([, frames]) => frames > 0).map(([rank]) => rank)];
    const phase = scattering ? 'reduce-scatter' : 'all-gather';
    return `in the ${phase} of step ${step}, bucket ${bucket}, ${what} rank ${ranks.join(', ')}`;
  }

  /** The frame that has to come next from `rank`; null when it has sent all, or must wait for another rank's. */
  next(rank: number): Expected | null {
    const flow = this.flows.get(rank);
    const frame = flow?.frames[flow.received];
    if (flow === undefined || frame === undefined) return null;
    const at = this.place(rank, frame);
    if (at === null) return null;
    flow.at = at;
    const n = this.travels(rank, 'in') ? frame.range.length : 0;
    return { header: this.announced(frame, rank, n), into: this.options.memory.incoming(at, n) };
  }

  /** The frame that `next` announced is in place. */
  received(rank: number, { squares }: Header): void {
    const flow = this.flows.get(rank)!;
    const { phase, range } = flow.frames[flow.received++]!;
    if (this.travels(rank, 'in')) this.options.memory.arrived(flow.at, range.length);
    if (phase === 'scatter') {
      this.scattered(rank, range, flow.at);
    } else {
      this.squares.set(range.start, squares);
      this.gathered(rank, range, squares);
    }
    this.count();
  }

  /** Sends what this rank has to send first. */
  protected abstract begin(): void;
  /** f32 address for the frame that has to come next from `rank`; null when there is no room for it yet. */
  protected abstract place(rank: number, frame: Frame): number | null;
  /** Part of a slice's sum has come from `rank` and lies at address `at`. */
  protected abstract scattered(rank: number, range: Range, at: number): void;
  /** A chunk of another rank's slice has come from `rank`: it lies in `reduced`, or in that of `rank` if it has not travelled. */
  protected abstract gathered(rank: number, range: Range, squares: number): void;

  /** Whether bytes go from or to `rank`, or one of the two reads the other's memory. */
  protected travels(_rank: number, _way: 'in' | 'out'): boolean {
    return true;
  }

  /** Before `start`: what `rank` will send. */
  protected expect(rank: number, frames: Frame[]): void {
    this.flows.set(rank, { frames, received: 0, at: 0 });
    this.pending += frames.length;
  }

  /** Before `start`: how many frames `rank` will be sent. */
  protected promise(rank: number, frames: number): void {
    this.unsent.set(rank, frames);
    this.pending += frames;
  }

  protected send(rank: number, frame: Frame, payload: Payload, squares = 0): void {
    const travels = this.travels(rank, 'out');
    const header = { ...this.announced(frame, this.options.rank, travels ? frame.range.length : 0), squares };
    this.options.links.send(rank, header, travels ? payload : this.nothing, () => {
      this.unsent.set(rank, this.unsent.get(rank)! - 1);
      this.count();
    });
  }

  /** The last addition to a chunk of the own slice, in `reduced`. @returns the sum of its squares */
  protected addLast(range: Range, a: number, b: number): number {
    const { memory, offset } = this.options;
    const to = this.address(memory.reduced, range);
    const squares = memory.addLast(to, a, b, offset + range.start, range.length);
    this.squares.set(range.start, squares);
    return squares;
  }

  /** Of a rank's slice, by its place in the group. */
  protected chunksOf(place: number): Range[] {
    return chunksOf(this.slices[place]!, this.options.memory.chunkElements);
  }

  /** Byte address of a range of the segment. */
  protected address(vector: Float32Array, { start }: Range): number {
    return vector.byteOffset + (this.options.offset + start) * 4;
  }

  protected payload(vector: Float32Array, range: Range): Payload {
    const { memory, offset } = this.options;
    return new Payload(memory, this.address(vector, range), offset + range.start, range.length);
  }

  /** @param n elements that travel */
  private announced({ phase, range }: Frame, source: number, n: number): Announced {
    const { generation, step, bucket, memory } = this.options;
    const length = memory.bytesOf(n);
    return { phase, dtype: memory.wire, generation, step, bucket, source, offset: range.start, length };
  }

  private count(): void {
    this.pending--;
    if (this.pending === 0) this.finish();
  }

  private finish(): void {
    const inOrder = this.slices.flatMap((_, place) => this.chunksOf(place));
    this.settle.resolve(inOrder.reduce((sum, { start }) => sum + this.squares.get(start)!, 0));
  }
}
