/** Shared memory that begins on a page, so that TensorFlow, which wants 64 bytes of alignment, can read it where it is. */

/** In f32: what begins at a multiple of it is 64 bytes aligned, if its memory is. */
export const ALIGNED_ELEMENTS = 16;

/** The least multiple of ALIGNED_ELEMENTS that has room for so many. */
export function alignedLength(elements: number): number {
  return Math.ceil(elements / ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS;
}

const PAGE_BYTES = 64 << 10; // WebAssembly's

/**
 * A SharedArrayBuffer of at least `bytes`, rounded up to 64 KiB. JavaScript offers no alignment for its own buffers (they
 * come 16 bytes off a page); the memory of WebAssembly always begins on a page.
 */
export function alignedSharedBuffer(bytes: number): SharedArrayBuffer {
  const pages = Math.max(1, Math.ceil(bytes / PAGE_BYTES));
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
    .buffer as unknown as SharedArrayBuffer;
}
