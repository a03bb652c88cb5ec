import test from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import { decodeShard, type EncodedShard, encodeShard } from '../input/shard.ts';

const u31 = fc.nat(0x7fffffff);
const shards: fc.Arbitrary<EncodedShard> = fc
  .record({
    step: fc.nat(Number.MAX_SAFE_INTEGER),
    epoch: fc.nat(0xffffffff),
    encoding: fc.constantFrom('raw-hwc' as const, 'raw-chw' as const, 'image-file' as const, 'by-id' as const),
    image: fc.record({
      height: fc.integer({ min: 1, max: 5 }),
      width: fc.integer({ min: 1, max: 5 }),
      channels: fc.integer({ min: 1, max: 3 }),
    }),
    n: fc.integer({ min: 1, max: 6 }),
  })
  .chain(({ n, ...rest }) => {
    const bytes = rest.image.height * rest.image.width * rest.image.channels;
    const fixed = rest.encoding === 'by-id' ? 0 : bytes;
    const length = rest.encoding === 'image-file' ? { maxLength: 40 } : { minLength: fixed, maxLength: fixed };
    return fc.array(fc.tuple(u31, u31, fc.uint8Array(length)), { minLength: n, maxLength: n }).map((samples) => ({
      ...rest,
      sampleIds: Int32Array.from(samples, ([id]) => id),
      labels: Int32Array.from(samples, ([, label]) => label),
      records: samples.map(([, , record]) => record),
    }));
  });

const example: EncodedShard = {
  step: 2 ** 40 + 1,
  epoch: 3,
  encoding: 'raw-hwc',
  image: { height: 2, width: 1, channels: 1 },
  sampleIds: Int32Array.of(5, 6),
  labels: Int32Array.of(0, 9),
  records: [Uint8Array.of(1, 2), Uint8Array.of(3, 4)],
};

test('a shard arrives as it was sent, at any alignment', (t) => {
  fc.assert(
    fc.property(shards, fc.nat(3), (shard, shift) => {
      const bytes = encodeShard(shard);
      const moved = new Uint8Array(bytes.length + shift);
      moved.set(bytes, shift);
      const decoded = decodeShard(moved.subarray(shift));
      t.deepEqual(
        { ...decoded, records: decoded.records.map((r) => [...r]) },
        { ...shard, records: shard.records.map((r) => [...r]) },
      );
    }),
  );
});

test('ids, labels and records of an aligned shard are views, not copies', (t) => {
  const bytes = encodeShard(example);
  const { sampleIds, labels, records } = decodeShard(bytes);
  for (const view of [sampleIds, labels, ...records]) t.is(view.buffer, bytes.buffer);
});

test('a shard cut anywhere, or with bytes after its end, is refused', (t) => {
  const bytes = encodeShard(example);
  for (let length = 0; length < bytes.length; length++) refused(t, () => decodeShard(bytes.subarray(0, length)));
  const longer = new Uint8Array(bytes.length + 1);
  longer.set(bytes);
  t.regex(
    refused(t, () => decodeShard(longer)),
    /1 bytes follow its last sample/,
  );
});

test('damaged bytes are refused or give a well-formed shard, never anything else', (t) => {
  fc.assert(
    fc.property(shards, fc.nat(), fc.integer({ min: 1, max: 255 }), (shard, place, change) => {
      const bytes = encodeShard(shard);
      bytes[place % bytes.length]! ^= change;
      try {
        const decoded = decodeShard(bytes);
        t.deepEqual(encodeShard(decoded), bytes);
      } catch (error) {
        t.is((error as BraidError).code, 'PROTOCOL');
      }
    }),
  );
});

test('counts and sizes that no shard has are refused before anything is allocated for them', (t) => {
  const refuse = (word: number, value: number) => {
    const bytes = encodeShard(example);
    new DataView(bytes.buffer).setUint32(4 * word, value, true);
    return refused(t, () => decodeShard(bytes));
  };
  t.regex(refuse(0, 7), /begins with 0x7/);
  t.regex(refuse(1, 4), /encoding 4 is unknown/);
  t.regex(refuse(1, 3), /sample 0 has 2 bytes, where it has none/);
  t.regex(refuse(2, 0), /claims 0 samples/);
  t.regex(refuse(2, 0xffffffff), /claims 4294967295 samples/);
  t.regex(refuse(2, 1000), /less than the table of its 1000 samples/);
  t.regex(refuse(3, 0), /images of 0x1x1/);
  t.regex(refuse(3, 0xffffffff), /images of 4294967295x1x1/);
  t.regex(refuse(5, 9), /images of 2x1x9/);
  t.regex(refuse(7, 0xffffffff), /claims step/);
  t.regex(refuse(10, 0xffffffff), /sample 0 has the id -1/);
  t.regex(refuse(13, 0xffffffff), /sample 1 has the label -1/);
  t.regex(refuse(14, 0xffffffff), /sample 0 has 4294967295 bytes, and its image 2/);
});

function refused(t: { throws: (f: () => unknown, e: object) => BraidError }, decode: () => unknown): string {
  return t.throws(decode, { instanceOf: BraidError, code: 'PROTOCOL' }).message;
}
