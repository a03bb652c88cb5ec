/** Tar shards, parquet, TFRecord: the same samples in the same order, and what is wrong with files is said by its place. */
import { cpSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import { crc32c } from '../input/crc32c.ts';
import { openDataset } from '../input/dataset.ts';
import { decodeIndex } from '../input/index-file.ts';
import { unrolled } from '../input/store.ts';
import { contents, dataOf, expected, FORMATS, index, sources } from './formats.ts';
import { type Folder, temporaryFolder } from './training.ts';

for (const [name, { source, firstLabel }] of Object.entries(sources)) {
  test(`${name}: the samples, in their order, by an index that may be anywhere`, async (t) => {
    await using folder = temporaryFolder();
    const path = join(folder.path, 'x.braid');
    await index(join(FORMATS, source), path, firstLabel);
    const dataset = await openDataset(dataOf(path), 'train');
    t.like(dataset, { length: expected.length, classes: 3, encoding: 'image-file' });
    t.is(dataset.recordBytes, Math.max(...expected.map(({ bytes }) => bytes)));
    t.deepEqual(await contents(dataset), expected);
    t.regex(dataset.where(0), new RegExp(`/formats/${name}/.*00000.*, byte \\d+$`));
    dataset.close();
  });
}

test('a folder of class folders has its classes in the index, and moves with it', async (t) => {
  await using folder = temporaryFolder();
  const classes = ['ant', 'bee', 'cat'];
  const order = classes.flatMap((_, label) => expected.filter((sample) => sample.label === label));
  for (const [i, bytes] of (await pictures()).entries()) folder.write(`set/${classes[i % 3]}/${i}.jpg`, bytes);
  const { path, header } = await index(join(folder.path, 'set'), null);
  t.is(path, join(folder.path, 'set/index.braid'));
  t.deepEqual(header.classNames, classes);
  renameSync(join(folder.path, 'set'), join(folder.path, 'moved'));
  const dataset = await openDataset(dataOf(join(folder.path, 'moved')), 'test');
  t.deepEqual(await contents(dataset), order);
  t.is(dataset.where(0), join(folder.path, 'moved/ant/0.jpg'));
  dataset.close();
});

test('an index is refused when it is missing, damaged, or of files that have changed since', async (t) => {
  await using folder = temporaryFolder();
  const root = copyOf(folder, 'tar');
  const data = dataOf(root);
  await refused(t, data, /index\.braid: found no such file/, /braid data index <source>/);
  await index(root, null);
  const file = join(root, 'index.braid');
  const whole = readFileSync(file);
  writeFileSync(file, whole.subarray(0, whole.length - 1));
  await refused(t, data, /index\.braid: found one that is damaged/, /Make it anew/);
  writeFileSync(file, 'index');
  await refused(t, data, /index\.braid: found something else/, /Make it anew/);
  writeFileSync(file, whole);
  const shard = join(root, 'shard-000001.tar');
  const bytes = readFileSync(shard);
  writeFileSync(shard, Buffer.concat([bytes, Buffer.alloc(512)]));
  await refused(
    t,
    data,
    /shard-000001\.tar: found 20992 bytes, expected 20480 bytes, as in the index/,
    /Make the index anew/,
  );
  // Of the same size, but with other bytes: only the sample knows.
  const { offset } = decodeIndex('', whole).columns;
  bytes[offset[7]! + 20]! ^= 1;
  writeFileSync(shard, bytes);
  const dataset = await openDataset(data, 'train');
  await t.throwsAsync(dataset.read(7), { message: /shard-000001\.tar, byte \d+: found other bytes than those/ });
  await t.notThrowsAsync(dataset.read(8));
  dataset.close();
});

test('an image without a readable header keeps its place; evaluation refuses it by its number', async (t) => {
  await using folder = temporaryFolder();
  for (const [i, bytes] of (await pictures()).entries())
    folder.write(`set/x/${i}.jpg`, i === 4 ? Buffer.from('GIF89a..') : bytes);
  const root = join(folder.path, 'set');
  const { header } = await index(root, null);
  t.deepEqual(header.broken, [{ sample: 4, reason: 'a file that begins with 47 49 46 38' }]);
  await refused(
    t,
    dataOf(root),
    /found a file that begins with 47 49 46 38 as sample 4, expected/,
    /onBadSample to skip/,
  );
  const skips = dataOf(root, { onBadSample: 'skip' });
  const train = await openDataset(skips, 'train');
  t.is(train.length, expected.length);
  await t.throwsAsync(train.read(4), { message: /set\/x\/4\.jpg: found a file that begins with/ });
  train.close();
  await refused(t, skips, /as sample 4/, /evaluation leaves no sample out/, 'test');
});

test('images of several sizes, colour where grey is expected, and labels beyond the classes are refused', async (t) => {
  await using folder = temporaryFolder();
  const path = join(folder.path, 'x.braid');
  await index(join(FORMATS, 'tar'), path);
  await refused(t, dataOf(path, { resizedCrop: null }), /different sizes/, /Set data\.resizedCrop/);
  const grey = { resizedCrop: null, mean: [1], std: [1] };
  await refused(t, dataOf(path, grey), /found colour images/, /three values/);
  await refused(t, dataOf(path, { classes: 2 }), /found 3 classes, expected at most 2/, /Raise data\.classes/);
  await t.throwsAsync(index(join(FORMATS, 'tar'), path, 1), { message: /label -1, expected one from --first-label/ });
});

test('a tar sample without its label or its image, and a TFRecord or parquet file that is damaged, are told by place', async (t) => {
  await using folder = temporaryFolder();
  const changed = async (
    format: string,
    file: string,
    change: (bytes: Buffer) => Buffer | undefined,
    message: RegExp,
  ) => {
    const root = copyOf(folder, format);
    const path = join(root, file);
    const bytes = readFileSync(path);
    writeFileSync(path, change(bytes) ?? bytes);
    await t.throwsAsync(index(root, null), { instanceOf: BraidError, code: 'INVALID_DATA', message });
  };
  const rename = (from: string, to: string) => (bytes: Buffer) => {
    const at = bytes.indexOf(from);
    bytes.write(to, at, 'latin1');
    const header = Math.floor(at / 512) * 512;
    bytes.fill(' ', header + 148, header + 156);
    const sum = bytes.subarray(header, header + 512).reduce((a, b) => a + b, 0);
    bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, header + 148, 'latin1');
    return bytes;
  };
  await changed(
    'tar',
    'shard-000000.tar',
    rename('0002.cls', '0002.txt'),
    /shard-000000\.tar\/pictures\/0002: found no label/,
  );
  await changed('tar', 'shard-000000.tar', rename('0002.jpg', '0002.gif'), /pictures\/0002: found no image/);
  await changed(
    'tar',
    'shard-000000.tar',
    (bytes) => bytes.subarray(0, 3000),
    /shard-000000\.tar: found its end at byte 3000/,
  );
  const first = 'train-00000-of-00002';
  await changed('tfrecord', first, (bytes) => bytes.subarray(0, bytes.length - 1), /, record 4: found its end/);
  await changed(
    'tfrecord',
    first,
    (bytes) => void bytes.writeUInt8(bytes[0]! ^ 1),
    /record 0: found a length at byte 0 that its CRC/,
  );
  await changed(
    'tfrecord',
    first,
    (bytes) => void bytes.write('image/encodes', bytes.indexOf('image/encoded')),
    /record 0: found no image\/encoded/,
  );
  await changed(
    'parquet-plain',
    `${first}.parquet`,
    (bytes) => bytes.subarray(0, 5000),
    /of-00002\.parquet: found .*footer/,
  );
  await t.throwsAsync(index(join(FORMATS, 'tar/shard-00000{0..2}.tar'), 'x'), {
    message: /shard-000002\.tar: found no such file/,
  });
  await t.throwsAsync(index(FORMATS, 'x'), { message: /found 2 of tar, 6 of parquet, 2 of tfrecord, expected/ });
});

