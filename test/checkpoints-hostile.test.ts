/** Files that nobody's training wrote: refused by name, whatever they claim, and before they cost memory. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { decodeManifest, encodeManifest } from '../coordinator/checkpoints-manifest.ts';
import { BraidError } from '../core/errors.ts';
import { decodeSafetensors, encodeSafetensors, type Tensors } from '../nn/safetensors.ts';
import { factsOf } from './checkpoints.ts';

const decode = (bytes: Uint8Array) => decodeSafetensors(bytes, 'w.safetensors');

/** @param claimed length of the header; default: its own */
function fileOf(header: unknown, data = new Uint8Array(0), claimed?: bigint): Uint8Array {
  const json = Buffer.isBuffer(header)
    ? header
    : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claimed ?? BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

function refused(t: ExecutionContext, bytes: Uint8Array, why?: RegExp): void {
  const error = t.throws(() => decode(bytes), { instanceOf: BraidError });
  t.is(error.code, 'INVALID_CHECKPOINT');
  t.regex(error.message, /^w\.safetensors is not a whole safetensors file: /);
  t.true(error.message.length < 1000);
  if (why !== undefined) t.regex(error.message, why);
}

const anyTensors = fc
  .array(
    fc.record({
      name: fc.oneof(
        fc.string({ minLength: 1 }).filter((name) => name !== '__metadata__'),
        fc.constantFrom('__proto__', 'constructor', '../../etc/passwd', '0'),
      ),
      data: fc.oneof(fc.float32Array(), fc.int32Array(), fc.uint8Array()),
    }),
  )
  .map((all): Tensors => new Map(all.map(({ name, data }) => [name, { shape: [data.length], data }])));

const sorted = (tensors: Tensors) => [...tensors].sort(([a], [b]) => (a < b ? -1 : 1));

test('whatever their names, tensors come back as they were', (t) => {
  fc.assert(
    fc.property(anyTensors, fc.dictionary(fc.string(), fc.string()), (tensors, metadata) => {
      const { __proto__: _, ...own } = metadata;
      const back = decode(encodeSafetensors(tensors, own));
      t.deepEqual(sorted(back.tensors), sorted(tensors));
      t.deepEqual(back.metadata, own);
    }),
  );
});

test('random bytes are refused', (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => refused(t, bytes)));
});

