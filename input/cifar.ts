/** CIFAR-10 and CIFAR-100 in their binary version: rows of one or two label bytes and 3072 pixel bytes, plane by plane. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Recipe } from '../core/recipe.ts';
import type { Dataset, Split } from './dataset.ts';
import { invalidData, openStored, type StoredFile } from './stored-file.ts';

const IMAGE = { height: 32, width: 32, channels: 3 };
const IMAGE_BYTES = IMAGE.height * IMAGE.width * IMAGE.channels;
const CIFAR10_TRAIN_FILES = 5;

const formats = {
  // [label][1024 R][1024 G][1024 B]
  cifar10: { classes: 10, labelBytes: 1, folder: 'cifar-10-batches-bin', test: 'test_batch.bin' },
  // [coarse label][fine label][3072]: the fine one, of 100 classes, is the label
  cifar100: { classes: 100, labelBytes: 2, folder: 'cifar-100-binary', test: 'test.bin' },
} as const;

/**
 * Opens the files of one split; `data.path` is their folder, or the one above it as the archive unpacks.
 * Any positive number of whole rows is taken, so that a subset of the published files works.
 */
export async function openCifar(data: Recipe['data'], format: keyof typeof formats, split: Split): Promise<Dataset> {
  const { labelBytes, folder: unpacked, test, ...published } = formats[format];
  const classes = data.classes ?? published.classes;
  const remedy = `Fetch it with \`braid data fetch ${format}\`, or set data.path to the folder that holds it.`;
  const below = join(data.path, unpacked);
  const folder = existsSync(below) ? below : data.path;
  const names = split === 'test' ? [test] : format === 'cifar100' ? ['train.bin'] : trainFiles(folder, remedy);
  const rowBytes = labelBytes + IMAGE_BYTES;

  const files: StoredFile[] = [];
  try {
    for (const name of names) {
      const stored = await openStored(join(folder, name), remedy, `a ${format} file of ${rowBytes}-byte rows`);
      files.push(stored);
      requireRows(stored, rowBytes, labelBytes, classes, remedy);
    }
  } catch (error) {
    for (const stored of files) stored.close();
    throw error;
  }

  /** Index of each file's first row, and the number of all rows at the end. */
  const firsts = [0];
  for (const stored of files) firsts.push(firsts.at(-1)! + stored.size / rowBytes);
  const locate = (index: number) => {
    let file = 0;
    while (index >= firsts[file + 1]!) file++;
    return { stored: files[file]!, row: index - firsts[file]! };
  };
  return {
    name: `${format} ${split}`,
    length: firsts.at(-1)!,
    classes,
    image: IMAGE,
    encoding: 'raw-chw',
    recordBytes: IMAGE_BYTES,
    indexHash: null,
    async read(index) {
      const { stored, row } = locate(index);
      return stored.read(row * rowBytes + labelBytes, IMAGE_BYTES);
    },
    label(index) {
      const { stored, row } = locate(index);
      return stored.read(row * rowBytes + labelBytes - 1, 1)[0]!;
    },
    where(index) {
      const { stored, row } = locate(index);
      return `${stored.file}, row ${row}`;
    },
    close() {
      for (const stored of files) stored.close();
    },
  };
}

/** data_batch_1.bin and those that follow it without a gap. */
function trainFiles(folder: string, remedy: string): string[] {
  const names = Array.from({ length: CIFAR10_TRAIN_FILES }, (_, i) => `data_batch_${i + 1}.bin`);
  const present = names.map((name) => statSync(join(folder, name), { throwIfNoEntry: false }) !== undefined);
  const last = present.lastIndexOf(true);
  const gap = present.indexOf(false);
  if (gap >= 0 && gap < last) {
    throw invalidData(join(folder, names[gap]!), 'no such file', `it to be there, because ${names[last]} is`, remedy);
  }
  return names.slice(0, Math.max(1, last + 1));
}

function requireRows(stored: StoredFile, rowBytes: number, labelBytes: number, classes: number, remedy: string): void {
  const rows = Math.floor(stored.size / rowBytes);
  if (rows === 0 || stored.size !== rows * rowBytes) {
    throw invalidData(
      stored.file,
      `${stored.size} bytes`,
      rows === 0
        ? `at least one row of ${rowBytes} bytes`
        : `a multiple of ${rowBytes} bytes a row: ${rows * rowBytes} or ${(rows + 1) * rowBytes}`,
      remedy,
    );
  }
  for (let row = 0; row < rows; row++) {
    const label = stored.read(row * rowBytes + labelBytes - 1, 1)[0]!;
    if (label >= classes) {
      throw invalidData(
        stored.file,
        `label ${label} in row ${row}`,
        `0 to ${classes - 1}`,
        'Check data.format and data.classes, or fetch the file again.',
      );
    }
  }
}
