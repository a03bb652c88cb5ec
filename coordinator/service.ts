/** The Coordinator service: thin handlers over the membership and the shards. */
import { Server } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService } from '../proto/load.ts';
import type { CoordinatorService, Part, ShardsRequest } from '../proto/messages.ts';
import { parts } from '../proto/parts.ts';
import type { Membership } from './membership.ts';
import type { Meter } from './meter.ts';
import type { Shards } from './shards.ts';

/** How long calls that do not end are waited for when the run is over. */
const SHUTDOWN_TIMEOUT_MS = 1_000;

export interface ServiceOptions {
  membership: Membership;
  shards: Shards;
  replicas: number;
  meter: Meter;
}

export function coordinatorHandlers({ membership, shards, replicas, meter }: ServiceOptions): CoordinatorService {
  return {
    join: (request, { signal }) => membership.join(request, signal),

    async *shards(request: ShardsRequest): AsyncGenerator<Part> {
      const { run, generation, split, replica, firstStep } = request;
      membership.requireCurrent(request);
      if (split === 'SPLIT_UNSPECIFIED' || replica >= replicas) {
        throw new BraidError('PROTOCOL', `no shards of ${split} for replica ${replica} of ${replicas}`);
      }
      const end = shards.count(split, replica);
      for (let step = firstStep; step < end; step++) {
        const shard = shards.encoded(split, step, replica);
        meter.moved('shards', 'received', shard.length);
        yield* parts({ run, generation, step }, shard);
      }
    },
  };
}

/** @returns where workers reach it, and how to end it */
export async function serve(
  options: ServiceOptions,
  address: string,
  { insecure }: { insecure: boolean },
): Promise<{ address: string; close(): Promise<void> }> {
  const server = new Server(serverOptions);
  implement(server, coordinatorService, coordinatorHandlers(options));
  const bound = await listen(server, address, { insecure });
  return { address: bound, close: () => shutdown(server) };
}

/** Lets calls that are about to end do so: a worker then hears why it was dismissed. */
async function shutdown(server: Server): Promise<void> {
  const { promise: ended, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, SHUTDOWN_TIMEOUT_MS);
  server.tryShutdown(() => resolve());
  await ended;
  clearTimeout(timer);
  server.forceShutdown();
}