test('any change to a file is refused or changes only what it says', (t) => {
  const file = encodeSafetensors(new Map([['w', { shape: [2, 3], data: new Float32Array(6) }]]), { format: 'pt' });
  fc.assert(
    fc.property(fc.nat(file.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const changed = Uint8Array.from(file);
      changed[at]! ^= change;
      try {
        const { tensors } = decode(changed);
        const bytes = [...tensors.values()].reduce((sum, { data }) => sum + data.byteLength, 0);
        t.true(bytes <= file.length);
      } catch (error) {
        t.true(error instanceof BraidError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});

test('a cut at any byte is refused', (t) => {
  const file = encodeSafetensors(new Map([['w', { shape: [5], data: Float32Array.of(1, 2, 3, 4, 5) }]]));
  for (let length = 0; length < file.length; length++) refused(t, file.subarray(0, length));
  refused(t, Buffer.concat([file, Buffer.from('x')]), /its tensors have 20 bytes of data, the file has 21/);
});

test('a header that claims more than there is, is refused before it is read', (t) => {
  for (const claimed of [1n << 63n, (1n << 64n) - 1n, 101n << 20n, 100n]) {
    refused(t, fileOf({}, undefined, claimed), /its header claims \d+ bytes, the file has 10/);
  }
});

const F32 = (shape: unknown, data_offsets: unknown) => ({ w: { dtype: 'F32', shape, data_offsets } });
const headers: [string, unknown, RegExp][] = [
  ['not JSON', '{"w":', /its header is not a JSON object/],
  ['no UTF-8', Buffer.from([0x7b, 0xff, 0x7d]), /not a JSON object/],
  ['null', 'null', /not a JSON object/],
  ['a list', '[]', /not a JSON object/],
  ['a number', '7', /not a JSON object/],
  ['endless nesting', '{"w":'.repeat(200_000), /not a JSON object/],
  ['deep nesting', `${'{"w":'.repeat(5000)}1${'}'.repeat(5000)}`, /tensor w claims/],
  ['metadata that is no object', { __metadata__: 7 }, /__metadata__ is not an object of strings/],
  ['metadata of numbers', { __metadata__: { a: 7 } }, /__metadata__ is not an object of strings/],
  ['a tensor that is null', { w: null }, /tensor w claims null/],
  ['a tensor without a type', { w: { shape: [1], data_offsets: [0, 4] } }, /tensor w claims/],
  [
    'an unknown type',
    { w: { dtype: 'F8_E5M2', shape: [8], data_offsets: [0, 8] } },
    /dtype F8_E5M2; F32, I32, U8, I64/,
  ],
  ['a type of every object', { w: { dtype: 'constructor', shape: [8], data_offsets: [0, 8] } }, /dtype constructor/],
  ['a type that is no text', { w: { dtype: ['F32'], shape: [2], data_offsets: [0, 8] } }, /tensor w claims/],
  ['a shape that is no list', F32(2, [0, 8]), /tensor w claims/],
  ['a negative shape', F32([-1, -2], [0, 8]), /tensor w claims/],
  ['a shape of fractions', F32([0.5, 4], [0, 8]), /tensor w claims/],
  ['a shape that overflows', F32([2 ** 40, 2 ** 40, 2 ** 40], [0, 8]), /tensor w claims/],
  ['offsets that are no list', F32([2], 'abc'), /tensor w claims/],
  ['three offsets', F32([2], [0, 8, 8]), /tensor w claims/],
  ['offsets backwards', F32([2], [8, 0]), /tensor w claims/],
  ['negative offsets', F32([2], [-8, 0]), /tensor w claims/],
  ['offsets beyond the file', F32([4], [0, 16]), /its tensors have 16 bytes of data, the file has 8/],
  ['offsets of another size', F32([1], [0, 8]), /tensor w claims/],
  ['a gap', F32([1], [4, 8]), /tensor w begins at byte 4 of the data, where 0 is expected/],
  [
    'an overlap',
    { ...F32([2], [0, 8]), v: { dtype: 'F32', shape: [1], data_offsets: [4, 8] } },
    /tensor v begins at byte 4 of the data, where 8 is expected/,
  ],
  [
    'one tensor over another',
    { ...F32([2], [0, 8]), v: { dtype: 'F32', shape: [2], data_offsets: [0, 8] } },
    /v begins/,
  ],
  ['bytes of nobody', F32([1], [0, 4]), /its tensors have 4 bytes of data, the file has 8/],
  ['a very long name', { ['n'.repeat(100_000)]: 7 }, /tensor n+\.\.\. claims 7/],
];
for (const [what, header, why] of headers) {
  test(`a safetensors file with ${what} is refused`, (t) => refused(t, fileOf(header, new Uint8Array(8)), why));
}

test("PyTorch's counts of batches are passed over, and what lies beside them is not", (t) => {
  const header = {
    'bn.num_batches_tracked': { dtype: 'I64', shape: [], data_offsets: [0, 8] },
    'bn.weight': { dtype: 'F32', shape: [1], data_offsets: [8, 12] },
  };
  const { tensors } = decode(
    fileOf(header, Buffer.concat([Buffer.alloc(8, 1), Buffer.from(Float32Array.of(7).buffer)])),
  );
  t.deepEqual(tensors, new Map([['bn.weight', { shape: [1], data: Float32Array.of(7) }]]));
});

// ---------------------------------------------------------------- manifests

const SHA256 = 'a'.repeat(64);
const NAME = 'step-00000007';
const files = { 'model.safetensors': { bytes: 10, sha256: SHA256 } };
const sound = JSON.parse(Buffer.from(encodeManifest('0.1.0', factsOf(7), files)).toString());

function manifestRefused(t: ExecutionContext, bytes: Uint8Array, why?: RegExp): void {
  const error = t.throws(() => decodeManifest(bytes, 'm.json', NAME), { instanceOf: BraidError });
  t.is(error.code, 'INVALID_CHECKPOINT');
  t.regex(error.message, why ?? /^m\.json (is damaged: |has format )/);
}

test('a manifest says again what was written in it', (t) => {
  const step = fc.nat();
  const rest = fc.record({ run: fc.string(), epoch: fc.nat(), recipe: fc.jsonValue() });
  fc.assert(
    fc.property(step, rest, (at, facts) => {
      const all = { ...factsOf(at), ...facts };
      const name = `step-${String(at).padStart(8, '0')}`;
      // What JSON makes of them: -0 is 0.
      t.deepEqual(
        decodeManifest(encodeManifest('0.1.0', all, files), 'm.json', name),
        JSON.parse(JSON.stringify({ format: 1, braid: '0.1.0', ...all, files })),
      );
    }),
  );
});

test('random bytes and random JSON are no manifest', (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => manifestRefused(t, bytes)));
  fc.assert(fc.property(fc.json(), (json) => manifestRefused(t, Buffer.from(json))));
});

const manifests: [string, object, RegExp][] = [
  ['of another step', { step: 8 }, /it is of step 8/],
  ['without a run', { run: undefined }, /at run/],
  ['of half a step', { step: 7.5 }, /at step/],
  ['of a negative epoch', { epoch: -1 }, /at epoch/],
  ['with a list for the network', { network: [] }, /at network/],
  ['with a hash that is none', { files: { 'model.safetensors': { bytes: 1, sha256: 'abc' } } }, /sha256/],
  ['with a negative size', { files: { 'model.safetensors': { bytes: -1, sha256: SHA256 } } }, /bytes/],
  ['with an endless size', { files: { 'model.safetensors': { bytes: 1e300, sha256: SHA256 } } }, /bytes/],
];
for (const [what, change, why] of manifests) {
  test(`a manifest ${what} is refused`, (t) => {
    manifestRefused(t, Buffer.from(JSON.stringify({ ...sound, ...change })), why);
  });
}

test('a manifest that names files elsewhere is refused', (t) => {
  const elsewhere = fc.oneof(
    fc.constantFrom(
      '../model.safetensors',
      '/etc/passwd',
      'a/b.safetensors',
      '..',
      '.',
      '',
      'a\\b.txt',
      'a\0.txt',
      '.x.y',
    ),
    fc.string().map((name) => `../${name}`),
    fc.string().map((name) => `${name}/x.safetensors`),
  );
  fc.assert(
    fc.property(elsewhere, (name) => {
      const json = JSON.stringify({ ...sound, files: Object.fromEntries([[name, { bytes: 1, sha256: SHA256 }]]) });
      manifestRefused(t, Buffer.from(json), /files/);
    }),
  );
});
