/** A labelled set of images on disk, opened by format and checked before anything is started. */
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import { openCifar } from './cifar.ts';
import { openFolder } from './folder.ts';
import { openIdx } from './idx.ts';
import { openIndexed } from './indexed.ts';

/** raw-hwc: bytes as the network reads them. raw-chw: one plane a channel. image-file: a whole JPEG or PNG. */
export type Encoding = 'raw-hwc' | 'raw-chw' | 'image-file';

export interface ImageShape {
  height: number;
  width: number;
  channels: number;
}

export interface Dataset {
  /** Format and split, for people: "cifar10 train". */
  readonly name: string;
  readonly length: number;
  readonly classes: number;
  /** Of every image, once decoded and, where the recipe has `resizedCrop`, brought to one size. */
  readonly image: ImageShape;
  readonly encoding: Encoding;
  /** The largest sample as stored. */
  readonly recordBytes: number;
  /** A sample as stored: not decoded, and possibly a view of memory that the data set owns. index in [0, length). */
  read(index: number): Promise<Uint8Array>;
  label(index: number): number;
  /** Of the index that it is read by: equal where the same samples are read; null: by none. */
  readonly indexHash: string | null;
  /** The file and the place in it that a sample comes from, for messages. */
  where(index: number): string;
  close(): void;
}

export type Split = 'train' | 'test';

/**
 * Opens one split and checks all that can be checked without decoding pixels: that files exist and are whole, magic
 * numbers, sizes, and every label.
 * @throws BraidError INVALID_DATA naming the file, what was found and what was expected;
 *   INVALID_RECIPE when the recipe's data section does not fit the images
 * @param keepsBroken whether images without a readable header are left for the decoder to complain about
 */
export async function openDataset(
  data: Recipe['data'],
  split: Split,
  keepsBroken = split === 'train' && data.onBadSample === 'skip', // evaluation leaves none out
): Promise<Dataset> {
  const dataset = await open(data, split, keepsBroken);
  try {
    requireFit(data, dataset);
  } catch (error) {
    dataset.close();
    throw error;
  }
  return dataset;
}

function open(data: Recipe['data'], split: Split, keepsBroken: boolean): Promise<Dataset> {
  switch (data.format) {
    case 'cifar10':
    case 'cifar100':
      return openCifar(data, data.format, split);
    case 'idx':
      return openIdx(data, split);
    case 'folder':
      return openFolder(data, split, keepsBroken);
    case 'indexed':
      return openIndexed(data, split, keepsBroken);
  }
}

function requireFit(data: Recipe['data'], { name, image }: Dataset): void {
  const { mean, augment } = data;
  if (mean.length !== 1 && mean.length !== image.channels) {
    throw new BraidError(
      'INVALID_RECIPE',
      `data.mean: ${mean.length} values, but the images of ${name} have ${image.channels} channel(s)`,
      { remedy: `Give data.mean and data.std one value, or ${image.channels}.` },
    );
  }
  const smallest = Math.min(image.height, image.width);
  if (augment.padMode === 'reflect' && augment.pad >= smallest) {
    throw new BraidError(
      'INVALID_RECIPE',
      `data.augment.pad: ${augment.pad} pixels cannot be reflected from images of ${image.height}x${image.width}`,
      { remedy: `Pad by less than ${smallest}, or set data.augment.padMode to zero.` },
    );
  }
}
