/**
 * Decodes and augments shards ahead of need, on piscina threads, into a ring of shared buffers. A shard takes a buffer
 * until it is released; with all buffers taken, the next shard waits: that is what limits how far a worker reads ahead.
 */
import { Piscina } from 'piscina';
import { BraidError } from '../../core/errors.ts';
import type { ResizedCrop } from '../../core/recipe.ts';
import { alignedSharedBuffer } from '../../core/shared-buffer.ts';
import { within } from '../../core/spans.ts';
import { standIns } from '../../core/stand-ins.ts';
import type { EncodedShard } from '../../input/shard.ts';
import type { AugmentOptions } from './augment.ts';
import { CLOSING, newControl, RUNNING } from './control.ts';
import type { Eye } from './eye.ts';
import type { InputFailure, InputResult, InputTask } from './task.ts';

/** A thread that has not come to its next image by then is stuck. */
const CLOSE_TIMEOUT_MS = 10_000;

export interface InputPoolOptions {
  /** At least 1. */
  threads: number;
  seed: number;
  /** null for evaluation: images as they are, or their middle where `resizedCrop` is given. */
  augment: AugmentOptions | null;
  /** null: all images are of one size. */
  resizedCrop: ResizedCrop | null;
  /** For whom each sample is augmented; default: once, for all. */
  eyes?: Eye[];
  /** What becomes of a sample that cannot be decoded: the shard fails, or another sample of it stands in. */
  onBadSample: 'fail' | 'skip';
  /** A shard's images have been decoded and augmented, in so many seconds of the threads together. */
  onPrepared?(images: number, seconds: number): void;
  /** Shards in preparation or in use at a time, at least 1. Memory: each as large as the largest shard, twice. */
  buffers: number;
}

export interface ReadyShard {
  step: number;
  /** u8[n*eyes*H*W*C], NHWC, what each eye sees of a sample one after another. A view of a shared, 64-byte aligned buffer: valid until release(). */
  images: Uint8Array<SharedArrayBuffer>;
  /** i32[n]. The shard's own: valid for good. */
  labels: Int32Array;
  /** Samples that others stand in for. */
  bad: InputFailure[];
  /** Gives the buffer to the next shard. Further calls do nothing. */
  release(): void;
}

export class InputPool {
  private readonly options: InputPoolOptions;
  private readonly piscina: Piscina<InputTask, InputResult>;
  private readonly free: Slot[];
  /** In order of asking; empty whenever a slot is free. */
  private readonly waiting: { resolve(slot: Slot): void; reject(error: BraidError): void }[] = [];
  private closed = false;
  private readonly control = newControl();

  constructor(options: InputPoolOptions) {
    this.options = options;
    this.free = Array.from({ length: options.buffers }, () => new Slot());
    this.piscina = new Piscina({
      filename: new URL('./task.ts', import.meta.url).href,
      minThreads: options.threads,
      maxThreads: options.threads,
    });
  }

  /**
   * Resolves once the shard's images are ready. Shards get buffers in the order of the calls.
   * @param unread samples that could not even be read: their records are empty
   * @throws BraidError INVALID_DATA naming a sample that cannot be decoded; CANCELLED when the pool closes
   */
  async prepare(shard: EncodedShard, unread: InputFailure[] = []): Promise<ReadyShard> {
    const slot = await this.take();
    let bad: InputFailure[];
    try {
      bad = await within('decode', () => this.fill(slot, shard, unread), {
        root: true,
        attributes: { step: shard.step },
      });
      if (this.closed) throw closedError();
    } catch (error) {
      this.give(slot);
      throw this.closed ? closedError() : error;
    }
    let released = false;
    const release = () => {
      if (!released) this.give(slot);
      released = true;
    };
    const images = slot.images(this.imageBytesOf(shard));
    const labels = shard.labels.slice();
    const size = images.length / labels.length;
    for (const [place, other] of standIns(
      bad.map((failure) => failure.place),
      labels.length,
    )) {
      images.copyWithin(place * size, other * size, (other + 1) * size);
      labels[place] = labels[other]!;
    }
    return { step: shard.step, images, labels, bad, release };
  }

