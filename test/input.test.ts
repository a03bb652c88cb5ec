/** Data sets of every format that is read whole: what comes out of them, and how each kind of damage is refused. */
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import turbo from '@julusian/jpeg-turbo';
import test, { type ExecutionContext } from 'ava';
import { PNG } from 'pngjs';
import { BraidError, type ErrorCode } from '../core/errors.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { openDataset, type Split } from '../input/dataset.ts';

// ---------------------------------------------------------------- cifar

test('CIFAR-10 rows come in file order, with label, planes and place', async (t) => {
  const folder = temporary(t);
  put(folder, 'data_batch_1.bin', cifarRows([[3], [1]], 0));
  put(folder, 'data_batch_2.bin', cifarRows([[9]], 2));
  put(folder, 'test_batch.bin', cifarRows([[0]], 7));
  const train = await openDataset(recipe({ format: 'cifar10', path: folder }), 'train');
  t.is(train.name, 'cifar10 train');
  t.is(train.length, 3);
  t.is(train.classes, 10);
  t.deepEqual(train.image, { height: 32, width: 32, channels: 3 });
  t.is(train.encoding, 'raw-chw');
  t.is(train.recordBytes, 3072);
  t.deepEqual(
    await Promise.all(
      [0, 1, 2].map(async (i) => [train.label(i), (await train.read(i)).length, (await train.read(i))[0]]),
    ),
    [
      [3, 3072, 0],
      [1, 3072, 1],
      [9, 3072, 2],
    ],
  );
  t.is(train.where(2), `${join(folder, 'data_batch_2.bin')}, row 0`);
  const held = await openDataset(recipe({ format: 'cifar10', path: folder }), 'test');
  t.is(held.length, 1);
  t.is((await held.read(0))[0], 7);
  train.close();
  held.close();
});

test('CIFAR-100 gives the fine label, and its unpacked folder is found below the path', async (t) => {
  const folder = temporary(t);
  put(folder, 'cifar-100-binary/train.bin', cifarRows([[19, 99]], 0));
  const train = await openDataset(recipe({ format: 'cifar100', path: folder }), 'train');
  t.is(train.label(0), 99);
  t.is((await train.read(0)).length, 3072);
  t.is(train.classes, 100);
});

test('a CIFAR file that is truncated, empty, missing or skipped is refused by name, with what was found and expected', async (t) => {
  const folder = temporary(t);
  const data = recipe({ format: 'cifar10', path: folder });
  await refused(t, data, 'train', ['data_batch_1.bin: found no such file', 'braid data fetch cifar10']);
  put(folder, 'data_batch_1.bin', cifarRows([[0], [1]], 0));
  truncateSync(join(folder, 'data_batch_1.bin'), 3073 + 100);
  await refused(t, data, 'train', [
    'data_batch_1.bin: found 3173 bytes',
    'a multiple of 3073 bytes a row: 3073 or 6146',
  ]);
  put(folder, 'data_batch_1.bin', new Uint8Array(0));
  await refused(t, data, 'train', ['data_batch_1.bin: found 0 bytes', 'at least one row of 3073 bytes']);
  put(folder, 'data_batch_1.bin', cifarRows([[0]], 0));
  put(folder, 'data_batch_3.bin', cifarRows([[0]], 0));
  await refused(t, data, 'train', ['data_batch_2.bin: found no such file', 'because data_batch_3.bin is']);
  await refused(t, recipe({ format: 'cifar10', path: join(folder, 'nowhere') }), 'test', [
    'nowhere/test_batch.bin: found no such file',
  ]);
});

test('labels are checked against data.classes where the recipe gives it, else against the format', async (t) => {
  const folder = temporary(t);
  put(folder, 'data_batch_1.bin', cifarRows([[0], [10]], 0));
  await refused(t, recipe({ format: 'cifar10', path: folder }), 'train', [
    'data_batch_1.bin: found label 10 in row 1, expected 0 to 9',
  ]);
  const wider = await openDataset(recipe({ format: 'cifar10', path: folder, classes: 11 }), 'train');
  t.is(wider.classes, 11);
  put(folder, 'data_batch_1.bin', cifarRows([[0], [5]], 0));
  await refused(t, recipe({ format: 'cifar10', path: folder, classes: 5 }), 'train', [
    'found label 5 in row 1, expected 0 to 4',
  ]);
});

// ---------------------------------------------------------------- idx

