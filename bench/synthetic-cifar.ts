/** A CIFAR-100 data set of random pixels: training on it takes as long as on the real one, and nothing is downloaded. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Random } from '../core/random.ts';

const ROW_BYTES = 2 + 3 * 32 * 32; // coarse label, fine label, pixels
const TRAIN_ROWS = 12_800; // 100 batches of 128, and 39 MB: more than the caches hold
const TEST_ROWS = 250; // evaluation is not what is timed
const COARSE_CLASSES = 20;
const FINE_CLASSES = 100;

/** Writes train.bin and test.bin; the same bytes every time. */
export function writeSyntheticCifar(folder: string): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'train.bin'), rows(TRAIN_ROWS, 1));
  writeFileSync(join(folder, 'test.bin'), rows(TEST_ROWS, 2));
}

function rows(count: number, seed: number): Uint8Array {
  const random = new Random(seed);
  const bytes = new Uint8Array(count * ROW_BYTES);
  const words = new Uint32Array(bytes.buffer, 0, bytes.length >> 2);
  for (let i = 0; i < words.length; i++) words[i] = random.next() * 2 ** 32;
  for (let row = 0; row < bytes.length; row += ROW_BYTES) {
    bytes[row] = random.int(COARSE_CLASSES);
    bytes[row + 1] = random.int(FINE_CLASSES);
  }
  return bytes;
}
