/**
 * Where a worker's gradient lives: one shared wasm memory that the device thread writes, the kernels add in, and the
 * sockets send from and receive into, so that nothing is copied on the way.
 *
 *     [ gradient | reduced | bf16 on its way out | windows of the peers | lanes of a checksum | gradient, reduced of peers ]
 *
 * The first two can be pages that peers of this machine read, and the last are then theirs (shared-pages.ts).
 *
 * The gradient is never written by a reduction: one that fails can be repeated. Whatever travels, what lies here is f32:
 * bf16 is made of it just before it leaves, and made into it as soon as it has come.
 */
import { crc32 } from 'node:zlib';
import { BraidError } from '../../core/errors.ts';
import { discardPages } from '../../core/libc.ts';
import type { Dtype } from './frame.ts';
import { type Kernels, loadKernels } from './kernels.ts';
import { mapOffered, type Offer, PAGE_BYTES, SharedPages } from './shared-pages.ts';
import { CHUNK_ELEMENTS } from './slices.ts';

/** Chunks received from one peer that wait for a lower rank's: more would only hide a rank that is far behind. */
export const WINDOW_CHUNKS = 4;

const LANES_BYTES = 128; // what a checksum's lanes take
const BLOCK_BYTES = 256; // what kernels.wat mixes at a time
const WASM_PAGE_BYTES = 65536;
const MAX_BYTES = 65536 * WASM_PAGE_BYTES; // 4 GiB, what 32-bit addresses reach

export interface GradientMemoryOptions {
  /** f32 elements. */
  gradientLength: number;
  wire: Dtype;
  /** Whether a segment is shared with anyone. */
  shared: boolean;
  /** How many peers have a window. */
  windows: number;
  /** Whether peers may read it in place, and it theirs. */
  inPlace: boolean;
  /** The most elements in one frame. */
  chunkElements?: number;
}

/** A peer's vectors, read-only: to write there ends the process. */
export interface Readable {
  gradient: Float32Array;
  reduced: Float32Array;
}

export class GradientMemory {
  readonly wire: Dtype;
  readonly chunkElements: number;
  /** f32[gradientLength]: this worker's own gradient. */
  readonly gradient: Float32Array;
  /** f32[gradientLength]: the sum over the ranks. The same memory as `gradient` where no segment is shared with anyone. */
  readonly reduced: Float32Array;
  readonly kernels: Kernels;
  private readonly memory: WebAssembly.Memory;
  /** bf16[gradientLength], where that travels. */
  private readonly outgoingAt: number;
  private readonly windowsAt: number;
  private readonly lanesAt: number;
  /** Rooms for peers' pages, and which of them are taken. */
  private readonly rooms: { at: number; count: number; taken: number };
  /** Of `gradient` and `reduced`, whole pages. */
  private readonly sharedBytes: number;
  private readonly pages: SharedPages | null;

  /** @throws BraidError SETUP when it does not fit the address space or the machine */
  constructor(options: GradientMemoryOptions) {
    const { gradientLength, wire, shared, windows, inPlace, chunkElements = CHUNK_ELEMENTS } = options;
    const gradientBytes = align(gradientLength * 4);
    this.wire = wire;
    this.chunkElements = chunkElements;
    this.outgoingAt = align(shared ? 2 * gradientBytes : gradientBytes, PAGE_BYTES);
    this.windowsAt = this.outgoingAt + (shared && wire === 'bf16' ? align(gradientLength * 2) : 0);
    this.lanesAt = this.windowsAt + windows * WINDOW_CHUNKS * chunkElements * 4;
    this.sharedBytes = align(2 * gradientBytes, PAGE_BYTES);
    const roomsAt = align(this.lanesAt + LANES_BYTES, PAGE_BYTES);
    // What travels as bf16 is another sum than what is read in place: all or nothing. Nor is there always room.
    const fits = roomsAt + windows * this.sharedBytes <= MAX_BYTES;
    const reads = inPlace && shared && wire === 'f32' && fits;
    this.rooms = { at: roomsAt, count: reads ? windows : 0, taken: 0 };
    const bytes = roomsAt + this.rooms.count * this.sharedBytes;
    const pages = Math.ceil(bytes / WASM_PAGE_BYTES);
    try {
      if (bytes > MAX_BYTES) throw new RangeError(`more than ${MAX_BYTES} bytes`);
      this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    } catch (cause) {
      throw new BraidError('SETUP', `cannot have ${bytes} bytes for a gradient of ${gradientLength} elements`, {
        remedy: 'Train a smaller network, or give the worker more memory.',
        cause,
      });
    }
    this.pages = reads ? SharedPages.create(this.bytes(0, this.sharedBytes)) : null;
    this.kernels = loadKernels(this.memory);
    this.gradient = new Float32Array(this.memory.buffer, 0, gradientLength);
    this.reduced = shared ? new Float32Array(this.memory.buffer, gradientBytes, gradientLength) : this.gradient;
  }

