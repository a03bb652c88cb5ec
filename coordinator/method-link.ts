/** A share of the method in a thread of its own, as if it were here: each of its functions is a message there and one back. */
import { SHARE_ENV, Worker } from 'node:worker_threads';
import { BraidError, type ErrorCode } from '../core/errors.ts';
import { type Span, tell, traceparent } from '../core/spans.ts';
import type { Program, ProgramOptions } from '../nn/device.ts';
import type { Call } from '../proto/messages.ts';
import type { Share, Trust } from './method-share.ts';
import type { Plan } from './plan.ts';

export interface ThreadOptions extends Omit<ProgramOptions, 'role'> {
  branches: number;
  /** Which of the method's threads it is. */
  index: number;
  secret: string;
  tlsFolder: string | null;
}

type Name = Exclude<keyof Share, 'program' | 'close'>;

export type LinkRequest =
  | {
      kind: 'call';
      id: number;
      name: Name;
      request: object;
      timeoutMs: number | undefined;
      /** null: no spans are wanted. */
      traceparent: string | null;
    }
  | { kind: 'cancel'; id: number };

export type LinkAnswer =
  | { kind: 'ready'; program: Program }
  | { kind: 'answer'; id: number; answer: unknown }
  | { kind: 'span'; span: Span }
  | {
      kind: 'failure';
      id: number | null;
      code: ErrorCode;
      message: string;
      remedy: string;
      details: Record<string, unknown>;
    };

/** @throws BraidError CAPTURE or DEVICE */
export async function openShare(
  { recipe, image, classes, shardSizes, branches }: Plan,
  trust: Trust,
  index: number,
): Promise<Share> {
  const { secret, tls } = trust;
  const workerData: ThreadOptions = {
    recipe,
    image,
    classes,
    shardSizes,
    branches,
    index,
    secret,
    tlsFolder: tls?.folder ?? null,
  };
  // TensorFlow reads its environment from the process's, which the thread sets.
  const thread = new Worker(new URL('./method-thread.ts', import.meta.url), { workerData, env: SHARE_ENV });
  const { promise, resolve, reject } = Promise.withResolvers<Program>();
  thread.once('message', (answer: LinkAnswer) =>
    answer.kind === 'ready' ? resolve(answer.program) : reject(errorOf(answer)),
  );
  thread.once('error', reject).once('exit', (code) => reject(endedWith(code)));
  try {
    return new Link(thread, await promise);
  } catch (error) {
    await thread.terminate();
    throw error;
  }
}

class Link implements Share {
  readonly program: Program;
  private readonly thread: Worker;
  private readonly pending = new Map<number, PromiseWithResolvers<unknown>>();
  private nextId = 1;
  /** Why nothing is called any more. */
  private ended: BraidError | null = null;

  readonly begin = this.caller('begin');
  readonly gather = this.caller('gather');
  readonly fuse = this.caller('fuse');
  readonly scatter = this.caller('scatter');
  readonly sum = this.caller('sum');
  readonly apply = this.caller('apply');
  readonly evaluate = this.caller('evaluate');
  readonly write = this.caller('write');
  readonly read = this.caller('read');
  readonly hash = this.caller('hash');

  constructor(thread: Worker, program: Program) {
    this.thread = thread;
    this.program = program;
    thread.on('message', (answer: LinkAnswer) => this.receive(answer));
    thread.on('error', (cause) =>
      this.end(new BraidError('DEVICE', `a thread of the method died: ${cause.message}`, { cause })),
    );
    thread.on('exit', (code) => this.end(endedWith(code)));
  }

  async close(): Promise<void> {
    this.end(new BraidError('DEVICE', 'the method is closed'));
    await this.thread.terminate();
  }

  private caller<N extends Name>(name: N) {
    return (request: Parameters<Share[N]>[0], call: Call) => this.call(name, request, call) as ReturnType<Share[N]>;
  }

  private async call(name: Name, request: object, { signal, timeoutMs }: Call): Promise<unknown> {
    signal.throwIfAborted();
    if (this.ended !== null) throw this.ended;
    const id = this.nextId++;
    const answer = Promise.withResolvers<unknown>();
    this.pending.set(id, answer);
    // What is given up is waited for all the same: it may be writing where the next call will.
    const cancel = () => this.thread.postMessage({ kind: 'cancel', id } satisfies LinkRequest);
    signal.addEventListener('abort', cancel);
    try {
      const call = { kind: 'call', id, name, request, timeoutMs, traceparent: traceparent() } satisfies LinkRequest;
      this.thread.postMessage(call);
      return await answer.promise;
    } catch (thrown) {
      throw signal.aborted ? signal.reason : thrown;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }

  private receive(message: LinkAnswer): void {
    if (message.kind === 'span') tell(message.span);
    if (message.kind === 'ready' || message.kind === 'span' || message.id === null) return;
    const pending = this.pending.get(message.id);
    this.pending.delete(message.id);
    if (message.kind === 'answer') pending?.resolve(message.answer);
    else pending?.reject(errorOf(message));
  }

  private end(reason: BraidError): void {
    this.ended ??= reason;
    for (const { reject } of this.pending.values()) reject(this.ended);
    this.pending.clear();
  }
}

function endedWith(code: number): BraidError {
  return new BraidError('DEVICE', `a thread of the method ended with code ${code}`);
}

function errorOf(message: LinkAnswer): BraidError {
  if (message.kind !== 'failure') return new BraidError('INTERNAL', `the method's thread said ${message.kind}`);
  const { code, message: text, remedy, details } = message;
  return new BraidError(code, text, { remedy, details });
}
