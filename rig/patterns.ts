/** A small data set that can be learnt. */
import { join } from 'node:path';
import type { Folder } from './folder.ts';

/** A learnable data set of idx files: each class brightens its quadrant; 8x8 grey, with noise. */
export function writePatterns(folder: Folder, train: number, test: number): string {
  const size = 8;
  const classes = 4;
  const write = (prefix: string, count: number) => {
    const images = Buffer.alloc(16 + count * size * size);
    for (const [i, word] of [0x803, count, size, size].entries()) images.writeUInt32BE(word, 4 * i);
    const labels = Buffer.alloc(8 + count);
    for (const [i, word] of [0x801, count].entries()) labels.writeUInt32BE(word, 4 * i);
    for (let i = 0; i < count; i++) {
      const label = i % classes;
      labels[8 + i] = label;
      for (let p = 0; p < size * size; p++) {
        const noise = Math.abs(Math.imul(i * size * size + p + 1, 2654435761)) % 60;
        const quadrant = 2 * Math.floor(p / ((size * size) / 2)) + (Math.floor(p / (size / 2)) & 1);
        images[16 + i * size * size + p] = noise + (quadrant === label ? 150 : 0);
      }
    }
    folder.write(`data/${prefix}-images-idx3-ubyte`, images);
    folder.write(`data/${prefix}-labels-idx1-ubyte`, labels);
  };
  write('train', train);
  write('t10k', test);
  return join(folder.path, 'data');
}

/** Of a recipe: the data set, and two branches that learn it. */
export function patterns(folder: Folder, train: number, test: number): object {
  return {
    data: {
      format: 'idx',
      path: writePatterns(folder, train, test),
      classes: 4,
      mean: [100],
      std: [70],
      augment: { pad: 1, flip: false },
    },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
  };
}
