/**
 * The weights of a separable bilinear resize with antialiasing, for one direction: a triangle as wide as the downscale
 * (at least 2 source lines), sampled at the source's centres, normalised, in fixed point. To the bit as PyTorch's
 * interpolate(mode='bilinear', antialias=True) has them for uint8 on a CPU, which follows Pillow's.
 */

export interface Taps {
  /** i32[outputs]: the source line that the first weight of each output line is of. */
  firsts: Int32Array;
  /** i16[outputs, count]: they add up to about 2^precision; zeros fill them up. */
  weights: Int16Array;
  /** Weights of an output line: a multiple of `group`. */
  count: number;
  precision: number;
  /** The source lines that have weights: [from, to). */
  from: number;
  to: number;
}

export interface Resize {
  /** Source lines that are resized, [start, start + length): fractions only where the source was scaled before. */
  start: number;
  length: number;
  /** Lines that they become. */
  resized: number;
  /** Of those, the ones that are kept: [first, first + outputs). */
  first: number;
  outputs: number;
  /** Keeps them in reverse. */
  mirrored: boolean;
}

const MAX_PRECISION = 22; // bits: 8 bits of a pixel and 2 of headroom beside it in an i32

/** @param group what `count` is a multiple of */
export function tapsOf({ start, length, resized, first, outputs, mirrored }: Resize, group: number): Taps {
  const base = Math.floor(start);
  const shift = start - base;
  const end = Math.ceil(shift + length);
  const scale = length / resized;
  const support = Math.max(scale, 1);
  const most = 2 * Math.ceil(Math.fround(support)) + 1;
  const inverse = scale >= 1 ? 1 / scale : 1;

  const firsts = new Int32Array(outputs);
  const exact = new Float64Array(outputs * most);
  const line = new Float64Array(most);
  let [largest, longest, from, to] = [0, 0, Number.POSITIVE_INFINITY, 0];
  // Lines that are not kept count for the precision, too: it is one for the whole resize.
  for (let at = 0; at < resized; at++) {
    const center = shift + scale * (at + 0.5);
    const low = Math.max(Math.trunc(center - support + 0.5), 0);
    const size = Math.min(Math.min(Math.trunc(center + support + 0.5), end) - low, most);
    let [total, peak] = [0, 0];
    for (let tap = 0; tap < size; tap++) {
      const weight = Math.max(0, 1 - Math.abs((low + tap - center + 0.5) * inverse));
      line[tap] = weight;
      total += weight;
      if (weight > peak) peak = weight;
    }
    largest = Math.max(largest, peak / total);
    const kept = at - first;
    if (kept < 0 || kept >= outputs) continue;
    const output = mirrored ? outputs - 1 - kept : kept;
    firsts[output] = base + low;
    for (let tap = 0; tap < size; tap++) exact[output * most + tap] = line[tap]! / total;
    longest = Math.max(longest, size);
    from = Math.min(from, base + low);
    to = Math.max(to, base + low + size);
  }

  let precision = 0;
  while (precision < MAX_PRECISION && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 1 << 15) precision++;
  const count = Math.ceil(longest / group) * group;
  const weights = new Int16Array(outputs * count);
  for (let output = 0; output < outputs; output++) {
    for (let tap = 0; tap < longest; tap++) {
      weights[output * count + tap] = Math.trunc(0.5 + exact[output * most + tap]! * 2 ** precision);
    }
  }
  return { firsts, weights, count, precision, from, to };
}
