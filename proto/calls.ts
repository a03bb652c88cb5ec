/**
 * A service's interface, called: `connect(workerService, address, { peer })` is a WorkerService.
 *
 *     const { losses } = await worker.compute({ run, generation, step, distillWeight }, { signal, timeoutMs });
 *     const state = await collect(worker.readState({ run, generation, step }, { signal }), { maxBytes });
 *     await worker.writeState(parts({ run, generation, step }, state), { signal });
 *
 * What fails throws a BraidError: the server's own, the signal's reason, or WORKER_LOST naming the peer.
 */
import { Client, type Metadata, type MethodDefinition, type ServiceError, status } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { traceparent } from '../core/spans.ts';
import { showing, TRACEPARENT_KEY } from './access.ts';
import { channel } from './channel.ts';
import type { Service } from './load.ts';
import type { Call, Messages } from './messages.ts';
import { fromStatus, whyUnreachable } from './status.ts';
import { write } from './stream.ts';
import type { Tls } from './tls.ts';

type ReadyCall = Required<Call>;

export type Connection<Calls> = Calls & {
  /**
   * Resolves when the peer answers.
   * @throws BraidError WORKER_LOST after `timeoutMs`; UNAUTHORIZED when the two do not trust one another; the signal's reason
   */
  ready(call: ReadyCall): Promise<void>;
  /** Ends the connection; calls under way fail. */
  close(): void;
};

/** How often a connection that does not come about is asked why. */
const WHY_NOT_INTERVAL_MS = 1_000;
/** gRPC's word for a peer that accepts and closes before it has said anything; so does one that is just ending, but not for long. */
const CLOSED_AT_ONCE = /Failed to connect/;
const CLOSED_TIMES = 3;

type Method = MethodDefinition<object, object>;

export interface ConnectOptions {
  /** Names the server in errors: "worker 1 (host a, pid 7)". */
  peer: string;
  /** null: in clear text. */
  tls?: Tls | null;
  /** What a call of this rpc ("join") shows of its right to be made; asked at every call. null: nothing. */
  secret?(rpc: string): string | null;
}

export function connect<Calls extends object>(
  service: Service<Calls>,
  address: string,
  { peer, tls = null, secret = () => null }: ConnectOptions,
): Connection<Calls> {
  const { credentials, options } = channel(address, tls);
  const client = new Client(address, credentials, options);
  const calls: Record<string, unknown> = {};
  for (const [rpc, method] of Object.entries<Method>(service.methods)) {
    const to = () => ({ client, method, peer, metadata: traced(showing(secret(rpc))) });
    calls[rpc] = method.responseStream
      ? (request: object, call: Call) => pull(to(), request, call)
      : method.requestStream
        ? (messages: Messages<object>, call: Call) => push(to(), messages, call)
        : (request: object, call: Call) => unary(to(), request, call);
  }
  const ready = (call: ReadyCall) => untilReady(client, call, { peer, secured: tls !== null });
  return Object.assign(calls, { ready, close: () => client.close() }) as Connection<Calls>;
}

/** What is called is part of the span under way. */
function traced(metadata: Metadata): Metadata {
  const header = traceparent();
  if (header !== null) metadata.set(TRACEPARENT_KEY, header);
  return metadata;
}

/** Whom a call goes to, and with what. */
interface Target {
  client: Client;
  method: Method;
  peer: string;
  metadata: Metadata;
}

async function unary({ client, method, peer, metadata }: Target, request: object, call: Call): Promise<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<object>();
  const sent = client.makeUnaryRequest(
    path,
    requestSerialize,
    responseDeserialize,
    request,
    metadata,
    deadline(call),
    (error, response) => (error === null ? resolve(response!) : reject(error)),
  );
  return settled(promise, () => sent.cancel(), call.signal, peer);
}

async function* pull({ client, method, peer, metadata }: Target, request: object, call: Call): AsyncGenerator<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const stream = client.makeServerStreamRequest(
    path,
    requestSerialize,
    responseDeserialize,
    request,
    metadata,
    deadline(call),
  );
  const cancel = () => stream.cancel();
  call.signal.addEventListener('abort', cancel);
  stream.on('error', () => {}); // also after the reader has left: cancelling is an error to grpc-js
  try {
    for await (const message of stream) yield message;
  } catch (thrown) {
    throw fromStatus(thrown, peer, call.signal);
  } finally {
    call.signal.removeEventListener('abort', cancel);
    cancel(); // a reader that leaves early; nothing once the call has ended
  }
}

