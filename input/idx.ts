/** The idx format of MNIST and its successors (Fashion-MNIST, ...): grey images and labels in two files a split, .gz or not. */
import { join } from 'node:path';
import type { Recipe } from '../core/recipe.ts';
import type { Dataset, Split } from './dataset.ts';
import { invalidData, openStored, type StoredFile } from './stored-file.ts';

const IMAGES_MAGIC = 0x00000803; // u8, 3 dimensions: count, height, width
const LABELS_MAGIC = 0x00000801; // u8, 1 dimension: count
const MAX_SIDE = 4096; // pixels; a header that says more is not one

const REMEDY =
  'Fetch Fashion-MNIST with `braid data fetch fashion-mnist`, or set data.path to the folder that holds the idx files.';

const prefixes = { train: 'train', test: 't10k' } as const;

/** Opens `<prefix>-images-idx3-ubyte[.gz]` and `<prefix>-labels-idx1-ubyte[.gz]`, prefix train or t10k. */
export async function openIdx(data: Recipe['data'], split: Split): Promise<Dataset> {
  const classes = data.classes ?? (await countClasses(data));
  const images = await openStored(
    join(data.path, `${prefixes[split]}-images-idx3-ubyte`),
    REMEDY,
    'an idx file of images, plain or .gz',
  );
  try {
    const [count, height, width] = header(images, IMAGES_MAGIC, 3) as [number, number, number];
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE) {
      throw invalidData(images.file, `images of ${height}x${width}`, `sides of 1 to ${MAX_SIDE} pixels`, REMEDY);
    }
    requireSize(images, 16 + count * height * width, `${count} images of ${height}x${width}`);
    const labels = await readLabels(data, split);
    if (labels.values.length !== count) {
      throw invalidData(
        labels.file,
        `${labels.values.length} labels`,
        `${count}, one for each image of ${images.file}`,
        REMEDY,
      );
    }
    const bad = labels.values.findIndex((label) => label >= classes);
    if (bad >= 0) {
      const remedy = 'Check data.classes, or fetch the file again.';
      throw invalidData(labels.file, `label ${labels.values[bad]} for image ${bad}`, `0 to ${classes - 1}`, remedy);
    }
    const imageBytes = height * width;
    return {
      name: `idx ${split}`,
      length: count,
      classes,
      image: { height, width, channels: 1 },
      encoding: 'raw-hwc',
      recordBytes: imageBytes,
      indexHash: null,
      read: async (index) => images.read(16 + index * imageBytes, imageBytes),
      label: (index) => labels.values[index]!,
      where: (index) => `${images.file}, image ${index}`,
      close: () => images.close(),
    };
  } catch (error) {
    images.close();
    throw error;
  }
}

/** The format does not say how many classes there are: the largest label of the training images does. */
async function countClasses(data: Recipe['data']): Promise<number> {
  const { values } = await readLabels(data, 'train');
  return values.reduce((most, label) => Math.max(most, label), 0) + 1;
}

async function readLabels(data: Recipe['data'], split: Split): Promise<{ file: string; values: Uint8Array }> {
  const stored = await openStored(
    join(data.path, `${prefixes[split]}-labels-idx1-ubyte`),
    REMEDY,
    'an idx file of labels, plain or .gz',
  );
  try {
    const [count] = header(stored, LABELS_MAGIC, 1) as [number];
    requireSize(stored, 8 + count, `${count} labels`);
    return { file: stored.file, values: stored.read(8, count) };
  } finally {
    stored.close();
  }
}

/** Checks the magic number and returns the dimensions. */
function header(stored: StoredFile, magic: number, dimensions: number): number[] {
  const length = 4 + 4 * dimensions;
  if (stored.size < length) {
    throw invalidData(stored.file, `${stored.size} bytes`, `an idx header of ${length} bytes`, REMEDY);
  }
  const bytes = stored.read(0, length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, length);
  const found = view.getUint32(0);
  if (found !== magic) throw invalidData(stored.file, `magic number ${hex(found)}`, hex(magic), REMEDY);
  const sizes = Array.from({ length: dimensions }, (_, i) => view.getUint32(4 + 4 * i));
  if (sizes[0] === 0) throw invalidData(stored.file, 'a count of 0', 'at least one', REMEDY);
  return sizes;
}

function requireSize(stored: StoredFile, expected: number, of: string): void {
  if (stored.size !== expected) {
    throw invalidData(stored.file, `${stored.size} bytes`, `${expected} for ${of}, as its header says`, REMEDY);
  }
}

function hex(word: number): string {
  return `0x${word.toString(16).padStart(8, '0')}`;
}
