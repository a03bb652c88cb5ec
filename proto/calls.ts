/**
 * A service's interface, called: `connect(workerService, address, { peer })` is a WorkerService.
 *
 *     const { losses } = await worker.compute({ run, generation, step, distillWeight }, { signal, timeoutMs });
 *     const state = await collect(worker.readState({ run, generation, step }, { signal }), { maxBytes });
 *     await worker.writeState(parts({ run, generation, step }, state), { signal });
 *
 * What fails throws a BraidError: the server's own, the signal's reason, or WORKER_LOST naming the peer.
 */
import { Client, credentials, type MethodDefinition } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { channelOptions } from './channel.ts';
import type { Service } from './load.ts';
import type { Call, Messages } from './messages.ts';
import { fromStatus } from './status.ts';
import { write } from './stream.ts';

export type Connection<Calls> = Calls & {
  /** Resolves when the peer answers. @throws BraidError WORKER_LOST after `timeoutMs`, or the signal's reason */
  ready(call: { signal: AbortSignal; timeoutMs: number }): Promise<void>;
  /** Ends the connection; calls under way fail. */
  close(): void;
};

type Method = MethodDefinition<object, object>;

/** @param peer names the server in errors: "worker 1 (host a, pid 7)" */
export function connect<Calls extends object>(
  service: Service<Calls>,
  address: string,
  { peer }: { peer: string },
): Connection<Calls> {
  const client = new Client(address, credentials.createInsecure(), channelOptions(address));
  const calls: Record<string, unknown> = {};
  for (const [rpc, method] of Object.entries<Method>(service.methods)) {
    calls[rpc] = method.responseStream
      ? (request: object, call: Call) => pull(client, method, request, call, peer)
      : method.requestStream
        ? (messages: Messages<object>, call: Call) => push(client, method, messages, call, peer)
        : (request: object, call: Call) => unary(client, method, request, call, peer);
  }
  const ready = (call: { signal: AbortSignal; timeoutMs: number }) => waitForReady(client, call, peer);
  return Object.assign(calls, { ready, close: () => client.close() }) as Connection<Calls>;
}

async function unary(client: Client, method: Method, request: object, call: Call, peer: string): Promise<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<object>();
  const sent = client.makeUnaryRequest(
    path,
    requestSerialize,
    responseDeserialize,
    request,
    deadline(call),
    (error, response) => (error === null ? resolve(response!) : reject(error)),
  );
  return settled(promise, () => sent.cancel(), call.signal, peer);
}

async function* pull(
  client: Client,
  method: Method,
  request: object,
  call: Call,
  peer: string,
): AsyncGenerator<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const stream = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request, deadline(call));
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
  client: Client,
  method: Method,
  messages: Messages<object>,
  call: Call,
  peer: string,
): Promise<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  call.signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<object>();
  const over = new AbortController(); // the server may answer, or fail, before it has read everything
  const sent = client.makeClientStreamRequest(
    path,
    requestSerialize,
    responseDeserialize,
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

function waitForReady(client: Client, call: { signal: AbortSignal; timeoutMs: number }, peer: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const aborted = () => reject(call.signal.reason);
  call.signal.throwIfAborted();
  call.signal.addEventListener('abort', aborted);
  client.waitForReady(Date.now() + call.timeoutMs, (error?: Error) => {
    if (error === undefined) resolve();
    else
      reject(
        new BraidError('WORKER_LOST', `${peer} did not answer within ${call.timeoutMs / 1000} s`, { cause: error }),
      );
  });
  return promise.finally(() => call.signal.removeEventListener('abort', aborted));
}

/** gRPC counts from the wall clock. */
function deadline({ timeoutMs }: Call): { deadline?: number } {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}
