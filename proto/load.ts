/** The services of braid.proto as grpc-js wants them, each tied to its TypeScript interface. */
import { fileURLToPath } from 'node:url';
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';
import type { CoordinatorService, WorkerService } from './messages.ts';
import { decodePart, encodePart } from './part-codec.ts';

/** A service of braid.proto. `Calls` is its interface in messages.ts. */
export interface Service<Calls> {
  /** Full name, "braid.v1.Worker". */
  readonly name: string;
  readonly methods: { readonly [rpc in keyof Calls & string]: MethodDefinition<object, object> };
}

const PROTO_FILE = fileURLToPath(new URL('./braid.proto', import.meta.url));

/** Everything that braid.proto defines, by full name. */
export const definitions = loadSync(PROTO_FILE, {
  keepCase: false,
  longs: Number, // steps, generations and byte counts stay far below 2^53
  enums: String,
  defaults: true,
  oneofs: true,
});

export const coordinatorService = service<CoordinatorService>('braid.v1.Coordinator');
export const workerService = service<WorkerService>('braid.v1.Worker');

function service<Calls>(name: string): Service<Calls> {
  const methods: Record<string, MethodDefinition<object, object>> = {};
  for (const method of Object.values(definitions[name] as ServiceDefinition)) {
    const { requestType, responseType } = method as unknown as Record<string, MessageTypeDefinition<object, object>>;
    // The bulk path goes around protobufjs, which copies `bytes` once more and builds objects a field at a time.
    const rawRequest = isPart(requestType!) && { requestSerialize: encodePart, requestDeserialize: decodePart };
    const rawResponse = isPart(responseType!) && { responseSerialize: encodePart, responseDeserialize: decodePart };
    methods[method.originalName!] = { ...method, ...rawRequest, ...rawResponse } as MethodDefinition<object, object>;
  }
  return { name, methods } as Service<Calls>;
}

function isPart(type: MessageTypeDefinition<object, object>): boolean {
  return (type.type as { name: string }).name === 'Part';
}
