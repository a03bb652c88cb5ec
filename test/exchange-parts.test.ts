/** What the exchange is made of: kernels, checksums, slices, frames. */
import { crc32 } from 'node:zlib';
import test from 'ava';
import fc from 'fast-check';
import { topologyOf } from '../coordinator/prepare.ts';
import { BraidError } from '../core/errors.ts';
import { compileKernels } from '../worker/build-kernels.ts';
import { FrameReader } from '../worker/exchange/frame-reader.ts';
import { GradientMemory } from '../worker/exchange/gradient-memory.ts';
import { KERNELS_WASM_BASE64 } from '../worker/exchange/kernels.wasm.ts';
import { CHUNK_ELEMENTS, chunksOf, slicesOf } from '../worker/exchange/slices.ts';
import { frame, gradientOf, header, nearestBf16 } from './exchange-world.ts';

const memoryOf = (gradientLength: number) =>
  new GradientMemory({ gradientLength, wire: 'f32', shared: true, windows: 0, inPlace: false });

/** Address of an element. */
const at = ({ byteOffset }: Float32Array, i: number) => byteOffset + 4 * i;

test('the committed kernels are what kernels.wat compiles to', async (t) => {
  t.is(Buffer.from(await compileKernels('exchange')).toString('base64'), KERNELS_WASM_BASE64);
});

test('kernels add and square at any length and alignment, and not past the end', (t) => {
  const memory = memoryOf(400);
  const { gradient, reduced, kernels } = memory;
  fc.assert(
    fc.property(fc.nat(130), fc.nat(3), fc.nat(3), fc.boolean(), (n, a, b, square) => {
      gradient.set(gradientOf(0, 400));
      reduced.fill(5);
      const add = square ? kernels.sumAndSquares : kernels.sum;
      const added = add(at(reduced, a), at(gradient, a), at(gradient, 200 + b), n);
      for (let i = 0; i < n; i++) {
        if (reduced[a + i] !== Math.fround(gradient[a + i]! + gradient[200 + b + i]!)) return false;
      }
      if (reduced.subarray(0, a).some((v) => v !== 5) || reduced[a + n] !== 5) return false;
      const squares = reduced.subarray(a, a + n).reduce((sum, v) => sum + v * v, 0);
      const near = (found: number) => Math.abs(found - squares) <= 1e-12 * squares;
      return near(kernels.sumSquares(at(reduced, a), n)) && (!square || near(added as unknown as number));
    }),
  );
  gradient.set([3e38, -3e38, Number.MIN_VALUE, 1, 2, 3, 4, 5, 6]);
  t.true(Number.isFinite(kernels.sumSquares(0, 9)));
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    gradient[8] = bad;
    t.false(Number.isFinite(kernels.sumSquares(0, 9)));
    t.false(Number.isFinite(kernels.sumAndSquares(at(reduced, 0), 0, 0, 9)));
  }
});

test('bf16 is the nearest one, ties to even, and what is not finite stays so', (t) => {
  const memory = memoryOf(64);
  const { gradient, reduced, kernels } = memory;
  const bits = new Uint32Array(gradient.buffer, 0, 64);
  const words = fc.oneof(
    fc.integer({ min: 0, max: 0xffffffff }),
    fc.integer({ min: 0, max: 0xffff }).map((top) => top * 0x10000 + 0x8000), // a tie
    fc.constantFrom(
      0,
      0x80000000,
      1,
      0x7f7fffff,
      0xff7fffff,
      0x7f800000,
      0xff800000,
      0x7f800001,
      0x7fffffff,
      0xffffffff,
    ),
  );
  fc.assert(
    fc.property(fc.array(words, { maxLength: 40 }), (values) => {
      const n = values.length;
      bits.set(values);
      const to = at(reduced, 0);
      reduced.fill(5);
      kernels.narrow(to + 2 * n, 0, n);
      kernels.widen(to, to + 2 * n, n); // where it lies
      const expected = Array.from(gradient.subarray(0, n), (x) => (Number.isNaN(x) ? Number.NaN : nearestBf16(x)));
      return reduced[n] === 5 && expected.every((x, i) => Object.is(reduced[i], x));
    }),
    { numRuns: 1_000 },
  );
  t.pass();
});

