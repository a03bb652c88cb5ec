/**
 * Random numbers as pure functions of integers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011), the counter-based generator that TensorFlow, NumPy and cuRAND offer too. The same key gives the
 * same numbers on every machine and in any order of asking, so nothing random has to be saved or sent.
 */
import { BraidError } from './errors.ts';

const ROUNDS = 10; // the paper's recommendation; 7 already pass BigCrush
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9; // golden ratio: bumps the key between rounds
const WEYL_1 = 0xbb67ae85; // sqrt(3) - 1

const KEY_START = 0x42726169; // 'Brai': the chain's first key word; the second is how many words follow

/**
 * One Philox4x32-10 block.
 * @param out receives four uniform u32 (as signed int32)
 */
export function philox(
  out: Int32Array,
  counter0: number,
  counter1: number,
  counter2: number,
  counter3: number,
  key0: number,
  key1: number,
): void {
  let c0 = counter0 | 0;
  let c1 = counter1 | 0;
  let c2 = counter2 | 0;
  let c3 = counter3 | 0;
  let k0 = key0 | 0;
  let k1 = key1 | 0;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const high1 = multiplyHigh(MULTIPLIER_1, c2);
    const low0 = Math.imul(MULTIPLIER_0, c0);
    const low1 = Math.imul(MULTIPLIER_1, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + WEYL_0) | 0;
    k1 = (k1 + WEYL_1) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** The upper 32 bits of the 64-bit product of two u32, as int32. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  // every sum below is less than 2^32: 0xffff * 0xffff + 2 * 0xffff = 2^32 - 1
  const middle = (Math.imul(aHigh, bLow) >>> 0) + (Math.imul(aLow, bLow) >>> 16);
  const carry = (Math.imul(aLow, bHigh) >>> 0) + (middle & 0xffff);
  return (Math.imul(aHigh, bHigh) + (middle >>> 16) + (carry >>> 16)) | 0;
}

/** Uniform u32, a pure function of any number of words (each taken modulo 2^32; their number counts too). */
export function hash32(...words: number[]): number {
  return chain(words, new Int32Array(4))[0]! >>> 0;
}

/** Absorbs `words` four at a time: each block's output is the next one's key. The last output stays in `block`. */
function chain(words: readonly number[], block: Int32Array): Int32Array {
  let [key0, key1] = [KEY_START, words.length];
  for (let i = 0; i < words.length || i === 0; i += 4) {
    philox(block, words[i] ?? 0, words[i + 1] ?? 0, words[i + 2] ?? 0, words[i + 3] ?? 0, key0, key1);
    [key0, key1] = [block[0]!, block[1]!];
  }
  return block;
}

/**
 * The stream of random numbers that belongs to a key. Streams of different keys are unrelated, so begin a key with
 * a word for its purpose: `new Random(Stream.AUGMENT, seed, epoch, sampleId)`.
 */
export class Random {
  private readonly key0: number;
  private readonly key1: number;
  private readonly block = new Int32Array(4);
  /** Blocks drawn so far. */
  private counter = 0;
  /** Words of `block` already given; 4: none is left. */
  private used = 4;
  /** The second of a pair of normals. */
  private spare: number | null = null;

  constructor(...key: number[]) {
    chain(key, this.block);
    this.key0 = this.block[0]!;
    this.key1 = this.block[1]!;
  }

  /** Uniform u32. */
  word(): number {
    if (this.used === 4) {
      philox(this.block, this.counter, Math.floor(this.counter / 0x1_0000_0000), 0, 0, this.key0, this.key1);
      this.counter++;
      this.used = 0;
    }
    return this.block[this.used++]! >>> 0;
  }

  /** Uniform in [0, 1), a multiple of 2^-53. */
  next(): number {
    const high = this.word() >>> 5;
    const low = this.word() >>> 6;
    return (high * 0x400_0000 + low) / 0x20_0000_0000_0000;
  }

  /** Uniform integer in [0, n), 1 <= n <= 2^32, every value equally likely (Lemire 2019: multiply, reject the rest). */
  int(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > 0x1_0000_0000) {
      throw new BraidError('INTERNAL', `Random.int(${n}): expected an integer from 1 to 2^32`);
    }
    if (n === 0x1_0000_0000) return this.word();
    const rejectBelow = 0x1_0000_0000 % n;
    for (;;) {
      const word = this.word();
      if (Math.imul(word, n) >>> 0 >= rejectBelow) return multiplyHigh(word, n) >>> 0;
    }
  }

  /**
   * Normal with mean 0 and deviation 1: Box-Muller in Marsaglia's polar form, which needs a logarithm and a square
   * root but no sine, whose last bit differs between builds of V8.
   */
  normal(): number {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    for (;;) {
      const x = 2 * this.next() - 1;
      const y = 2 * this.next() - 1;
      const squared = x * x + y * y;
      if (squared >= 1 || squared === 0) continue;
      const scale = Math.sqrt((-2 * Math.log(squared)) / squared);
      this.spare = y * scale;
      return x * scale;
    }
  }
}

/** What a stream is for: the first word of its key, so that no two purposes share numbers. */
export const Stream = { SHUFFLE: 1, AUGMENT: 2, WEIGHTS: 3 } as const;
