/** What a thread of the input pool does: decode and augment some samples of a shard, from shared memory to shared memory. */
import type { Encoding, ImageShape } from '../../input/dataset.ts';
import { Augmenter, type AugmentOptions, drawCrop } from './augment.ts';
import { decodeImage } from './decode.ts';

export interface InputTask {
  /** i32 sampleIds[n], then u32 bounds[n + 1] of the records in `records`. */
  table: Int32Array<SharedArrayBuffer>;
  records: Uint8Array<SharedArrayBuffer>;
  /** Receives u8[n*H*W*C]. */
  images: Uint8Array<SharedArrayBuffer>;
  samples: number;
  /** This task's samples: [first, end). */
  first: number;
  end: number;
  encoding: Encoding;
  image: ImageShape;
  seed: number;
  epoch: number;
  /** null: images as they are. */
  augment: AugmentOptions | null;
}

/** The first sample that could not be decoded, or null. Not thrown: an error loses its class between threads. */
export type InputFailure = { sampleId: number; reason: string } | null;

export default function run(task: InputTask): InputFailure {
  const { table, records, images, samples, encoding, image, seed, epoch, augment } = task;
  const augmenter = new Augmenter(image, augment);
  const imageBytes = image.height * image.width * image.channels;
  const decoded = encoding === 'image-file' && augment !== null ? new Uint8Array(imageBytes) : null;
  for (let i = task.first; i < task.end; i++) {
    const sampleId = table[i]!;
    const record = records.subarray(table[samples + i], table[samples + i + 1]);
    const crop = augment === null ? undefined : drawCrop(augment, seed, epoch, sampleId);
    try {
      if (encoding !== 'image-file') {
        augmenter.write(record, encoding === 'raw-chw' ? 'chw' : 'hwc', images, i * imageBytes, crop);
      } else if (decoded === null) {
        decodeImage(record, image, images.subarray(i * imageBytes, (i + 1) * imageBytes));
      } else {
        decodeImage(record, image, decoded);
        augmenter.write(decoded, 'hwc', images, i * imageBytes, crop);
      }
    } catch (error) {
      return { sampleId, reason: (error as Error).message };
    }
  }
  return null;
}