test('idx files are read plain and gzipped alike', async (t) => {
  const pixels = Uint8Array.from({ length: 2 * 6 }, (_, i) => i);
  for (const pack of [(b: Uint8Array) => ['', b] as const, (b: Uint8Array) => ['.gz', gzipSync(b)] as const]) {
    const folder = temporary(t);
    for (const [name, bytes] of [
      ['train-images-idx3-ubyte', idx(0x803, [2, 2, 3], pixels)],
      ['train-labels-idx1-ubyte', idx(0x801, [2], [4, 1])],
      ['t10k-images-idx3-ubyte', idx(0x803, [1, 2, 3], pixels.subarray(6))],
      ['t10k-labels-idx1-ubyte', idx(0x801, [1], [2])],
    ] as const) {
      const [suffix, packed] = pack(bytes);
      put(folder, name + suffix, packed);
    }
    const data = recipe({ format: 'idx', path: folder, mean: [1], std: [1] });
    const train = await openDataset(data, 'train');
    t.is(train.length, 2);
    t.deepEqual(train.image, { height: 2, width: 3, channels: 1 });
    t.is(train.encoding, 'raw-hwc');
    t.is(train.recordBytes, 6);
    t.deepEqual([...(await train.read(1))], [6, 7, 8, 9, 10, 11]);
    t.is(train.label(1), 1);
    const held = await openDataset(data, 'test');
    t.is(held.classes, 5); // as many as the training labels say
    t.is(held.label(0), 2);
  }
});

test('an idx file with a wrong magic number, size, count or label is refused by name', async (t) => {
  const folder = temporary(t);
  const data = recipe({ format: 'idx', path: folder, mean: [1], std: [1] });
  const images = 'train-images-idx3-ubyte';
  const labels = 'train-labels-idx1-ubyte';
  await refused(t, data, 'train', [`${labels}: found no such file`, 'plain or .gz', 'braid data fetch fashion-mnist']);
  put(folder, labels, idx(0x801, [2], [0, 1]));
  await refused(t, data, 'train', [`${images}: found no such file`]);
  put(folder, images, idx(0x801, [2, 2, 2], new Uint8Array(8)));
  await refused(t, data, 'train', [`${images}: found magic number 0x00000801, expected 0x00000803`]);
  put(folder, images, idx(0x803, [2, 2, 2], new Uint8Array(7)));
  await refused(t, data, 'train', [`${images}: found 23 bytes, expected 24 for 2 images of 2x2`]);
  put(folder, images, new Uint8Array(5));
  await refused(t, data, 'train', [`${images}: found 5 bytes, expected an idx header of 16 bytes`]);
  put(folder, images, idx(0x803, [0, 2, 2], []));
  await refused(t, data, 'train', [`${images}: found a count of 0`]);
  put(folder, images, idx(0x803, [1, 70000, 2], new Uint8Array(140000)));
  await refused(t, data, 'train', [`${images}: found images of 70000x2, expected sides of 1 to 4096`]);
  put(folder, images, idx(0x803, [3, 2, 2], new Uint8Array(12)));
  await refused(t, data, 'train', [`${labels}: found 2 labels, expected 3, one for each image`]);
  put(folder, images, idx(0x803, [2, 2, 2], new Uint8Array(8)));
  await refused(t, { ...data, classes: 1 }, 'train', [`${labels}: found label 1 for image 1, expected 0 to 0`]);
  rmSync(join(folder, images));
  put(folder, `${images}.gz`, gzipSync(idx(0x803, [2, 2, 2], new Uint8Array(8))).subarray(0, 20));
  await refused(t, data, 'train', [`${images}.gz: found 20 bytes that do not inflate`, 'a whole gzip file']);
});

// ---------------------------------------------------------------- folder and tar

const twoClasses = {
  'cat/1.png': png(4, 5, 10),
  'cat/0.jpg': jpeg(4, 5, 20),
  'ant/b.JPEG': jpeg(4, 5, 30, true),
};