  /** Where peers of this machine find `gradient` and `reduced`, until `hide`; null where they cannot. */
  get offer(): Offer | null {
    return this.pages?.offer ?? null;
  }

  /** Whoever was to find the pages has. */
  hide(): void {
    this.pages?.close();
  }

  /** Nobody sums in it any more: what it takes is the system's again. Who still writes to it writes for nobody. */
  discard(): void {
    this.hide();
    discardPages(this.bytes(0, this.memory.buffer.byteLength));
  }

  /** Makes a peer's `gradient` and `reduced` readable here. @returns where, or null where that cannot be */
  read(offer: Offer): Readable | null {
    const { rooms, sharedBytes } = this;
    if (rooms.taken === rooms.count) return null;
    const at = rooms.at + rooms.taken * sharedBytes;
    if (!mapOffered(offer, this.bytes(at, sharedBytes))) return null;
    rooms.taken++;
    const vector = (from: number) => new Float32Array(this.memory.buffer, at + from, this.gradient.length);
    return { gradient: vector(0), reduced: vector(this.reduced.byteOffset) };
  }

  /** Copies `n` f32 from address `from` to address `to`. */
  copy(to: number, from: number, n: number): void {
    new Uint8Array(this.memory.buffer).copyWithin(to, from, from + 4 * n);
  }

  /** Bytes `at`..`at + length` of the memory, not copied. */
  bytes(at: number, length: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, at, length);
  }

  /** What `n` elements are when they travel. */
  bytesOf(n: number): number {
    return this.wire === 'f32' ? 4 * n : 2 * n;
  }

  /** What is sent of the `n` f32 at address `at`, which are the gradient's or the sum's from `element` on. */
  outgoing(at: number, element: number, n: number): Uint8Array {
    if (this.wire === 'f32') return this.bytes(at, 4 * n);
    const to = this.outgoingAt + 2 * element;
    this.kernels.narrow(to, at, n);
    return this.bytes(to, 2 * n);
  }

  /** Where what will be `n` f32 at address `at` is received: bf16 in the upper half of their room. */
  incoming(at: number, n: number): Uint8Array {
    return this.wire === 'f32' ? this.bytes(at, 4 * n) : this.bytes(at + 2 * n, 2 * n);
  }

  /** It has come: from here on there are `n` f32 at address `at`. */
  arrived(at: number, n: number): void {
    if (this.wire === 'bf16') this.kernels.widen(at, at + 2 * n, n);
  }

  /**
   * The last addition of a sum, to[i] = a[i] + b[i], rounded to what travels: this is what every rank keeps.
   * @param element of the gradient that `to` begins with
   * @returns the sum of its squares, f64
   */
  addLast(to: number, a: number, b: number, element: number, n: number): number {
    const { kernels } = this;
    if (this.wire === 'f32') return kernels.sumAndSquares(to, a, b, n);
    const rounded = this.outgoingAt + 2 * element;
    kernels.sum(to, a, b, n);
    kernels.narrow(rounded, to, n);
    kernels.widen(to, rounded, n);
    return kernels.sumSquares(to, n);
  }

  /**
   * A frame's checksum of a payload that lies in this memory: the CRC-32 of its 32 lanes (kernels.wat) and of what is left
   * after its last whole 256 bytes. 60 GB/s where CRC-32 alone does 5, and would take as long as the sockets.
   */
  checksum(payload: Uint8Array): number {
    const blocks = Math.floor(payload.length / BLOCK_BYTES);
    this.kernels.lanes(this.lanesAt, payload.byteOffset, blocks);
    return crc32(payload.subarray(blocks * BLOCK_BYTES), crc32(this.bytes(this.lanesAt, LANES_BYTES)));
  }

  /** Addresses of the chunks of the `peer`-th window. */
  window(peer: number): number[] {
    const chunkBytes = this.chunkElements * 4;
    const base = this.windowsAt + peer * WINDOW_CHUNKS * chunkBytes;
    return Array.from({ length: WINDOW_CHUNKS }, (_, i) => base + i * chunkBytes);
  }
}

/** @param unit a cache line, which is a whole number of vectors too */
function align(bytes: number, unit = 64): number {
  return Math.ceil(bytes / unit) * unit;
}
