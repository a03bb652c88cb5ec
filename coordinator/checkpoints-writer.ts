/**
 * Writes a run's checkpoints in a thread while training goes on. One is being written at a time: whoever has the next one
 * waits for it.
 */
import { Worker } from 'node:worker_threads';
import { asBraidError, BraidError, type ErrorCode } from '../core/errors.ts';
import type { Keeping, Written } from './checkpoints.ts';
import type { CheckpointFacts } from './checkpoints-manifest.ts';
import type { Place } from './checkpoints-store.ts';
import type { FlatState } from './group.ts';

export interface WriterOptions {
  place: Place;
  keeping: Keeping;
  /** The one that the run goes on from. */
  newest: Pick<Written, 'step' | 'path'> | null;
  /** Ends what is being written at once. */
  hard: AbortSignal;
  /** Seconds, monotonic. */
  now(): number;
  /** One is there to stay, `seconds` after `begunAt`. */
  onWritten(written: Written, seconds: number): void;
  onFailed(error: BraidError): void;
}

export interface ThreadRequest {
  facts: CheckpointFacts;
  states: FlatState[];
}

export type ThreadAnswer =
  | { kind: 'written'; written: Written }
  | { kind: 'failure'; code: ErrorCode; message: string; remedy: string };

export class CheckpointWriter {
  /** The newest that is there to stay. */
  newest: Pick<Written, 'step' | 'path'> | null;
  /** Why the latest could not be written; null: it could, or it is being written. */
  failure: BraidError | null = null;
  private readonly options: WriterOptions;
  private thread: Worker | null = null;
  /** Never rejected. */
  private writing: Promise<void> | null = null;

  constructor(options: WriterOptions) {
    this.options = options;
    this.newest = options.newest;
  }

  get busy(): boolean {
    return this.writing !== null;
  }

  /** Waits until nothing is being written: `failure` tells then whether it went well. */
  async settled(): Promise<void> {
    await this.writing;
  }

  /**
   * Begins to write; nothing else may be being written. What lies in shared memory is not copied: it must not change.
   * @param states which make up the network
   * @param begunAt when its reading began, by `now`
   */
  write(facts: CheckpointFacts, states: FlatState[], begunAt: number): void {
    if (this.writing !== null) throw new BraidError('INTERNAL', 'a checkpoint is being written already');
    this.failure = null;
    this.writing = this.inThread({ facts, states })
      .then((written) => {
        this.newest = written;
        this.options.onWritten(written, this.options.now() - begunAt);
      })
      .catch((thrown) => {
        this.failure = asBraidError(thrown);
        this.options.onFailed(this.failure);
      })
      .finally(() => {
        this.writing = null;
      });
  }

  /** Waits for what is being written, unless `hard` ends it, and ends the thread. */
  async close(): Promise<void> {
    await this.settled();
    await this.thread?.terminate();
  }

  private async inThread(request: ThreadRequest): Promise<Written> {
    const { place, keeping, hard } = this.options;
    hard.throwIfAborted();
    this.thread ??= this.start({ place, keeping });
    const { thread } = this;
    const { promise, resolve, reject } = Promise.withResolvers<ThreadAnswer>();
    const died = (code: number) => reject(new BraidError('INTERNAL', `the checkpoint thread ended with code ${code}`));
    const abort = () => reject(hard.reason);
    thread.on('message', resolve).on('error', reject).on('exit', died);
    hard.addEventListener('abort', abort);
    try {
      thread.postMessage(request);
      const answer = await promise;
      if (answer.kind === 'written') return answer.written;
      throw new BraidError(answer.code, answer.message, { remedy: answer.remedy });
    } finally {
      thread.off('message', resolve).off('error', reject).off('exit', died);
      hard.removeEventListener('abort', abort);
    }
  }

  private start(workerData: Pick<WriterOptions, 'place' | 'keeping'>): Worker {
    const thread = new Worker(new URL('./checkpoints-thread.ts', import.meta.url), { workerData });
    const forget = () => {
      this.thread = null; // the next checkpoint has another one
    };
    return thread.on('error', forget).on('exit', forget);
  }
}
