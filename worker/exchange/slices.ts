/** How a segment of the gradient is cut among the ranks that share it: pure functions, the same on every rank. */

/** The most bytes in one frame: two in flight a peer keep a socket busy, and one stays in a core's cache while it is added. */
export const CHUNK_BYTES = 1 << 20;

/** Slices begin on a cache line. */
const LINE_ELEMENTS = 16;

export interface Range {
  /** f32 elements from the segment's beginning. */
  start: number;
  /** f32 elements. */
  length: number;
}

/** One slice a rank, in order, covering `length` elements; the last ones may be empty. */
export function slicesOf(length: number, ranks: number): Range[] {
  const each = Math.ceil(Math.ceil(length / ranks) / LINE_ELEMENTS) * LINE_ELEMENTS;
  return Array.from({ length: ranks }, (_, i) => {
    const start = Math.min(length, i * each);
    return { start, length: Math.min(length, start + each) - start };
  });
}

/** A slice in pieces of at most `CHUNK_BYTES`. An empty slice has none. */
export function chunksOf(slice: Range): Range[] {
  const most = CHUNK_BYTES / 4;
  return Array.from({ length: Math.ceil(slice.length / most) }, (_, i) => ({
    start: slice.start + i * most,
    length: Math.min(most, slice.length - i * most),
  }));
}
