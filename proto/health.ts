/**
 * The health of a process by gRPC's own protocol (grpc.health.v1), for Kubernetes' probes and whoever else asks so. It has a
 * port of its own that can do nothing else: a probe shows neither a certificate nor a token, so it is clear text and open.
 *
 *     "", "liveness"   SERVING while the process serves
 *     "readiness"      SERVING while it does what it is there for, as GET /readyz
 *
 * Server reflection tells what is there, and what the process's other services look like.
 */
import { type handleUnaryCall, Server, type ServerUnaryCall, type sendUnaryData } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import { HealthImplementation, protoPath, type ServingStatus } from 'grpc-health-check';
import { listen, serverOptions } from './channel.ts';
import { definitions } from './load.ts';

/** How late who watches is told of a change, at most; who asks is told how it is. */
const LOOK_INTERVAL_MS = 250;
/** A question is the name of a service. */
const MESSAGE_BYTES = 4096;

export interface HealthOptions {
  host: string;
  /** 0: any free one. */
  port: number;
  ready(): boolean;
}

/** @throws BraidError SETUP when nothing can listen there */
export async function serveHealth({ host, port, ready }: HealthOptions): Promise<{ address: string; close(): void }> {
  const server = new Server({ ...serverOptions, 'grpc.max_receive_message_length': MESSAGE_BYTES });
  const health = new HealthImplementation({ '': 'SERVING', liveness: 'SERVING', readiness: 'NOT_SERVING' });
  let told: ServingStatus = 'NOT_SERVING';
  const look = () => {
    const now = ready() ? 'SERVING' : 'NOT_SERVING';
    if (now !== told) health.setStatus('readiness', now);
    told = now;
  };
  health.addToServer({
    addService: (service, { check, ...others }) =>
      server.addService(service, {
        ...others,
        check: (call: ServerUnaryCall<unknown, unknown>, answer: sendUnaryData<unknown>) => {
          look();
          (check as handleUnaryCall<unknown, unknown>)(call, answer);
        },
      }),
  });
  addReflection(server);
  // Whoever reaches it learns whether the process is well, and nothing else: that may be in clear text.
  const address = await listen(server, `${host.includes(':') ? `[${host}]` : host}:${port}`, { insecure: true });
  const timer = setInterval(look, LOOK_INTERVAL_MS).unref();
  return {
    address,
    close: () => {
      clearInterval(timer);
      for (const service of ['', 'liveness', 'readiness']) health.setStatus(service, 'NOT_SERVING');
      server.forceShutdown();
    },
  };
}

/** Lets clients such as grpcurl ask what services there are. */
export function addReflection(server: Server): void {
  new ReflectionService({ ...definitions, ...loadSync(protoPath) }).addToServer(server);
}