test('a folder and a tar of the same images are the same data set, sorted by class and name', async (t) => {
  const folder = temporary(t);
  for (const [name, bytes] of Object.entries(twoClasses)) put(folder, `images/${name}`, bytes);
  put(folder, 'images/cat/.DS_Store', new Uint8Array(1));
  put(folder, 'images/README', new Uint8Array(1));
  put(
    folder,
    'images.tar',
    tar({ './': null, './cat/': null, ...twoClasses, [`ant/${'long'.repeat(40)}.png`]: png(4, 5, 1) }),
  );
  put(folder, 'same.tar', tar(Object.fromEntries(Object.entries(twoClasses).map(([name, b]) => [`./${name}`, b]))));
  const open = (path: string) =>
    openDataset(recipe({ format: 'folder', path: join(folder, path), testPath: join(folder, path) }), 'train');
  const [plain, same, long] = [await open('images'), await open('same.tar'), await open('images.tar')];
  t.is(plain.length, 3);
  t.is(plain.classes, 2);
  t.is(plain.encoding, 'image-file');
  t.deepEqual(plain.image, { height: 4, width: 5, channels: 3 });
  for (const dataset of [plain, same]) {
    t.deepEqual(
      [0, 1, 2].map((i) => dataset.label(i)),
      [0, 1, 1],
    );
    t.deepEqual(
      (await Promise.all([0, 1, 2].map((i) => dataset.read(i)))).map((bytes) => Buffer.from(bytes)),
      ['ant/b.JPEG', 'cat/0.jpg', 'cat/1.png'].map((name) => Buffer.from(twoClasses[name as keyof typeof twoClasses])),
    );
  }
  t.is(same.where(1), join(folder, 'same.tar/cat/0.jpg'));
  t.is(long.length, 4);
  t.true(long.where(1).endsWith('longlong.png'));
  for (const dataset of [plain, same, long]) dataset.close();
});

test('an image of another size, not an image, truncated or nested too deep is refused by its file name', async (t) => {
  const cases: [Record<string, Uint8Array>, string][] = [
    [{ 'cat/2.png': png(4, 6, 1) }, 'cat/2.png: found 4x6 pixels, expected 4x5, the size of ant/b.JPEG'],
    [
      { 'cat/2.png': Buffer.from('GIF89a..') },
      'cat/2.png: found a file that begins with 47 49 46 38, expected a JPEG or PNG',
    ],
    [{ 'cat/2.png': png(4, 5, 1).subarray(0, 20) }, 'cat/2.png: found a truncated image'],
    [{ 'cat/2.jpg': jpeg(4, 5, 1).subarray(0, 100) }, 'cat/2.jpg: found a truncated image'],
    [{ 'cat/notes.txt': Buffer.from('hello') }, 'cat/notes.txt: found neither .jpg, .jpeg nor .png'],
  ];
  for (const [extra, expected] of cases) {
    const folder = temporary(t);
    for (const [name, bytes] of Object.entries({ ...twoClasses, ...extra })) put(folder, `images/${name}`, bytes);
    put(folder, 'images.tar', tar({ ...twoClasses, ...extra }));
    for (const path of ['images', 'images.tar']) {
      const data = recipe({ format: 'folder', path: join(folder, path), testPath: 'unused' });
      await refused(t, data, 'train', [join(folder, path, expected)]);
    }
  }
  const folder = temporary(t);
  put(folder, 'images.tar', tar({ 'cat/deep/0.png': png(4, 5, 1) }));
  const data = recipe({ format: 'folder', path: join(folder, 'images.tar'), testPath: 'unused' });
  await refused(t, data, 'train', ['cat/deep/0.png: found an image two folders deep']);
});

test('an image without a readable header is left to be skipped in training, where the recipe says so, and in no evaluation', async (t) => {
  const folder = temporary(t);
  const broken = { 'ant/a.jpg': Buffer.alloc(0), 'cat/2.png': Buffer.from('GIF89a..') };
  for (const [name, bytes] of Object.entries({ ...twoClasses, ...broken })) put(folder, `images/${name}`, bytes);
  const path = join(folder, 'images');
  const data = recipe({ format: 'folder', path, testPath: path, onBadSample: 'skip' });
  const train = await openDataset(data, 'train');
  t.is(train.length, 5);
  t.deepEqual(train.image, { height: 4, width: 5, channels: 3 });
  t.is(train.where(0), join(path, 'ant/a.jpg'));
  await refused(t, data, 'test', ['ant/a.jpg: found a truncated image']);
  for (const name of Object.keys(twoClasses)) put(folder, `images/${name}`, Buffer.alloc(3));
  await refused(t, data, 'train', ['ant/a.jpg: found a truncated image']);
});

