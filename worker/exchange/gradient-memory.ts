/**
 * Where a worker's gradient lives: one shared wasm memory that the device thread writes, the kernels add in, and the
 * sockets send from and receive into, so that nothing is copied on the way.
 *
 *     [ gradient | reduced | windows of the peers | lanes of a checksum ]
 *
 * The gradient is never written by a reduction: one that fails can be repeated.
 */
import { crc32 } from 'node:zlib';
import { BraidError } from '../../core/errors.ts';
import { type Kernels, loadKernels } from './kernels.ts';
import { CHUNK_BYTES } from './slices.ts';

/** Chunks received from one peer that wait for a lower rank's: more would only hide a rank that is far behind. */
export const WINDOW_CHUNKS = 4;

const LANES_BYTES = 128; // what kernels.wat mixes at a time
const PAGE_BYTES = 65536; // of wasm
const MAX_BYTES = 65536 * PAGE_BYTES; // 4 GiB, what 32-bit addresses reach

export class GradientMemory {
  /** f32[gradientLength]: this worker's own gradient. */
  readonly gradient: Float32Array;
  /** f32[gradientLength]: the sum over the ranks. The same memory as `gradient` where no segment is shared with anyone. */
  readonly reduced: Float32Array;
  readonly kernels: Kernels;
  private readonly memory: WebAssembly.Memory;
  private readonly windowsAt: number;
  private readonly lanesAt: number;

  /**
   * @param gradientLength f32 elements
   * @param peers with how many others a segment is shared
   * @throws BraidError SETUP when it does not fit the address space or the machine
   */
  constructor(gradientLength: number, peers: number) {
    const gradientBytes = align(gradientLength * 4);
    this.windowsAt = peers > 0 ? 2 * gradientBytes : gradientBytes;
    this.lanesAt = this.windowsAt + peers * WINDOW_CHUNKS * CHUNK_BYTES;
    const bytes = this.lanesAt + LANES_BYTES;
    const pages = Math.max(1, Math.ceil(bytes / PAGE_BYTES));
    try {
      if (bytes > MAX_BYTES) throw new RangeError(`more than ${MAX_BYTES} bytes`);
      this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    } catch (cause) {
      throw new BraidError('SETUP', `cannot have ${bytes} bytes for a gradient of ${gradientLength} elements`, {
        remedy: 'Train a smaller network, or give the worker more memory.',
        cause,
      });
    }
    this.kernels = loadKernels(this.memory);
    this.gradient = new Float32Array(this.memory.buffer, 0, gradientLength);
    this.reduced = peers > 0 ? new Float32Array(this.memory.buffer, gradientBytes, gradientLength) : this.gradient;
  }

  /** Bytes `at`..`at + length` of the memory, not copied. */
  bytes(at: number, length: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, at, length);
  }

  /**
   * A frame's checksum of a payload that lies in this memory: the CRC-32 of its 32 lanes (kernels.wat) and of what is left
   * after its last whole 128 bytes. 28 GB/s where CRC-32 alone does 5, and would take as long as the sockets.
   */
  checksum(payload: Uint8Array): number {
    const blocks = Math.floor(payload.length / LANES_BYTES);
    this.kernels.lanes(this.lanesAt, payload.byteOffset, blocks);
    return crc32(payload.subarray(blocks * LANES_BYTES), crc32(this.bytes(this.lanesAt, LANES_BYTES)));
  }

  /** Addresses of the chunks of the `peer`-th peer's window. */
  window(peer: number): number[] {
    const base = this.windowsAt + peer * WINDOW_CHUNKS * CHUNK_BYTES;
    return Array.from({ length: WINDOW_CHUNKS }, (_, i) => base + i * CHUNK_BYTES);
  }
}

/** Up to a whole cache line, which is a whole number of vectors too. */
function align(bytes: number): number {
  return Math.ceil(bytes / 64) * 64;
}
