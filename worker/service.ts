/** The Worker service: thin handlers over the worker's post. */
import { BraidError } from '../core/errors.ts';
import type { Messages, Part, PrepareRequest, StepRequest, WorkerService } from '../proto/messages.ts';
import { parts } from '../proto/parts.ts';
import type { Post } from './post.ts';

export interface ServiceOptions {
  /** The run and rank that joining gave; null before. */
  joined(): { run: string; rank: number } | null;
  openPost(request: PrepareRequest, signal: AbortSignal): Promise<Post>;
  /** Stop has been asked for. */
  onStop(): void;
}

export class Service implements WorkerService {
  private readonly options: ServiceOptions;
  private post: Post | null = null;

  constructor(options: ServiceOptions) {
    this.options = options;
  }

  async prepare(request: PrepareRequest, { signal }: { signal: AbortSignal }) {
    const joined = this.options.joined();
    if (joined === null || joined.run !== request.run || joined.rank !== request.rank) {
      const mine = joined === null ? 'has not joined any run' : `is rank ${joined.rank} of run ${joined.run}`;
      throw new BraidError(
        'VERSION_MISMATCH',
        `Prepare is for rank ${request.rank} of run ${request.run}, this worker ${mine}`,
      );
    }
    if (this.post !== null && request.generation <= this.post.request.generation) throw this.stale(request, this.post);
    const before = this.post;
    this.post = null;
    await before?.close();
    this.post = await this.options.openPost(request, signal);
    const { variables, stateLength, rounds, classifiers, outputLengths } = this.post.program;
    const phases = [...request.shardSizes.map((n) => `train@${n}`), 'test'];
    return {
      variables: JSON.stringify(variables),
      stateLength,
      rounds: rounds.map(({ gradientLength, segments, losses }) => ({
        gradientLength,
        segments: segments.map(({ name }) => name),
        losses,
      })),
      classifiers,
      outputLengths: request.branch === undefined ? [] : phases.map((phase) => outputLengths[phase]!),
    };
  }

  async *readState(request: StepRequest): AsyncGenerator<Part> {
    yield* parts(request, bytesOf(await this.at(request).readState()));
  }

  async writeState(stream: Messages<Part>) {
    await this.own().writeState(stream);
    return {};
  }

  async hashState(request: StepRequest) {
    return { sha256: await this.at(request).hashState() };
  }

  async compute(request: Parameters<WorkerService['compute']>[0]) {
    return this.at(request).compute(request);
  }

  async *forward(request: Parameters<WorkerService['forward']>[0]): AsyncGenerator<Part> {
    yield* parts(request, bytesOf(await this.at(request).forward(request)));
  }

  async backward(stream: Messages<Part>) {
    await this.own().backward(stream);
    return {};
  }

  async reduce(request: StepRequest, { signal }: { signal: AbortSignal }) {
    return this.at(request).reduce(request.step, signal);
  }

  async commit(request: Parameters<WorkerService['commit']>[0]) {
    await this.at(request).commit(request);
    return {};
  }

  async evaluate(request: StepRequest) {
    return { scores: await this.at(request).evaluate() };
  }

  async stop({ run }: StepRequest) {
    const mine = this.options.joined()?.run;
    if (run !== mine) throw new BraidError('VERSION_MISMATCH', `Stop is for run ${run}, this worker is in ${mine}`);
    this.options.onStop();
    return {};
  }

  async close(): Promise<void> {
    await this.post?.close();
  }

  /** The post that a message is for. @throws before any work is done */
  private at(request: Pick<StepRequest, 'run' | 'generation'>): Post {
    const post = this.own();
    if (request.run !== post.request.run) {
      throw new BraidError(
        'VERSION_MISMATCH',
        `this call is for run ${request.run}, worker ${post.request.rank} is in ${post.request.run}`,
      );
    }
    if (request.generation !== post.request.generation) throw this.stale(request, post);
    return post;
  }

  private own(): Post {
    if (this.post === null)
      throw new BraidError('STALE_GENERATION', 'this worker is in no generation: Prepare comes first');
    return this.post;
  }

  private stale({ generation }: Pick<StepRequest, 'generation'>, { request }: Post): BraidError {
    const message = `this call is for generation ${generation}, worker ${request.rank} is in ${request.generation}`;
    return new BraidError('STALE_GENERATION', message, { remedy: 'Prepare the worker for a later generation.' });
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
