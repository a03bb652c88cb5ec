/** The Coordinator service: thin handlers over the membership and the shards. */
import { Server } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { isSecret } from '../core/secret.ts';
import { guarded, OUTSIDE } from '../proto/access.ts';
import { type Exposure, isUnix, listen } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { addReflection } from '../proto/health.ts';
import { coordinatorService } from '../proto/load.ts';
import type { CoordinatorService, Part, ShardsRequest, WatchRequest, WatchResponse } from '../proto/messages.ts';
import { parts } from '../proto/parts.ts';
import { requireSoundJoin } from './bounds.ts';
import type { Membership } from './membership.ts';
import type { Meter } from './meter.ts';
import type { Shards } from './shards.ts';

/** How long calls that do not end are waited for when the run is over. */
const SHUTDOWN_TIMEOUT_MS = 1_000;

export interface ServiceOptions {
  membership: Membership;
  /** Of the current generation. */
  shards(): Shards;
  meter: Meter;
  watch(request: WatchRequest): Promise<WatchResponse>;
  /** What joining and watching take; null: nothing. */
  token: string | null;
  /** What every other call takes. */
  secret: string;
}

function handlers({ membership, shards: current, meter, watch }: ServiceOptions, unix: boolean): CoordinatorService {
  return {
    join(request, { signal }) {
      requireSoundJoin(request, { unix });
      return membership.join(request, signal);
    },

    async leave(request, { signal }) {
      await membership.leave(request, signal);
      return {};
    },

    watch,

    async *shards(request: ShardsRequest): AsyncGenerator<Part> {
      const { run, generation, split, replica, firstStep } = request;
      membership.requireCurrent(request);
      const shards = current();
      if (split === 'SPLIT_UNSPECIFIED' || replica >= shards.replicas) {
        throw new BraidError('PROTOCOL', `no shards of ${split} for replica ${replica} of ${shards.replicas}`);
      }
      const end = shards.count(split, replica);
      let next = firstStep < end ? shards.encoded(split, firstStep, replica) : null;
      meter.shardStreams++;
      try {
        for (let step = firstStep; next !== null; step++) {
          const shard = await next;
          next = step + 1 < end ? shards.encoded(split, step + 1, replica) : null; // is read while this one is sent
          next?.catch(() => {}); // told when its turn comes
          meter.moved('shards', 'received', shard.length);
          yield* parts({ run, generation, step }, shard);
        }
      } finally {
        meter.shardStreams--;
      }
    },
  };
}

/** @returns where workers reach it, and how to end it */
export async function serve(
  options: ServiceOptions,
  address: string,
  exposure: Exposure,
): Promise<{ address: string; close(): Promise<void> }> {
  const { token, secret } = options;
  const server = new Server(
    guarded((rpc, shown) => (OUTSIDE.has(rpc) ? token === null || isSecret(shown, token) : isSecret(shown, secret))),
  );
  implement(server, coordinatorService, handlers(options, isUnix(address)));
  addReflection(server);
  const bound = await listen(server, address, exposure);
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