async function push(
  { client, method, peer, metadata }: Target,
  messages: Messages<object>,
  call: Call,
): Promise<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<object>();
  const over = new AbortController(); // the server may answer, or fail, before it has read everything
  const sent = client.makeClientStreamRequest(
    path,
    requestSerialize,
    responseDeserialize,
    metadata,
    deadline(call),
    (error, response) => {
      over.abort();
      if (error === null) resolve(response!);
      else reject(error);
    },
  );
  const answer = settled(promise, () => sent.cancel(), call.signal, peer);
  answer.catch(() => {}); // awaited below, perhaps only after a write has failed
  try {
    for await (const message of messages) await write(sent, message, over.signal);
    sent.end();
  } catch (thrown) {
    if (!over.signal.aborted) {
      sent.cancel(); // the messages' source failed: that is the error
      throw thrown;
    }
  }
  return answer;
}

async function settled(
  answer: Promise<object>,
  cancel: () => void,
  signal: AbortSignal,
  peer: string,
): Promise<object> {
  signal.addEventListener('abort', cancel);
  try {
    return await answer;
  } catch (thrown) {
    throw fromStatus(thrown, peer, signal);
  } finally {
    signal.removeEventListener('abort', cancel);
  }
}

/** Waits for a connection, and asks now and then why there is none: gRPC would only say so to a call. */
async function untilReady(
  client: Client,
  { signal, timeoutMs }: ReadyCall,
  { peer, secured }: { peer: string; secured: boolean },
): Promise<void> {
  const end = Date.now() + timeoutMs;
  for (let closed = 0; ; ) {
    const left = end - Date.now();
    if (await readyWithin(client, Math.min(left, WHY_NOT_INTERVAL_MS), signal)) return;
    const error = await whyNot(client, peer, signal);
    if (error === null) return;
    if (signal.aborted || error.code === 'UNAUTHORIZED') throw error;
    closed = CLOSED_AT_ONCE.test(error.message) ? closed + 1 : 0;
    if (closed === CLOSED_TIMES) {
      const why = secured ? "does not believe this process's certificate" : 'expects TLS';
      throw new BraidError('UNAUTHORIZED', `${peer} closes every connection at once: it probably ${why}`, {
        remedy: 'Start both ends with --tls and certificates of one CA, or both without.',
        cause: error,
      });
    }
    if (left > WHY_NOT_INTERVAL_MS) continue;
    const cause = error.cause as Partial<ServiceError> | undefined;
    const why = cause?.code === status.UNAVAILABLE ? `: ${whyUnreachable(cause.details ?? '')}` : '';
    throw new BraidError('WORKER_LOST', `${peer} did not answer within ${timeoutMs / 1000} s${why}`, {
      remedy: 'Look whether it runs, and whether it can be reached at that address from here.',
      cause: error,
    });
  }
}

/** @throws the signal's reason */
function readyWithin(client: Client, ms: number, signal: AbortSignal): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const aborted = () => reject(signal.reason);
  signal.throwIfAborted();
  signal.addEventListener('abort', aborted);
  client.waitForReady(Date.now() + ms, (error?: Error) => resolve(error === undefined));
  return promise.finally(() => signal.removeEventListener('abort', aborted));
}

/** What a call would fail with now, for want of a connection; null: it has one. */
async function whyNot(client: Client, peer: string, signal: AbortSignal): Promise<BraidError | null> {
  const nothing = (bytes: Buffer) => bytes;
  const { promise, resolve } = Promise.withResolvers<ServiceError | null>();
  const options = { deadline: Date.now() + WHY_NOT_INTERVAL_MS };
  const sent = client.makeUnaryRequest('/braid.v1.None/None', nothing, nothing, Buffer.alloc(0), options, resolve);
  const cancel = () => sent.cancel();
  signal.addEventListener('abort', cancel);
  const error = await promise;
  signal.removeEventListener('abort', cancel);
  return error?.code === status.UNIMPLEMENTED ? null : fromStatus(error, peer, signal);
}

/** gRPC counts from the wall clock. */
function deadline({ timeoutMs }: Call): { deadline?: number } {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}