test('with data.resizedCrop images may be of any size: all are seen at one, and the largest file is known', async (t) => {
  const folder = temporary(t);
  const files = { 'cat/0.jpg': jpeg(40, 50, 20), 'cat/1.png': png(1, 300, 9, true), 'ant/2.jpg': jpeg(90, 7, 3, true) };
  for (const [name, bytes] of Object.entries(files)) put(folder, `images/${name}`, bytes);
  put(folder, 'images.tar', tar(files));
  const largest = Math.max(...Object.values(files).map(({ length }) => length));
  for (const path of ['images', 'images.tar']) {
    const where = { path: join(folder, path), testPath: join(folder, path) };
    const resizedCrop = { size: 24, evaluationResize: 32 };
    const data = recipe({ format: 'folder', ...where, augment: { pad: 0 }, resizedCrop });
    for (const split of ['train', 'test'] as const) {
      const dataset = await openDataset(data, split);
      t.deepEqual(dataset.image, { height: 24, width: 24, channels: 3 });
      t.is(dataset.recordBytes, largest);
      dataset.close();
    }
    const rigid = recipe({ format: 'folder', ...where });
    await refused(t, rigid, 'train', ['cat/0.jpg: found 40x50 pixels, expected 90x7', 'Set data.resizedCrop']);
  }
});

test('class folders that are missing, empty, too many or not the same in both splits are refused', async (t) => {
  const folder = temporary(t);
  const data = (path: string, testPath: string, more = {}) =>
    recipe({ format: 'folder', path: join(folder, path), testPath: join(folder, testPath), ...more });
  put(folder, 'train/cat/0.png', png(4, 4, 0));
  put(folder, 'train/dog/0.png', png(4, 4, 0));
  put(folder, 'test/cat/0.png', png(4, 4, 0));
  await refused(t, data('train', 'test'), 'test', ['test: found no class folder dog, expected the class folders of']);
  put(folder, 'test/dog/0.png', png(4, 4, 0));
  put(folder, 'test/eel/0.png', png(4, 4, 0));
  await refused(t, data('train', 'test'), 'test', ['test: found class folder eel, expected the class folders of']);
  await refused(t, data('train', 'test', { classes: 1 }), 'train', ['train: found 2 class folders, expected at most']);
  t.is((await openDataset(data('train', 'test', { classes: 7 }), 'train')).classes, 7);
  mkdirSync(join(folder, 'train/fox'));
  await refused(t, data('train', 'test'), 'train', ['train/fox: found no image']);
  put(folder, 'flat/0.png', png(4, 4, 0));
  await refused(t, data('flat', 'test'), 'train', ['flat: found no sub-folder']);
  await refused(t, data('nowhere', 'test'), 'train', ['nowhere: found no such file', 'a sub-folder a class']);
});

test('a tar that is truncated, compressed or of something else is refused with the place', async (t) => {
  const folder = temporary(t);
  const whole = tar(twoClasses);
  const data = recipe({ format: 'folder', path: join(folder, 'images.tar'), testPath: 'unused' });
  put(folder, 'images.tar', whole.subarray(0, 540));
  await refused(t, data, 'train', [
    'images.tar: found its end at byte 540',
    'of cat/1.png from byte 512 (it is truncated)',
  ]);
  put(folder, 'images.tar', whole.subarray(0, whole.length - 1024));
  await refused(t, data, 'train', ['images.tar: found its end at byte', 'an end-of-archive block (it is truncated)']);
  put(
    folder,
    'images.tar',
    gzipSync(Buffer.concat([whole, Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * i) % 251))])),
  );
  await refused(t, data, 'train', ['images.tar: found a gzip file, expected a tar file that is not compressed']);
  put(folder, 'images.tar', Buffer.alloc(2048, 0x41));
  await refused(t, data, 'train', ['images.tar: found no tar header at byte 0']);
  put(folder, 'images.tar', tar({ 'cat/link.png': 'elsewhere' }));
  await refused(t, data, 'train', ['images.tar: found cat/link.png of tar type "2", expected only files and folders']);
});

test('data.mean decides whether a folder is grey or colour, and must fit the images', async (t) => {
  const folder = temporary(t);
  put(folder, 'grey/cat/0.png', png(4, 4, 9, true));
  put(folder, 'colour/cat/0.png', png(4, 4, 9));
  const data = (path: string, mean: number[]) =>
    recipe({ format: 'folder', path: join(folder, path), testPath: 'unused', mean, std: mean });
  t.is((await openDataset(data('grey', [1]), 'train')).image.channels, 1);
  t.is((await openDataset(data('grey', [1, 1, 1]), 'train')).image.channels, 3);
  await refused(t, data('colour', [1]), 'train', ['cat/0.png: found a colour image, expected a grey one']);
  put(folder, 'data_batch_1.bin', cifarRows([[0]], 0));
  const misfit = recipe({ format: 'cifar10', path: folder, mean: [1, 1], std: [1, 1] });
  await refused(
    t,
    misfit,
    'train',
    ['data.mean: 2 values, but the images of cifar10 train have 3 channel(s)'],
    'INVALID_RECIPE',
  );
});

