/**
 * Who may call. A call carries a secret, `authorization: Bearer ...`: those from outside the run the token that its operator
 * gave out, every other one the run's own secret, which only the answer to Join tells. A call without it is refused before
 * anything of its message is read.
 */
import { Metadata, ServerInterceptingCall, type ServerOptions } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import { serverOptions } from './channel.ts';
import { toStatus } from './status.ts';

/** What those may call who are not part of the run. */
export const OUTSIDE: ReadonlySet<string> = new Set(['Join', 'Watch', 'ServerReflectionInfo']);
/** W3C's: what a call is part of (core/spans.ts). */
export const TRACEPARENT_KEY = 'traceparent';
const KEY = 'authorization';
const SCHEME = 'Bearer ';

/** What a caller shows, as metadata of its call. */
export function showing(secret: string | null): Metadata {
  const metadata = new Metadata();
  if (secret !== null) metadata.set(KEY, SCHEME + secret);
  return metadata;
}

/**
 * Options of a server that asks `allows` about every call.
 * @param allows whether the holder of `secret` ('' where none is shown) may call this rpc ('Join')
 */
export function guarded(allows: (rpc: string, secret: string) => boolean): ServerOptions {
  return {
    ...serverOptions,
    interceptors: [
      ({ path }, call) =>
        new ServerInterceptingCall(call, {
          start: (next) =>
            next({
              onReceiveMetadata: (metadata, proceed) => {
                const rpc = path.slice(path.lastIndexOf('/') + 1);
                const shown = String(metadata.get(KEY)[0] ?? '');
                const secret = shown.startsWith(SCHEME) ? shown.slice(SCHEME.length) : '';
                if (allows(rpc, secret)) proceed(metadata);
                else call.sendStatus(toStatus(refusal(rpc, secret)));
              },
            }),
        }),
    ],
  };
}

function refusal(rpc: string, secret: string): BraidError {
  const shown = secret === '' ? 'none' : 'a wrong one';
  return OUTSIDE.has(rpc)
    ? new BraidError('UNAUTHORIZED', `${rpc} takes the coordinator's token, and this call shows ${shown}`, {
        remedy: 'Give the same --token-file, or BRAID_TOKEN, as the coordinator has.',
      })
    : new BraidError('UNAUTHORIZED', `${rpc} takes the run's secret, and this call shows ${shown}`, {
        remedy: 'Only the parts of one run may call one another: start the worker again to join.',
      });
}
