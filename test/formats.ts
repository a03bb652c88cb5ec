/** For tests of data sets in files: the fixtures, which all hold the same samples, and what they hold. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeIndex } from '../cli/data-index.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import type { Dataset } from '../input/dataset.ts';

export const FORMATS = join(import.meta.dirname, 'fixtures/formats');

export interface Expected {
  label: number;
  bytes: number;
  sha256: string;
}

export const expected: Expected[] = JSON.parse(readFileSync(join(FORMATS, 'expected.json'), 'utf8'));

/** By folder: what the source is, below the fixtures, and what it calls class 0. */
export const sources: Record<string, { source: string; firstLabel: number }> = {
  tar: { source: 'tar/shard-{000000..000001}.tar', firstLabel: 0 },
  'parquet-snappy': { source: 'parquet-snappy/train-{00000,00001}-of-00002.parquet', firstLabel: 0 },
  'parquet-plain': { source: 'parquet-plain/train-{00000..00001}-of-00002.parquet', firstLabel: 0 },
  'parquet-zstd': { source: 'parquet-zstd/train-{00000..00001}-of-00002.parquet', firstLabel: 0 },
  tfrecord: { source: 'tfrecord/train-{00000..00001}-of-00002', firstLabel: 1 },
};

export function index(source: string, to: string | null, firstLabel = 0) {
  const signal = new AbortController().signal;
  return writeIndex(source, to, { firstLabel, signal, log() {}, nowMs: () => 0 });
}

/** The data section of a recipe for images of any size. */
export function dataOf(path: string, changes: object = {}): Recipe['data'] {
  return checkRecipe({
    name: 'x',
    data: {
      ...{ format: 'indexed', path, testPath: path, mean: [1, 1, 1], std: [1, 1, 1] },
      ...{ augment: { pad: 0 }, resizedCrop: { size: 16, evaluationResize: 20 } },
      ...changes,
    },
    branches: [{ network: 'resnet', depth: 8 }],
    method: { name: 'vanilla' },
    training: {},
  }).data;
}

/** All that a data set holds, in its order. */
export function contents(dataset: Dataset): Promise<Expected[]> {
  return Promise.all(
    Array.from({ length: dataset.length }, async (_, i) => {
      const bytes = await dataset.read(i);
      const sha256 = createHash('sha256').update(bytes).digest('hex');
      return { label: dataset.label(i), bytes: bytes.length, sha256 };
    }),
  );
}
