/**
 * A worker's life: listen, join, do as the coordinator says, leave. The main thread serves and never blocks; TensorFlow
 * has a thread of its own (nn/device.ts), and so have decoding and augmentation (input/pool.ts).
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Server } from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { Device, type DeviceOptions, deviceName } from '../nn/device.ts';
import { connect } from '../proto/calls.ts';
import { isUnix, listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import { VERSION } from '../proto/version.ts';
import { Exchange } from './exchange/exchange.ts';
import { Post } from './post.ts';
import { Service } from './service.ts';

export interface WorkerOptions {
  /** Where to join: "unix:/path" or "host:port". */
  coordinator: string;
  /** Where the coordinator and other workers reach this one: "host:port", port 0 for any. Not with a unix: coordinator. */
  listen?: string;
  /** Listen also where other machines can connect, unencrypted. */
  insecure?: boolean;
  /** TensorFlow threads. */
  threads: number;
  signal: AbortSignal;
  log: Log;
  /** For tests: another device. */
  openDevice?: (options: DeviceOptions) => Promise<Device>;
}

/** How long a coordinator that is not there yet is waited for. */
const JOIN_TIMEOUT_MS = 120_000;
/** How long the answer to Stop may take to leave. */
const SHUTDOWN_TIMEOUT_MS = 1_000;

/**
 * Returns when the run is over.
 * @throws BraidError WORKER_LOST when the coordinator has gone, what it refused this worker with, or the signal's reason
 */
export async function runWorker(options: WorkerOptions): Promise<void> {
  const { coordinator, signal, log, threads } = options;
  await using open = new AsyncDisposableStack();
  const { service: serviceAddress, exchange: exchangeAddress } = addresses(options, open);

  const exchange = await Exchange.listen(exchangeAddress);
  open.defer(() => exchange.close());
  const client = connect(coordinatorService, coordinator, { peer: `the coordinator at ${coordinator}` });
  open.defer(() => client.close());

  let joined: { run: string; rank: number } | null = null;
  const stopped = new AbortController();
  const service = new Service({
    joined: () => joined,
    openPost: (request, preparing) =>
      Post.open(
        {
          request,
          exchange,
          threads,
          openDevice: options.openDevice ?? Device.open,
          pullShards: (shards, reading) => client.shards(shards, { signal: reading }),
          now: () => performance.now() / 1000,
        },
        preparing,
      ),
    onStop: () => stopped.abort(),
  });
  open.defer(() => service.close());
  const server = new Server(serverOptions);
  implement(server, workerService, service);
  const address = await listen(server, serviceAddress, { insecure: options.insecure ?? false });
  open.defer(() => shutdown(server));

  await client.ready({ signal, timeoutMs: JOIN_TIMEOUT_MS });
  const offer = {
    version: VERSION,
    address,
    exchangeAddress: exchange.address,
    host: hostname(),
    pid: process.pid,
    threads,
    device: deviceName(),
  };
  try {
    for await (const { run, rank } of client.join(offer, { signal: AbortSignal.any([signal, stopped.signal]) })) {
      joined = { run, rank };
      log.info(`worker ${rank} of run ${run}`, { address, exchange: exchange.address });
    }
  } catch (error) {
    if (!stopped.signal.aborted) throw error;
  }
  if (joined === null)
    throw new BraidError('PROTOCOL', `the coordinator at ${coordinator} ended the call without an answer`);
  log.info('the run is over');
}

/** Beside the coordinator on this machine: sockets in a private folder. Elsewhere: TCP. */
function addresses({ coordinator, listen: wanted }: WorkerOptions, open: AsyncDisposableStack) {
  if (!isUnix(coordinator)) {
    const address = wanted ?? '127.0.0.1:0';
    return { service: address, exchange: `${address.slice(0, address.lastIndexOf(':'))}:0` };
  }
  if (wanted !== undefined) {
    throw new BraidError('SETUP', `--listen ${wanted} with a coordinator at ${coordinator}`, {
      remedy: 'A coordinator at a unix: path has all its workers on its machine: leave --listen out.',
    });
  }
  const folder = mkdtempSync(join(tmpdir(), 'braid-worker-'));
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
  return { service: `unix:${join(folder, 'service')}`, exchange: `unix:${join(folder, 'exchange')}` };
}

async function shutdown(server: Server): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, SHUTDOWN_TIMEOUT_MS);
  server.tryShutdown(() => resolve());
  await promise;
  clearTimeout(timer);
  server.forceShutdown();
}
