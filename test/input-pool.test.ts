import turbo from '@julusian/jpeg-turbo';
import test from 'ava';
import { PNG } from 'pngjs';
import { BraidError } from '../core/errors.ts';
import type { EncodedShard } from '../input/shard.ts';
import { Augmenter, drawCrop } from '../worker/input/augment.ts';
import { decodeImage } from '../worker/input/decode.ts';
import type { Eye } from '../worker/input/eye.ts';
import { InputPool } from '../worker/input/pool.ts';

const fixed = { resizedCrop: null, onBadSample: 'fail' } as const;
const augment = { pad: 2, padMode: 'reflect', flip: true } as const;
const image = { height: 6, width: 5, channels: 3 };
const imageBytes = 90;

function rawShard(samples: number, step = 0): EncodedShard {
  return {
    step,
    epoch: 2,
    encoding: 'raw-chw',
    image,
    sampleIds: Int32Array.from({ length: samples }, (_, i) => 7 * i + step),
    labels: Int32Array.from({ length: samples }, (_, i) => i % 10),
    records: Array.from({ length: samples }, (_, i) =>
      Uint8Array.from({ length: imageBytes }, (_, k) => (i * 31 + k * k) % 256),
    ),
  };
}

function fileShard(files: Uint8Array[]): EncodedShard {
  return { ...rawShard(files.length), encoding: 'image-file', records: files };
}

const png = (fill: (i: number) => number, grey = false) => {
  const file = new PNG({ width: image.width, height: image.height });
  file.data.forEach((_, i) => {
    file.data[i] = i % 4 === 3 ? 255 : fill(i);
  });
  return PNG.sync.write(file, { colorType: grey ? 0 : 2 });
};

const jpeg = (value: number, grey = false) => {
  const pixels = Buffer.alloc(imageBytes, value);
  const { height, width } = image;
  return grey
    ? turbo.compressSync(pixels, { format: turbo.FORMAT_GRAY, width, height, subsampling: turbo.SAMP_GRAY })
    : turbo.compressSync(pixels, { format: turbo.FORMAT_RGB, width, height, subsampling: turbo.SAMP_444 });
};

async function prepared(
  threads: number,
  shard: EncodedShard,
  how: typeof augment | null = augment,
): Promise<Uint8Array> {
  const pool = new InputPool({ ...fixed, threads, seed: 3, augment: how, buffers: 1 });
  try {
    const ready = await pool.prepare(shard);
    return ready.images.slice();
  } finally {
    await pool.close();
  }
}

test('augmented for several branches, each has the pixels that it would have alone, its bad samples replaced alike', async (t) => {
  const jpegs = [1, 2, 3].map((i) => {
    const pixels = Buffer.from(Uint8Array.from({ length: imageBytes }, (_, at) => 11 * i * at));
    const { height, width } = image;
    return turbo.compressSync(pixels, { format: turbo.FORMAT_RGB, width, height, subsampling: turbo.SAMP_444 });
  });
  const records = [...jpegs.slice(0, 2), new Uint8Array(3), jpegs[2]!];
  const shard: EncodedShard = { ...rawShard(4), encoding: 'image-file', records };
  const seenBy = async (eyes: Eye[]) => {
    const pool = new InputPool({ ...fixed, onBadSample: 'skip', threads: 2, seed: 3, augment, buffers: 1, eyes });
    const { images, labels } = await pool.prepare(shard);
    await pool.close();
    return { images: images.slice(), labels };
  };
  const [both, first, second, all] = await Promise.all([seenBy([0, 1]), seenBy([0]), seenBy([1]), seenBy(['all'])]);
  const of = (seen: Uint8Array, i: number) => seen.subarray(i * imageBytes, (i + 1) * imageBytes);
  for (const i of [0, 1, 2, 3]) {
    t.deepEqual(of(both!.images, 2 * i), of(first!.images, i));
    t.deepEqual(of(both!.images, 2 * i + 1), of(second!.images, i));
  }
  t.deepEqual(both!.labels, all!.labels);
  t.is(new Set([first!, second!, all!].map(({ images }) => Buffer.from(images).toString('base64'))).size, 3);
  for (const { images } of [first!, second!]) {
    t.deepEqual(images.subarray(2 * imageBytes, 3 * imageBytes), images.subarray(3 * imageBytes));
  }
});

test('a shard has the same pixels whether 1 thread prepares it or 3, and in whichever shard its samples come', async (t) => {
  const shard = rawShard(11);
  const [one, three] = [await prepared(1, shard), await prepared(3, shard)];
  t.deepEqual(one, three);
  const expected = new Uint8Array(11 * imageBytes);
  shard.records.forEach((record, i) => {
    new Augmenter(image, augment).write(
      record,
      'chw',
      expected,
      i * imageBytes,
      drawCrop(augment, 3, 2, shard.sampleIds[i]!),
    );
  });
  t.deepEqual(one, expected);
  const last = {
    ...shard,
    sampleIds: shard.sampleIds.slice(9),
    labels: shard.labels.slice(9),
    records: shard.records.slice(9),
  };
  t.deepEqual(await prepared(3, last), one.slice(9 * imageBytes));
});