test('a checksum changes with every damaged bit, and with swapped or shifted words', (t) => {
  const memory = memoryOf(2048);
  memory.gradient.set(gradientOf(1, 2048));
  const bytes = memory.bytes(0, 8192 - 20); // ends inside a block
  const words = new Uint32Array(bytes.buffer, 0, 2000);
  const good = memory.checksum(bytes);
  t.is(memory.checksum(bytes), good);
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.nat(7), (i, bit) => {
      bytes[i]! ^= 1 << bit;
      const damaged = memory.checksum(bytes);
      bytes[i]! ^= 1 << bit;
      return damaged !== good;
    }),
  );
  fc.assert(
    fc.property(fc.nat(1999), fc.nat(1999), fc.constantFrom(0x80000000, 1), (i, j, flip) => {
      if (i === j) return;
      words[i]! ^= flip; // the same bit of two words, perhaps of one lane
      words[j]! ^= flip;
      const damaged = memory.checksum(bytes);
      words[i]! ^= flip;
      words[j]! ^= flip;
      return damaged !== good;
    }),
  );
  words.copyWithin(0, 32);
  t.not(memory.checksum(bytes), good);
});

test('slices cover a segment without gaps, and so do their chunks', (t) => {
  const most = fc.oneof(fc.integer({ min: 1_000, max: 5_000 }), fc.constant(CHUNK_ELEMENTS));
  fc.assert(
    fc.property(fc.nat(2_000_000), fc.integer({ min: 1, max: 9 }), most, (length, ranks, chunk) => {
      const chunks = slicesOf(length, ranks).flatMap((slice) => chunksOf(slice, chunk));
      const end = chunks.reduce((from, { start, length: elements }) => {
        if (start !== from || elements < 1 || elements > chunk) throw new Error(`gap at ${from}`);
        return from + elements;
      }, 0);
      return end === length && slicesOf(length, ranks).length === ranks;
    }),
  );
  t.pass();
});

test('a mesh is for few ranks, a ring for many', (t) => {
  t.deepEqual([1, 2, 16, 17, 4096].map(topologyOf), [
    ...['TOPOLOGY_MESH', 'TOPOLOGY_MESH', 'TOPOLOGY_MESH', 'TOPOLOGY_RING', 'TOPOLOGY_RING'],
  ]);
});

test('a frame reader takes a stream in pieces of any size, and refuses it at the first damaged frame', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 200 }), { minLength: 1, maxLength: 6 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 97 })),
      fc.option(fc.nat(), { nil: undefined }),
      (payloads, sizes, damage) => {
        const stream = Buffer.concat(payloads.map((p) => frame({ ...header(2), length: p.length }, p)));
        if (damage !== undefined) stream[damage % stream.length]! ^= 16;
        const got: Uint8Array[] = [];
        let into = new Uint8Array(0);
        const reader = new FrameReader({
          begin({ length }) {
            if (length > 200) throw new BraidError('PROTOCOL', 'too long');
            into = new Uint8Array(length);
            return into;
          },
          checksum: (bytes) => crc32(bytes),
          end: () => got.push(into) > 0,
        });
        try {
          for (let at = 0; at < stream.length; ) {
            const n = Math.min(reader.space().length, stream.length - at, sizes.next().value);
            reader.space().set(stream.subarray(at, at + n));
            at += n;
            reader.advance(n);
          }
        } catch (error) {
          if (!(error instanceof BraidError) || damage === undefined) throw error;
        }
        const whole = damage === undefined ? payloads.length : got.length;
        return got.length === whole && got.every((p, i) => Buffer.from(p).equals(payloads[i]!));
      },
    ),
  );
  t.pass();
});
