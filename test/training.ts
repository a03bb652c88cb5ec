/** For tests that train: temporary folders, small data sets, and `braid` as a real process. */
import { readFileSync } from 'node:fs';
import { stringify } from 'yaml';
import { decodeSafetensors } from '../nn/safetensors.ts';
import type { TensorMap } from '../nn/variables.ts';
import type { Folder } from '../rig/folder.ts';

export { type Training, TrainProcess, trainProcess } from '../rig/braid-process.ts';
export { type Folder, temporaryFolder } from '../rig/folder.ts';
export { patterns, writePatterns } from '../rig/patterns.ts';

/** Of a recipe whose graphs are built and whose data are never opened: FFL on two small branches. */
export const TWO_BRANCHES = {
  name: 'test',
  data: { format: 'cifar10', path: 'unused', mean: [120], std: [60] },
  branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
  method: { name: 'ffl' },
};

export function writeRecipe(folder: Folder, recipe: object): string {
  return folder.write('recipe.yaml', stringify(recipe));
}

/** Rows of the CIFAR-10 or CIFAR-100 binary format. @param images u8[n, 32, 32, 3] */
export function cifarRows({ images, labels }: { images: Uint8Array; labels: Int32Array }, hundred: boolean): Buffer {
  const pixels = 32 * 32;
  const rows = Array.from(labels, (label, n) => {
    const row = Buffer.alloc((hundred ? 2 : 1) + 3 * pixels);
    row[hundred ? 1 : 0] = label;
    for (let p = 0; p < pixels; p++) {
      for (let c = 0; c < 3; c++) row[row.length - (3 - c) * pixels + p] = images[(n * pixels + p) * 3 + c]!;
    }
    return row;
  });
  return Buffer.concat(rows);
}

export function readTensors(file: string): TensorMap {
  return decodeSafetensors(readFileSync(file), file).tensors as TensorMap;
}
