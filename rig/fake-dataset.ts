/** A data set in no files. */
import type { Dataset } from '../input/dataset.ts';

/** Sample i is four pixels of value i, of class i % 3. */
export function fakeDataset(name: string, length: number): Dataset {
  return {
    name,
    length,
    classes: 3,
    image: { height: 2, width: 2, channels: 1 },
    encoding: 'raw-hwc',
    recordBytes: 4,
    indexHash: null,
    read: async (index) => new Uint8Array(4).fill(index),
    label: (index) => index % 3,
    where: (index) => `${name}, sample ${index}`,
    close() {},
  };
}
