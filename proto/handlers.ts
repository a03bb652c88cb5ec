/**
 * A service's interface, served: requests in, errors out as statuses, cancellation as a signal, backpressure by waiting.
 *
 *     implement(server, workerService, {
 *       compute: async (request, { signal }) => ...,
 *       async *readState(request) { yield* parts(request, await state()); },
 *       writeState: async (stream) => { await collect(stream, ...); return {}; },
 *       ...
 *     });
 */
import type { EventEmitter } from 'node:events';
import type * as grpc from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { following } from '../core/spans.ts';
import { TRACEPARENT_KEY } from './access.ts';
import type { Service } from './load.ts';
import type { Call, Messages } from './messages.ts';
import { toStatus } from './status.ts';
import { write } from './stream.ts';

type Received = { metadata: grpc.Metadata };
type Handler = (request: unknown, call: Call) => unknown;

/** Adds a service to a server. Every rpc must be there; the compiler says which is not. */
export function implement<Calls extends object>(server: grpc.Server, service: Service<Calls>, handlers: Calls): void {
  const definition: Record<string, grpc.MethodDefinition<object, object>> = {};
  const implementation: Record<string, grpc.UntypedHandleCall> = {};
  for (const [rpc, method] of Object.entries<grpc.MethodDefinition<object, object>>(service.methods)) {
    const handler = (handlers as Record<string, Handler>)[rpc]!.bind(handlers);
    definition[rpc] = method;
    implementation[rpc] = method.responseStream
      ? serverStream(handler)
      : method.requestStream
        ? clientStream(handler)
        : unary(handler);
  }
  server.addService(definition as grpc.ServiceDefinition, implementation);
}

function unary(handler: Handler): grpc.handleUnaryCall<unknown, unknown> {
  return (call, callback) => answer(call, () => handler(call.request, { signal: signalOf(call) }), callback);
}

function clientStream(handler: Handler): grpc.handleClientStreamingCall<unknown, unknown> {
  return (call, callback) => answer(call, () => handler(call, { signal: signalOf(call) }), callback);
}

function serverStream(handler: Handler): grpc.handleServerStreamingCall<unknown, unknown> {
  return async (call) => {
    const signal = signalOf(call);
    try {
      await asPart(call, async () => {
        const messages = handler(call.request, { signal }) as Messages<unknown>;
        for await (const message of messages) await write(call, message, signal);
      });
      call.end();
    } catch (thrown) {
      call.emit('error', toStatus(thrown)); // grpc-js: ends the call with this status
    }
  };
}

async function answer(call: Received, handle: () => unknown, callback: grpc.sendUnaryData<unknown>): Promise<void> {
  try {
    callback(null, await asPart(call, handle));
  } catch (thrown) {
    callback(toStatus(thrown));
  }
}

/** What is done for a call is part of the span that the caller made it in. */
function asPart<T>({ metadata }: Received, work: () => T): T {
  return following(() => metadata.get(TRACEPARENT_KEY)[0]?.toString(), work);
}

/** Aborts when the client has cancelled, hit its deadline, or gone. */
function signalOf(call: EventEmitter): AbortSignal {
  const controller = new AbortController();
  call.on('cancelled', () => controller.abort(new BraidError('CANCELLED', 'the caller cancelled or has gone')));
  return controller.signal;
}