test('a TFRecord whose bytes do not fit their CRC-32C is a broken sample', async (t) => {
  await using folder = temporaryFolder();
  const root = copyOf(folder, 'tfrecord');
  const file = join(root, 'train-00001-of-00002');
  const bytes = readFileSync(file);
  bytes[bytes.indexOf(Buffer.from([0xff, 0xd8])) + 300]! ^= 1; // in the first picture
  writeFileSync(file, bytes);
  const { header } = await index(root, null, 1);
  t.deepEqual(header.broken, [{ sample: 5, reason: 'a record that its CRC-32C does not fit' }]);
});

test('CRC-32C is that of RFC 3720', (t) => {
  t.is(crc32c(Buffer.from('123456789')), 0xe3069283);
  t.is(crc32c(Buffer.alloc(32)), 0x8a9136aa);
  t.is(crc32c(Buffer.alloc(32, 0xff)), 0x62a8ab43);
  t.is(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e);
});

test('patterns are written out as shells do', (t) => {
  t.deepEqual(
    unrolled('a-{08..11}.{x,y}'),
    ['08', '09', '10', '11'].flatMap((n) => [`a-${n}.x`, `a-${n}.y`]),
  );
  t.deepEqual(unrolled('plain'), ['plain']);
});

test('any bytes that are not an index are refused as such', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      t.throws(() => decodeIndex('x', bytes), { instanceOf: BraidError, code: 'INVALID_DATA' });
    }),
  );
});

async function pictures(): Promise<Uint8Array[]> {
  await using folder = temporaryFolder();
  const path = join(folder.path, 'x.braid');
  await index(join(FORMATS, 'tar'), path);
  const dataset = await openDataset(dataOf(path), 'train');
  try {
    return await Promise.all(expected.map((_, i) => dataset.read(i)));
  } finally {
    dataset.close();
  }
}

let copies = 0;

/** A copy of a format's fixtures, to be damaged. */
function copyOf(folder: Folder, format: string): string {
  const root = join(folder.path, `copy-${copies++}`);
  mkdirSync(root);
  for (const file of readdirSync(join(FORMATS, format))) cpSync(join(FORMATS, format, file), join(root, file));
  return root;
}

async function refused(
  t: ExecutionContext,
  data: ReturnType<typeof dataOf>,
  message: RegExp,
  remedy: RegExp,
  split: 'train' | 'test' = 'train',
): Promise<void> {
  const error = await t.throwsAsync(openDataset(data, split), {
    instanceOf: BraidError,
    code: 'INVALID_DATA',
    message,
  });
  t.regex(error?.remedy ?? '', remedy);
}