  /**
   * Ends all threads, each after the image that it is at: one that is ended inside of native code may take the process with
   * it. Shards that are being prepared, or wait, fail with CANCELLED. Idempotent.
   */
  async close(): Promise<void> {
    this.closed = true;
    for (const { reject } of this.waiting.splice(0)) reject(closedError());
    Atomics.store(this.control, CLOSING, 1);
    for (let running = this.running; running > 0; running = this.running) {
      const { value } = Atomics.waitAsync(this.control, RUNNING, running, CLOSE_TIMEOUT_MS);
      if ((await value) === 'timed-out') break;
    }
    await this.piscina.destroy();
  }

  /** Tasks in a thread. */
  private get running(): number {
    return Atomics.load(this.control, RUNNING);
  }

  private async fill(slot: Slot, shard: EncodedShard, unread: InputFailure[]): Promise<InputFailure[]> {
    const { encoding, image, epoch, sampleIds, records } = shard;
    const { seed, augment, resizedCrop, threads } = this.options;
    const samples = records.length;
    const input = slot.load(sampleIds, records);
    const images = slot.images(this.imageBytesOf(shard));
    const chunks = Math.min(threads, samples);
    const bound = (chunk: number) => Math.floor((chunk * samples) / chunks);
    // All chunks end before any failure is told: a slot that is given back must not be written to any more.
    const results = await Promise.allSettled(
      Array.from({ length: chunks }, (_, chunk) =>
        this.piscina.run({
          ...input,
          control: this.control,
          images,
          samples,
          first: bound(chunk),
          end: bound(chunk + 1),
          encoding,
          image,
          seed,
          epoch,
          augment,
          eyes: this.eyes,
          resizedCrop,
        }),
      ),
    );
    let seconds = 0;
    const bad = results.flatMap((result) => {
      if (result.status === 'rejected') throw result.reason;
      seconds += result.value.seconds;
      return result.value.failures.map((failure) => unread.find(({ place }) => place === failure.place) ?? failure);
    });
    this.options.onPrepared?.(samples, seconds);
    if (bad.length > 0 && (this.options.onBadSample === 'fail' || bad.length === samples)) {
      throw undecodable(shard, bad[0]!);
    }
    return bad;
  }

  private get eyes(): Eye[] {
    return this.options.eyes ?? ['all'];
  }

  private imageBytesOf({ image, records }: EncodedShard): number {
    return this.eyes.length * records.length * image.height * image.width * image.channels;
  }

  private take(): Promise<Slot> {
    if (this.closed) return Promise.reject(closedError());
    const slot = this.free.pop();
    if (slot !== undefined) return Promise.resolve(slot);
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  private give(slot: Slot): void {
    const next = this.waiting.shift();
    if (next === undefined) this.free.push(slot);
    else next.resolve(slot);
  }
}

/** One shard's memory, shared with the threads. It grows to the largest shard seen and stays. */
class Slot {
  private table: Int32Array<SharedArrayBuffer> = new Int32Array(new SharedArrayBuffer(0));
  private records: Uint8Array<SharedArrayBuffer> = new Uint8Array(new SharedArrayBuffer(0));
  private pixels: SharedArrayBuffer = new SharedArrayBuffer(0);

  /** Copies records in, back to back: threads then get two buffers rather than many. */
  load(sampleIds: Int32Array, records: Uint8Array[]): Pick<InputTask, 'table' | 'records'> {
    const n = records.length;
    const bytes = records.reduce((sum, record) => sum + record.length, 0);
    if (this.table.length < 2 * n + 1) this.table = new Int32Array(new SharedArrayBuffer(4 * (2 * n + 1)));
    if (this.records.length < bytes) this.records = new Uint8Array(new SharedArrayBuffer(bytes));
    this.table.set(sampleIds);
    let at = 0;
    records.forEach((record, i) => {
      this.table[n + i] = at;
      this.records.set(record, at);
      at += record.length;
    });
    this.table[2 * n] = at;
    return { table: this.table, records: this.records };
  }

  images(bytes: number): Uint8Array<SharedArrayBuffer> {
    if (this.pixels.byteLength < bytes) this.pixels = alignedSharedBuffer(bytes);
    return new Uint8Array(this.pixels, 0, bytes);
  }
}

function undecodable({ step, epoch }: EncodedShard, { sampleId, reason }: InputFailure): BraidError {
  return new BraidError('INVALID_DATA', `sample ${sampleId}: found ${reason}, expected an image that decodes`, {
    remedy: '`braid data check <recipe>` decodes every sample and names the files that are damaged.',
    details: { sampleId, step, epoch },
  });
}

function closedError(): BraidError {
  return new BraidError('CANCELLED', 'the input pool is closed');
}
