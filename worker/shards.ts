/** A replica's shards, read ahead of need: pulled from the coordinator, decoded by the input pool, handed out by step. */
import { asBraidError, BraidError } from '../core/errors.ts';
import { decodeShard } from '../input/shard.ts';
import type { Messages, Part } from '../proto/messages.ts';
import { payloads } from '../proto/parts.ts';
import type { InputPool, ReadyShard } from './input/pool.ts';

export interface ShardSource {
  run: string;
  generation: number;
  /** The largest shard on the wire that is accepted. */
  maxBytes: number;
  pool: InputPool;
  /** Opens the stream of shards. */
  pull(signal: AbortSignal): Messages<Part>;
}

/** Reads until its pool's buffers are full, and goes on when a shard is released. */
export class ShardReader {
  private readonly source: ShardSource;
  private readonly over = new AbortController();
  /** By step: ready, and not released yet. */
  private readonly ready = new Map<number, ReadyShard>();
  private readonly waiting = new Map<number, PromiseWithResolvers<ReadyShard>>();
  /** Why no more shards come: the stream's failure, or its end. */
  private ended: BraidError | null = null;

  constructor(source: ShardSource) {
    this.source = source;
    void this.read();
  }

  /**
   * The shard of a step, which must not be before one that has been released. The same again until then.
   * @throws BraidError why there is none: a sample that cannot be decoded, the coordinator gone, the reader closed
   */
  take(step: number): Promise<ReadyShard> {
    const shard = this.ready.get(step);
    if (shard !== undefined) return Promise.resolve(shard);
    if (this.ended !== null) return Promise.reject(this.ended);
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
    const { run, generation, maxBytes, pool, pull } = this.source;
    try {
      for await (const { bytes } of payloads(pull(this.over.signal), { maxBytes, expect: { run, generation } })) {
        const shard = await pool.prepare(decodeShard(bytes));
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

  private end(reason: BraidError): void {
    this.ended ??= reason;
    for (const { reject } of this.waiting.values()) reject(this.ended);
    this.waiting.clear();
  }
}

const END = new BraidError('PROTOCOL', 'a shard is asked for after the last one');
