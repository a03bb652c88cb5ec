/** braid data pack: what it writes, that it goes on where it was, and that the result is a data set like others. */
import { readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { pack } from '../cli/data-pack.ts';
import { BraidError } from '../core/errors.ts';
import { openDataset } from '../input/dataset.ts';
import { readImageHeader } from '../input/image-header.ts';
import { Resizer } from '../worker/input/resize.ts';
import { dataOf, expected, FORMATS, index } from './formats.ts';
import { temporaryFolder } from './training.ts';

const signal = new AbortController().signal;
const options = { firstLabel: 0, signal, log() {}, nowMs: () => 0 };

function packed(source: string, target: string, changes: object = {}, lines: string[] = []) {
  return pack(source, target, { shortSide: 24, quality: 90, ...changes }, options, (line) => lines.push(line));
}

/** u8[size, size, 3] of the whole image, whatever its size. */
function seen(file: Uint8Array, size = 16): Uint8Array {
  const pixels = new Uint8Array(size * size * 3);
  const square = { height: size, width: size };
  const view = { resized: square, window: { top: 0, left: 0, ...square }, mirrored: false, jitter: [] };
  new Resizer().write(file, (image) => ({ ...view, box: { top: 0, left: 0, ...image } }), false, pixels);
  return pixels;
}

for (const format of ['tar', 'parquet-zstd']) {
  test(`${format}: packed, the samples are the same, in the same order, only smaller`, async (t) => {
    await using folder = temporaryFolder();
    const target = join(folder.path, 'packed');
    await index(join(FORMATS, format), join(folder.path, 'x.braid'));
    const source = await openDataset(dataOf(join(folder.path, 'x.braid')), 'train');
    const { samples } = await packed(join(FORMATS, format), target);
    t.is(samples, expected.length);
    const dataset = await openDataset(dataOf(target), 'train');
    t.is(dataset.length, expected.length);
    for (const [i, { label }] of expected.entries()) {
      t.is(dataset.label(i), label);
      const [before, after] = [await source.read(i), await dataset.read(i)];
      const [was, is] = [readImageHeader(before)!, readImageHeader(after)!];
      const scale = Math.min(1, 24 / Math.min(was.height, was.width));
      t.like(is, { height: Math.round(was.height * scale), width: Math.round(was.width * scale) });
      const [a, b] = [seen(before), seen(after)];
      const difference = a.reduce((sum, x, at) => sum + Math.abs(x - b[at]!), 0) / a.length;
      t.true(difference < 12, `sample ${i}: ${difference} grey levels`); // of pictures that are mostly edges
    }
    source.close();
    dataset.close();
  });
}

test('packing goes on where it was, and never with other images or in another way', async (t) => {
  await using folder = temporaryFolder();
  const target = join(folder.path, 'packed');
  await packed(join(FORMATS, 'tar'), target);
  const shard = join(target, 'shard-000000.tar');
  const [bytes, indexed] = [readFileSync(shard), readFileSync(join(target, 'index.braid'))];
  utimesSync(shard, 1000, 1000);
  rmSync(join(target, 'index.braid'));
  await packed(join(FORMATS, 'tar'), target);
  t.is(statSync(shard).mtimeMs, 1_000_000, 'it was there already');
  t.deepEqual(readFileSync(join(target, 'index.braid')), indexed);
  rmSync(shard);
  writeFileSync(`${shard}.part`, 'half of it');
  await packed(join(FORMATS, 'tar'), target);
  t.deepEqual(readFileSync(shard), bytes, 'the same bytes each time');
  for (const [source, changes] of [
    ['tar', { quality: 80 }],
    ['parquet-plain', {}],
  ] as const) {
    const error = await t.throwsAsync(packed(join(FORMATS, source), target, changes), { instanceOf: BraidError });
    t.regex(error?.message ?? '', /packed: found .*"quality":90.*, expected .*, to go on with/);
  }
});

test('what cannot be decoded stays a bad sample in its place, and classes keep their names', async (t) => {
  await using folder = temporaryFolder();
  const source = await openDataset(
    dataOf((await index(join(FORMATS, 'tar'), join(folder.path, 'x.braid'))).path),
    'train',
  );
  const good = await source.read(0);
  source.close();
  folder.write('set/a/0.jpg', good);
  folder.write('set/a/1.jpg', good.subarray(0, good.length - 200)); // its header is whole
  folder.write('set/b/2.jpg', Buffer.from('GIF89a..'));
  folder.write('set/c/3.jpg', good);
  const lines: string[] = [];
  const { path } = await packed(join(folder.path, 'set'), join(folder.path, 'packed'), {}, lines);
  t.is(lines.length, 2);
  t.regex(lines.sort()[0]!, /set\/a\/1\.jpg: a damaged JPEG .*: stays as it is, as number 1/);
  t.regex(lines[1]!, /set\/b\/2\.jpg: a file that begins with 47 49 46 38: stays a broken sample, as number 2/);
  const dataset = await openDataset(dataOf(path, { onBadSample: 'skip' }), 'train');
  t.is(dataset.length, 4);
  t.deepEqual(
    Array.from({ length: 4 }, (_, i) => dataset.label(i)),
    [0, 0, 1, 2],
  );
  t.is((await dataset.read(1)).length, good.length - 200);
  await t.throwsAsync(dataset.read(2), { message: /found a truncated image/ });
  dataset.close();
  // So a packed training set goes with a test set of class folders.
  folder.write('val/a/0.jpg', good);
  folder.write('val/b/0.jpg', good);
  folder.write('val/c/0.jpg', good);
  await index(join(folder.path, 'val'), null);
  (await openDataset(dataOf(path, { testPath: join(folder.path, 'val') }), 'test')).close();
});
