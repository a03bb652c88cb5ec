/** What a thread of the input pool does: decode and augment some samples of a shard, from shared memory to shared memory. */
import type { ResizedCrop } from '../../core/recipe.ts';
import type { ImageShape } from '../../input/dataset.ts';
import type { EncodedShard } from '../../input/shard.ts';
import { Augmenter, type AugmentOptions, drawCrop } from './augment.ts';
import { CLOSING, type Control, RUNNING } from './control.ts';
import { decodeImage } from './decode.ts';
import type { Eye } from './eye.ts';
import { Resizer } from './resize.ts';
import { drawView, evaluationView, type Size } from './view.ts';

export interface InputTask {
  control: Control;
  /** i32 sampleIds[n], then u32 bounds[n + 1] of the records in `records`. */
  table: Int32Array<SharedArrayBuffer>;
  records: Uint8Array<SharedArrayBuffer>;
  /** Receives u8[n*eyes*H*W*C]. */
  images: Uint8Array<SharedArrayBuffer>;
  samples: number;
  /** This task's samples: [first, end). */
  first: number;
  end: number;
  encoding: EncodedShard['encoding'];
  image: ImageShape;
  seed: number;
  epoch: number;
  /** For whom each sample is augmented; only one in evaluation. */
  eyes: Eye[];
  /** null: images as they are, or their middle where `resizedCrop` is given. */
  augment: AugmentOptions | null;
  /** null: all images are of the shape `image`. */
  resizedCrop: ResizedCrop | null;
}

/** A sample that could not be decoded. Not thrown: an error loses its class between threads, and the others are wanted. */
export interface InputFailure {
  /** In the shard. */
  place: number;
  sampleId: number;
  reason: string;
}

export interface InputResult {
  failures: InputFailure[];
  /** That this thread worked. */
  seconds: number;
}

export default function run(task: InputTask): InputResult {
  const { control } = task;
  Atomics.add(control, RUNNING, 1);
  const start = performance.now();
  try {
    const failures = prepare(task);
    return { failures, seconds: (performance.now() - start) / 1000 };
  } finally {
    Atomics.sub(control, RUNNING, 1);
    Atomics.notify(control, RUNNING);
  }
}

function prepare(task: InputTask): InputFailure[] {
  const failures: InputFailure[] = [];
  const { control, table, records, samples, eyes } = task;
  const write = task.resizedCrop === null ? fixedSize(task) : anySize(task, task.resizedCrop);
  const imageBytes = task.image.height * task.image.width * task.image.channels;
  for (let i = task.first; i < task.end && Atomics.load(control, CLOSING) === 0; i++) {
    const sampleId = table[i]!;
    try {
      const record = records.subarray(table[samples + i], table[samples + i + 1]);
      for (const [e, eye] of eyes.entries()) write(record, sampleId, (i * eyes.length + e) * imageBytes, eye);
    } catch (error) {
      failures.push({ place: i, sampleId, reason: (error as Error).message });
    }
  }
  return failures;
}

/** Brings a record into `images` at an offset. */
type Write = (record: Uint8Array, sampleId: number, offset: number, eye: Eye) => void;

function fixedSize({ images, encoding, image, seed, epoch, augment }: InputTask): Write {
  const augmenter = new Augmenter(image, augment);
  const imageBytes = image.height * image.width * image.channels;
  const decoded = encoding === 'image-file' && augment !== null ? new Uint8Array(imageBytes) : null;
  return (record, sampleId, offset, eye) => {
    const crop = augment === null ? undefined : drawCrop(augment, seed, epoch, sampleId, eye);
    if (encoding !== 'image-file') {
      augmenter.write(record, encoding === 'raw-chw' ? 'chw' : 'hwc', images, offset, crop);
    } else if (decoded === null) {
      decodeImage(record, image, images.subarray(offset, offset + imageBytes));
    } else {
      decodeImage(record, image, decoded);
      augmenter.write(decoded, 'hwc', images, offset, crop);
    }
  };
}

/** This thread's: its memory and its compiled code stay from one shard to the next. */
let resizer: Resizer | undefined;

function anySize({ images, image, seed, epoch, augment }: InputTask, options: ResizedCrop): Write {
  resizer ??= new Resizer();
  const thread = resizer;
  const imageBytes = image.height * image.width * image.channels;
  return (record, sampleId, offset, eye) => {
    const viewOf = (size: Size) =>
      augment === null
        ? evaluationView(options, size)
        : drawView(options, augment.flip, seed, epoch, sampleId, size, eye);
    thread.write(record, viewOf, options.scaledDecode, images.subarray(offset, offset + imageBytes));
  };
}
