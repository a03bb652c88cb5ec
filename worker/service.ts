/** The Worker service: thin handlers over the worker's post. */
import { BraidError } from '../core/errors.ts';
import { bytesOf } from '../core/floats.ts';
import type { WorkerMetrics, WorkerState } from '../core/metrics.ts';
import { within } from '../core/spans.ts';
import type {
  Messages,
  Part,
  PrepareRequest,
  StatusRequest,
  StatusResponse,
  StepRequest,
  TraceRequest,
  TraceResponse,
  WorkerService,
} from '../proto/messages.ts';
import { parts } from '../proto/parts.ts';
import { requireSoundPrepare } from './bounds.ts';
import type { Post } from './post.ts';
import { TraceSpans } from './trace.ts';
import type { Vitals } from './vitals.ts';

export interface ServiceOptions {
  /** The run and member number that joining gave; null before. */
  joined(): { run: string; member: number } | null;
  openPost(
    request: PrepareRequest,
    before: Post | null,
    signal: AbortSignal,
  ): Promise<{ post: Post; connected: Promise<void> }>;
  metrics: WorkerMetrics;
  /** Between one sign of life and the next; see StatusResponse. */
  vitals(): Vitals;
  /** Stop has been asked for. */
  onStop(): void;
  /** Seconds, monotonic. */
  now(): number;
}

export interface WorkerProgress {
  /** waiting: it has joined, and has no state yet. */
  state: WorkerState;
  /** Steps committed. */
  step: number;
  generation: number;
}

export class Service implements WorkerService {
  private readonly options: ServiceOptions;
  private post: Post | null = null;
  private readonly spans = new TraceSpans();
  /** Settles when no post is being opened. */
  private opening: Promise<void> = Promise.resolve();
  /** The latest generation that this worker was told of. */
  generation = 0;
  /** What is being worked on, and since when; null between calls. */
  private doing: { phase: string; since: number } | null = null;

  constructor(options: ServiceOptions) {
    this.options = options;
  }

  /** In the current generation; null before the first. */
  get rank(): number | null {
    return this.post?.request.rank ?? null;
  }

  get progress(): WorkerProgress {
    const step = this.post?.shownStep ?? null;
    const state = this.options.joined() === null ? 'joining' : step === null ? 'waiting' : 'training';
    return { state, step: step ?? 0, generation: this.generation };
  }

  /** Shards that wait, decoded, for the device. */
  get readyShards(): number {
    return this.post?.readyShards ?? 0;
  }

  async prepare(request: PrepareRequest, { signal }: { signal: AbortSignal }) {
    this.requireRun(request.run, 'Prepare');
    requireSoundPrepare(request);
    if (request.generation <= this.generation) throw this.stale(request);
    this.generation = request.generation;
    const { post, connected } = await this.during('prepare', () => this.succeed(request, signal));
    await this.during('connect', () => connected);
    const { variables, stateLength, rounds, classifiers, outputLengths } = post.program;
    const phases = [...post.microSizes.map((n) => `train@${n}`), 'test'];
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
      ...(post.position !== null && { held: post.position }),
    };
  }

  async status({ run }: StatusRequest): Promise<StatusResponse> {
    const { member } = this.requireRun(run, 'Status');
    const { doing, post } = this;
    return {
      member,
      generation: this.generation,
      step: post?.shownStep ?? 0,
      phase: doing?.phase ?? '',
      phaseSeconds: doing === null ? 0 : this.options.now() - doing.since,
      ...this.options.vitals(),
      readyShards: this.readyShards,
    };
  }

  async trace({ run }: TraceRequest): Promise<TraceResponse> {
    this.requireRun(run, 'Trace');
    return this.spans.take();
  }

  async *readState(request: StepRequest): AsyncGenerator<Part> {
    const state = bytesOf(await this.at(request).readState());
    this.options.metrics.bytes.inc({ link: 'state', direction: 'sent' }, state.length);
    yield* parts(request, state);
  }

  async writeState(stream: Messages<Part>) {
    await this.own().writeState(stream);
    return {};
  }

  async hashState(request: StepRequest) {
    return { sha256: await this.at(request).hashState() };
  }

  async compute(request: Parameters<WorkerService['compute']>[0]) {
    const post = this.at(request);
    return this.during('compute', () => post.compute(request));
  }

  async *forward(request: Parameters<WorkerService['forward']>[0]): AsyncGenerator<Part> {
    const post = this.at(request);
    yield* parts(request, bytesOf(await this.during('forward', () => post.forward(request))));
  }

  async backward(stream: Messages<Part>) {
    const post = this.own();
    await this.during('backward', () => post.backward(stream));
    return {};
  }

  async inspect(request: StepRequest) {
    return { badSamples: await this.at(request).inspect(request.step) };
  }

  async reduce(request: StepRequest, { signal }: { signal: AbortSignal }) {
    const post = this.at(request);
    return this.during('reduce', () => post.reduce(request.step, signal));
  }

  async commit(request: Parameters<WorkerService['commit']>[0]) {
    const post = this.at(request);
    await this.during('commit', () => post.commit(request));
    return {};
  }

  async evaluate(request: StepRequest) {
    const post = this.at(request);
    return { scores: await this.during('evaluate', () => post.evaluate()) };
  }

  async stop({ run }: StepRequest) {
    this.requireRun(run, 'Stop');
    this.options.onStop();
    return {};
  }

  async close(): Promise<void> {
    this.spans.close();
    await this.opening;
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
    if (request.generation !== this.generation) throw this.stale(request);
    return post;
  }

  private own(): Post {
    if (this.post === null)
      throw new BraidError('STALE_GENERATION', 'this worker is in no generation: Prepare comes first');
    return this.post;
  }

  /** The next post, made of the one before: one after another, as a call that was given up may still be at it. */
  private succeed(request: PrepareRequest, signal: AbortSignal): ReturnType<ServiceOptions['openPost']> {
    const opening = this.opening.then(async () => {
      if (request.generation !== this.generation) throw this.stale(request);
      const before = this.post;
      this.post = null;
      const opened = await this.options.openPost(request, before, signal);
      this.post = opened.post;
      return opened;
    });
    this.opening = opening.then(
      () => {},
      () => {},
    );
    return opening;
  }

  private requireRun(run: string, rpc: string): { member: number } {
    const joined = this.options.joined();
    if (joined?.run === run) return joined;
    const mine = joined === null ? 'has not joined any run' : `is in run ${joined.run}`;
    throw new BraidError('VERSION_MISMATCH', `${rpc} is for run ${run}, this worker ${mine}`);
  }

  private stale({ generation }: Pick<StepRequest, 'generation'>): BraidError {
    const message = `this call is for generation ${generation}, the worker is in ${this.generation}`;
    return new BraidError('STALE_GENERATION', message, { remedy: 'Prepare the worker for a later generation.' });
  }

  private async during<T>(phase: string, work: () => Promise<T>): Promise<T> {
    const doing = { phase, since: this.options.now() };
    this.doing = doing;
    try {
      const result = await within(phase, work);
      this.options.metrics.phaseSeconds.observe({ phase }, this.options.now() - doing.since);
      return result;
    } finally {
      if (this.doing === doing) this.doing = null;
    }
  }
}