test('reflecting more pixels than an image has is refused before training', async (t) => {
  const folder = temporary(t);
  put(folder, 'data_batch_1.bin', cifarRows([[0]], 0));
  const augment = (pad: number, padMode: 'reflect' | 'zero') => ({
    ...recipe({ format: 'cifar10', path: folder }),
    augment: { pad, padMode, flip: true },
  });
  await refused(
    t,
    augment(32, 'reflect'),
    'train',
    ['data.augment.pad: 32 pixels', 'images of 32x32'],
    'INVALID_RECIPE',
  );
  for (const good of [augment(31, 'reflect'), augment(32, 'zero')]) (await openDataset(good, 'train')).close();
  t.pass();
});

// ---------------------------------------------------------------- what the tests write

function temporary(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'braid-input-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function put(folder: string, name: string, bytes: Uint8Array): void {
  mkdirSync(dirname(join(folder, name)), { recursive: true });
  writeFileSync(join(folder, name), bytes);
}

function recipe(data: Record<string, unknown>): Recipe['data'] {
  return checkRecipe({
    name: 'test',
    data: { mean: [1, 1, 1], std: [1, 1, 1], augment: { pad: 1 }, ...data },
    branches: [{ network: 'resnet', depth: 8 }],
    method: { name: 'vanilla' },
    training: {},
  }).data;
}

/** Opening must fail with every one of these pieces in its message or remedy. */
async function refused(
  t: ExecutionContext,
  data: Recipe['data'],
  split: Split,
  pieces: string[],
  code: ErrorCode = 'INVALID_DATA',
): Promise<void> {
  const error = await t.throwsAsync(openDataset(data, split), { instanceOf: BraidError });
  t.is(error.code, code);
  t.not(error.remedy, '');
  for (const piece of pieces)
    t.true(`${error.message}\n${error.remedy}`.includes(piece), `${error.message} lacks ${piece}`);
}

/** Rows of these label bytes; row r's pixels are all first + r. */
function cifarRows(labels: number[][], first: number): Uint8Array {
  return Buffer.concat(labels.map((bytes, row) => Buffer.from([...bytes, ...new Uint8Array(3072).fill(first + row)])));
}

function idx(magic: number, sizes: number[], values: ArrayLike<number>): Uint8Array {
  const header = Buffer.alloc(4 + 4 * sizes.length);
  header.writeUInt32BE(magic);
  sizes.forEach((size, i) => {
    header.writeUInt32BE(size, 4 + 4 * i);
  });
  return Buffer.concat([header, Buffer.from(values as Uint8Array)]);
}

function png(height: number, width: number, value: number, grey = false): Buffer {
  const image = new PNG({ width, height });
  image.data.fill(value);
  return PNG.sync.write(image, { colorType: grey ? 0 : 2 });
}

function jpeg(height: number, width: number, value: number, grey = false): Buffer {
  const format = grey ? turbo.FORMAT_GRAY : turbo.FORMAT_RGB;
  const subsampling = grey ? turbo.SAMP_GRAY : turbo.SAMP_444;
  const pixels = Buffer.alloc(height * width * (grey ? 1 : 3), value);
  return turbo.compressSync(pixels, { format, width, height, subsampling, quality: 90 });
}

/** A ustar file; a null entry is a folder, a string a symbolic link, and a name over 100 bytes comes as a GNU long name. */
function tar(entries: Record<string, Uint8Array | string | null>): Buffer {
  const blocks: Buffer[] = [];
  const add = (name: string, type: string, content: Uint8Array, link = '') => {
    const header = Buffer.alloc(512);
    header.write(name.slice(0, 99), 0);
    header.write('0000644\0', 100);
    header.write(`${content.length.toString(8).padStart(11, '0')}\0`, 124);
    header.write(type, 156);
    header.write(link, 157);
    header.write('ustar\x0000', 257);
    header.fill(' ', 148, 156);
    const sum = header.reduce((a, b) => a + b, 0);
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
    blocks.push(header, Buffer.from(content), Buffer.alloc((512 - (content.length % 512)) % 512));
  };
  for (const [name, content] of Object.entries(entries)) {
    if (name.length > 99) add('././@LongLink', 'L', Buffer.from(`${name}\0`));
    if (content === null) add(name, '5', new Uint8Array(0));
    else if (typeof content === 'string') add(name, '2', new Uint8Array(0), content);
    else add(name, '0', content);
  }
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}
