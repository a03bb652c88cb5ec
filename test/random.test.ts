import test from 'ava';
import fc from 'fast-check';
import { hash32, philox, Random } from '../core/random.ts';

const hex = (words: Int32Array) => [...words].map((w) => (w >>> 0).toString(16).padStart(8, '0')).join(' ');

test("philox gives the known answers of its authors' Random123 library", (t) => {
  const out = new Int32Array(4);
  philox(out, 0, 0, 0, 0, 0, 0);
  t.is(hex(out), '6627e8d5 e169c58d bc57ac4c 9b00dbd8');
  philox(out, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff);
  t.is(hex(out), '408f276d 41c83b0e a20bc7c6 6d5451fd');
  philox(out, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0);
  t.is(hex(out), 'd16cfe09 94fdcceb 5001e420 24126ea1');
});

test('the same key gives the same numbers, whatever was drawn elsewhere', (t) => {
  fc.assert(
    fc.property(fc.array(fc.nat(0xffffffff), { maxLength: 9 }), (key) => {
      const [a, b] = [new Random(...key), new Random(...key)];
      new Random(...key, 1).next();
      return a.next() === b.next() && a.int(1000) === b.int(1000) && a.normal() === b.normal();
    }),
  );
  t.is(hash32(1, 2, 3), 0x42f444ef); // pinned: a change would change every run's order, augmentation and weights
});

test('every bit of every word of a key, and how many there are, matters to about half of the bits', (t) => {
  const flipped = (words: number[], word: number, bit: number) => {
    const other = [...words];
    other[word] = (other[word]! ^ (1 << bit)) >>> 0;
    return bits(hash32(...words) ^ hash32(...other));
  };
  let [sum, count] = [0, 0];
  for (const words of [[0], [7, 0], [1, 2, 3], [0, 0, 0, 0, 0, 9]]) {
    for (let word = 0; word < words.length; word++) {
      for (let bit = 0; bit < 32; bit++) {
        sum += flipped(words, word, bit);
        count++;
      }
    }
  }
  t.true(Math.abs(sum / count - 16) < 0.6);
  t.is(new Set([hash32(), hash32(0), hash32(0, 0), hash32(0, 0, 0, 0, 0)]).size, 4);
});

test('int is uniform below any bound and never reaches it', (t) => {
  fc.assert(
    fc.property(fc.nat(0xffffffff), fc.integer({ min: 1, max: 0x1_0000_0000 }), (seed, n) => {
      const random = new Random(seed);
      return Array.from({ length: 20 }, () => random.int(n)).every((x) => Number.isInteger(x) && x >= 0 && x < n);
    }),
  );
  const counts = new Array<number>(7).fill(0);
  const random = new Random(5);
  for (let i = 0; i < 70_000; i++) counts[random.int(7)]!++;
  t.true(chiSquared(counts) < 22.5); // 6 degrees of freedom, p = 0.001
  // 3 * 2^30 would be off by a third with a plain modulo
  let below = 0;
  for (let i = 0; i < 40_000; i++) if (random.int(3 * 2 ** 30) < 2 ** 30) below++;
  t.true(Math.abs(below / 40_000 - 1 / 3) < 0.01);
  for (const n of [0, -1, 1.5, Number.NaN, 2 ** 32 + 1]) t.throws(() => random.int(n), { code: 'INTERNAL' });
});

test('next is uniform in [0, 1)', (t) => {
  const random = new Random(11);
  const counts = new Array<number>(16).fill(0);
  for (let i = 0; i < 64_000; i++) counts[Math.floor(random.next() * 16)]!++;
  t.is(counts.length, 16);
  t.true(chiSquared(counts) < 37.7); // 15 degrees of freedom, p = 0.001
});

test('normal has the moments of a standard normal distribution', (t) => {
  const random = new Random(3);
  const n = 100_000;
  let [mean, square, cube, fourth] = [0, 0, 0, 0];
  for (let i = 0; i < n; i++) {
    const x = random.normal();
    mean += x / n;
    square += x ** 2 / n;
    cube += x ** 3 / n;
    fourth += x ** 4 / n;
  }
  t.true(Math.abs(mean) < 0.012);
  t.true(Math.abs(square - 1) < 0.02);
  t.true(Math.abs(cube) < 0.05);
  t.true(Math.abs(fourth - 3) < 0.15);
});

function bits(word: number): number {
  let count = 0;
  for (let w = word >>> 0; w !== 0; w = (w & (w - 1)) >>> 0) count++;
  return count;
}

function chiSquared(counts: number[]): number {
  const expected = counts.reduce((a, b) => a + b) / counts.length;
  return counts.reduce((sum, c) => sum + (c - expected) ** 2 / expected, 0);
}