test('image files are decoded, grey ones replicated, and for evaluation not augmented', async (t) => {
  const shard = fileShard([png((i) => i), png(() => 9, true), jpeg(120), jpeg(50, true)]);
  const [plain, augmented] = [await prepared(2, shard, null), await prepared(2, shard)];
  const pixels = Array.from({ length: image.height * image.width }, (_, p) => [4 * p, 4 * p + 1, 4 * p + 2]).flat();
  t.deepEqual([...plain.subarray(0, 90)], pixels);
  t.deepEqual(new Set(plain.subarray(90, 180)), new Set([9]));
  t.true(plain.subarray(180, 270).every((v) => Math.abs(v - 120) <= 2));
  t.true(plain.subarray(270).every((v) => Math.abs(v - 50) <= 2));
  const expected = new Uint8Array(imageBytes);
  new Augmenter(image, augment).write(Uint8Array.from(pixels), 'hwc', expected, 0, drawCrop(augment, 3, 2, 0));
  t.deepEqual(augmented.slice(0, 90), expected);
});

test('a file that does not decode is told by its sample id, and the pool goes on', async (t) => {
  const good = png((i) => i);
  const flipped = Buffer.from(good);
  flipped[good.length - 20]! ^= 0xff; // in the compressed pixels or their checksum
  const bad: [Uint8Array, RegExp][] = [
    [good.subarray(0, good.length - 30), /sample 7: found a damaged PNG/],
    [flipped, /sample 7: found a damaged PNG/],
    [jpeg(9).subarray(0, -12), /sample 7: found a damaged JPEG/],
    [new Uint8Array(0), /sample 7: found a truncated image/],
    [Buffer.from('hello'), /sample 7: found a file that begins with 68 65 6c 6c/],
  ];
  const pool = new InputPool({ ...fixed, threads: 2, seed: 1, augment, buffers: 1 });
  t.teardown(() => pool.close());
  for (const [file, message] of bad) {
    const error = await t.throwsAsync(pool.prepare(fileShard([good, file, good])), { instanceOf: BraidError, message });
    t.is(error.code, 'INVALID_DATA');
    t.regex(error.remedy, /braid data check/);
  }
  const other = { ...fileShard([good]), image: { height: 6, width: 6, channels: 3 } };
  await t.throwsAsync(pool.prepare(other), { message: /sample 0: found an image of 6x5, not 6x6/ });
  const ready = await pool.prepare(fileShard([good]));
  t.is(ready.images.length, imageBytes);
});

test('a colour image among grey ones is refused, a grey one decodes to one channel', (t) => {
  const grey = { ...image, channels: 1 };
  const target = new Uint8Array(30);
  t.throws(() => decodeImage(jpeg(9), grey, target), { message: /a colour image among grey ones/ });
  decodeImage(jpeg(9, true), grey, target);
  t.true(target.every((v) => Math.abs(v - 9) <= 2));
  decodeImage(
    png(() => 33, true),
    grey,
    target,
  );
  t.true(target.every((v) => v === 33));
});

test('with every buffer taken the next shard waits for a release, in the order of asking', async (t) => {
  const pool = new InputPool({ ...fixed, threads: 1, seed: 1, augment: null, buffers: 2 });
  t.teardown(() => pool.close());
  const [first, second] = [await pool.prepare(rawShard(3, 0)), await pool.prepare(rawShard(3, 1))];
  const order: number[] = [];
  const noted = async (step: number) => {
    const ready = await pool.prepare(rawShard(3, step));
    order.push(ready.step);
    return ready;
  };
  const [third, fourth] = [noted(2), noted(3)];
  t.is(second.step, 1);
  const before = first.images.slice();
  await new Promise(setImmediate);
  t.deepEqual(order, []);
  t.deepEqual(first.images, before);
  first.release();
  first.release(); // does nothing more
  const reused = await third;
  t.is(reused.images.buffer, first.images.buffer);
  t.deepEqual(order, [2]);
  second.release();
  await fourth;
  t.deepEqual(order, [2, 3]);
});

test('images lie on shared memory that begins on a 64-byte boundary, and buffers grow to the largest shard', async (t) => {
  const pool = new InputPool({ ...fixed, threads: 1, seed: 1, augment: null, buffers: 1 });
  t.teardown(() => pool.close());
  for (const samples of [2, 900, 5]) {
    const ready = await pool.prepare(rawShard(samples));
    t.true(ready.images.buffer instanceof SharedArrayBuffer);
    t.is(ready.images.byteOffset, 0);
    t.is(ready.images.buffer.byteLength % 65536, 0); // WebAssembly's, which begin on a page
    t.is(ready.images.length, samples * imageBytes);
    t.deepEqual(ready.labels, rawShard(samples).labels);
    ready.release();
  }
});

test('closing ends the threads and everything that waits, and may be done twice', async (t) => {
  const pool = new InputPool({ ...fixed, threads: 2, seed: 1, augment, buffers: 1 });
  await pool.prepare(rawShard(3));
  const waiting = pool.prepare(rawShard(3, 1));
  const refused = t.throwsAsync(waiting, { instanceOf: BraidError, code: 'CANCELLED' });
  await Promise.all([pool.close(), pool.close()]);
  await refused;
  await t.throwsAsync(pool.prepare(rawShard(3, 2)), { instanceOf: BraidError, code: 'CANCELLED' });
  const busy = new InputPool({ ...fixed, threads: 1, seed: 1, augment, buffers: 1 });
  const running = t.throwsAsync(busy.prepare(rawShard(2000)), { instanceOf: BraidError, code: 'CANCELLED' });
  await busy.close();
  await running;
});
