/** A replica's shards, read ahead of need: pulled from the coordinator, decoded by the input pool, handed out by step. */
import { asBraidError, BraidError } from '../core/errors.ts';
import type { ImageShape } from '../input/dataset.ts';
import type { Samples } from '../input/indexed.ts';
import { decodeShard, type EncodedShard } from '../input/shard.ts';
import type { Messages, Part } from '../proto/messages.ts';
import { payloads } from '../proto/parts.ts';
import type { InputPool, ReadyShard } from './input/pool.ts';
import type { InputFailure } from './input/task.ts';

export interface ShardSource {
  run: string;
  generation: number;
  firstStep: number;
  /** What every image must be. */
  image: ImageShape;
  /** The largest shard that is accepted: on the wire, and its samples, which are given memory for their images. */
  maxBytes: number;
  maxSamples: number;
  pool: InputPool;
  /** What shards without bytes are read from; null: they come with them. */
  samples: Samples | null;
  /** Opens the stream of shards. */
  pull(signal: AbortSignal): Messages<Part>;
  /** A shard has come, of so many bytes. */
  onRead(bytes: number): void;
}

/** Reads until its pool's buffers are full, and goes on when a shard is released. */
export class ShardReader {
  private readonly source: ShardSource;
  private readonly over = new AbortController();
  /** By step: ready, and not released yet. */
  private readonly ready = new Map<number, ReadyShard>();
  private readonly waiting = new Map<number, PromiseWithResolvers<ReadyShard>>();
  /** The step of the shard that the stream has next. */
  private next: number;
  /** Why no more shards come: the stream's failure, or its end. */
  private ended: BraidError | null = null;

  constructor(source: ShardSource) {
    this.source = source;
    this.next = source.firstStep;
    void this.read();
  }

  /**
   * The shard of a step; the same again until it is released, and none from then on.
   * @throws BraidError why there is none: a sample that cannot be decoded, the coordinator gone, the reader closed
   */
  take(step: number): Promise<ReadyShard> {
    const shard = this.ready.get(step);
    if (shard !== undefined) return Promise.resolve(shard);
    if (this.ended !== null) return Promise.reject(this.ended);
    if (step < this.next) {
      return Promise.reject(
        new BraidError('PROTOCOL', `the shard of step ${step} is asked for, the next is ${this.next}`),
      );
    }
    const wanted = this.waiting.get(step) ?? Promise.withResolvers<ReadyShard>();
    this.waiting.set(step, wanted);
    return wanted.promise;
  }

  /** Every shard that is left, in order, each released when the next is asked for. */
  async *rest(firstStep: number): AsyncGenerator<ReadyShard> {
    for (let step = firstStep; ; step++) {
      let shard: ReadyShard;
      try {
        shard = await this.take(step);
      } catch (error) {
        if (error === END) return;
        throw error;
      }
      yield shard;
      this.release(step);
    }
  }

  /** How many are ready and not released. */
  get readyShards(): number {
    return this.ready.size;
  }

  release(step: number): void {
    this.ready.get(step)?.release();
    this.ready.delete(step);
  }

  close(): void {
    this.end(new BraidError('CANCELLED', 'the shards are no longer read'));
    this.over.abort(this.ended);
    for (const step of [...this.ready.keys()]) this.release(step);
  }

  private async read(): Promise<void> {
    const { pool } = this.source;
    try {
      for await (const { encoded, unread } of oneAhead(this.encoded())) {
        const shard = await pool.prepare(encoded, unread);
        this.next++;
        if (this.ended !== null) return shard.release();
        this.ready.set(shard.step, shard);
        this.waiting.get(shard.step)?.resolve(shard);
        this.waiting.delete(shard.step);
      }
      this.end(END);
    } catch (thrown) {
      this.end(asBraidError(thrown));
    }
  }

  private async *encoded(): AsyncGenerator<Filled> {
    const { run, generation, maxBytes, samples, pull, onRead, firstStep } = this.source;
    let next = firstStep;
    for await (const { bytes } of payloads(pull(this.over.signal), { maxBytes, expect: { run, generation } })) {
      onRead(bytes.length);
      const encoded = decodeShard(bytes);
      this.check(encoded, next++);
      if ((encoded.encoding === 'by-id') !== (samples !== null)) {
        const how = samples === null ? 'without' : 'with';
        throw new BraidError('PROTOCOL', `the shard of step ${encoded.step} comes ${how} its bytes`);
      }
      yield samples === null ? { encoded, unread: [] } : await filled(encoded, samples);
    }
  }

  private check({ step, image, sampleIds: { length: samples } }: EncodedShard, next: number): void {
    const { image: wanted, maxSamples } = this.source;
    const shape = ({ height, width, channels }: ImageShape) => `${height}x${width}x${channels}`;
    if (step !== next) throw new BraidError('PROTOCOL', `the shard of step ${step} came, ${next} was next`);
    if (samples > maxSamples) {
      throw new BraidError(
        'PROTOCOL',
        `the shard of step ${step} has ${samples} samples, at most ${maxSamples} are expected`,
      );
    }
    if (shape(image) !== shape(wanted)) {
      throw new BraidError('PROTOCOL', `the shard of step ${step} has images of ${shape(image)}, not ${shape(wanted)}`);
    }
  }

  private end(reason: BraidError): void {
    this.ended ??= reason;
    for (const { reject } of this.waiting.values()) reject(this.ended);
    this.waiting.clear();
  }
}

/** A shard with its bytes, and the samples that could not be read. */
interface Filled {
  encoded: EncodedShard;
  unread: InputFailure[];
}

async function filled(encoded: EncodedShard, samples: Samples): Promise<Filled> {
  const unread: InputFailure[] = [];
  const read = async (sampleId: number, place: number) => {
    try {
      return await samples.read(sampleId);
    } catch (thrown) {
      unread.push({ place, sampleId, reason: asBraidError(thrown).message });
      return NO_BYTES;
    }
  };
  const records = await Promise.all(Array.from(encoded.sampleIds, read));
  return { encoded: { ...encoded, encoding: 'image-file', records }, unread };
}

const NO_BYTES = new Uint8Array(0);

/** The same, the next one asked for while the one before is being used. */
async function* oneAhead<T>(items: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = items.next();
  try {
    for (;;) {
      const { done, value } = await next;
      if (done) return;
      next = items.next();
      next.catch(() => {}); // told when its turn comes
      yield value;
    }
  } finally {
    void items.return(undefined).catch(() => {});
  }
}

const END = new BraidError('PROTOCOL', 'a shard is asked for after the last one');
