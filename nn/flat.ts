/**
 * Many tensors as one flat f32 vector, as gradients and states travel: one after another, each at a multiple of
 * ALIGNED_ELEMENTS, where TensorFlow can use it without a copy; zeros between.
 */
import { ALIGNED_ELEMENTS, alignedLength } from '../core/shared-buffer.ts';
import type { WrittenPart } from './graph/capture.ts';
import { type Tensor, tf } from './tensorflow.ts';

/** From so many elements on a tensor is a part by itself: for less, one more operation costs more than one more copy. */
const LARGE = 65_536;

/** Where each begins. */
export function flatOffsets(sizes: number[]): number[] {
  let end = 0;
  return sizes.map((size) => {
    const offset = end;
    end += alignedLength(size);
    return offset;
  });
}

/** The elements of all. */
export function flatLength(sizes: number[]): number {
  return sizes.reduce((sum, size) => sum + alignedLength(size), 0);
}

/** @param tensors f32[size] each   @returns what is large by itself, all between as one */
export function flatParts(tensors: Tensor[]): WrittenPart[] {
  const sizes = tensors.map(({ size }) => size);
  const offsets = flatOffsets(sizes);
  return partsOf(sizes).map(({ from, to }) => {
    const pieces = tensors.slice(from, to).flatMap((tensor) => {
      const filled = alignedLength(tensor.size) - tensor.size;
      return filled === 0 ? [tensor] : [tensor, tf.zeros([filled])];
    });
    return { offset: offsets[from]!, value: pieces.length === 1 ? pieces[0]! : tf.concat(pieces) };
  });
}

/** @param flat f32[flatLength(sizes)]   @returns f32[size] each, those that are large without a copy */
export function splitFlat(flat: Tensor, sizes: number[]): Tensor[] {
  const parts = partsOf(sizes);
  // TensorFlow splits rows of the alignment without copying.
  const rows = tf.split(
    tf.reshape(flat, [flat.size / ALIGNED_ELEMENTS, ALIGNED_ELEMENTS]),
    parts.map(({ length }) => length / ALIGNED_ELEMENTS),
  );
  return parts.flatMap(({ from, to, length }, i) => {
    const part = tf.reshape(rows[i]!, [length]);
    const own = sizes.slice(from, to);
    if (own[0] === length) return [part];
    const filled = own.map((size) => alignedLength(size) - size);
    const pieces = tf.split(
      part,
      own.flatMap((size, j) => (filled[j] === 0 ? [size] : [size, filled[j]!])),
    );
    let next = 0;
    return own.map((_, j) => {
      const piece = pieces[next]!;
      next += filled[j] === 0 ? 1 : 2;
      return piece;
    });
  });
}

/** Runs of tensors, `from` the first `to` before the last. */
function partsOf(sizes: number[]): { from: number; to: number; length: number }[] {
  const parts: { from: number; to: number; length: number; large: boolean }[] = [];
  sizes.forEach((size, i) => {
    const last = parts.at(-1);
    const large = size >= LARGE;
    if (last === undefined || large || last.large)
      parts.push({ from: i, to: i + 1, length: alignedLength(size), large });
    else {
      last.to++;
      last.length += alignedLength(size);
    }
  });
  return parts;
}
