/**
 * A worker's life: listen, join, do as the coordinator says, leave. The main thread serves and never blocks; TensorFlow
 * has a thread of its own (nn/device.ts), and so have decoding and augmentation (input/pool.ts).
 *
 * A coordinator that goes away is waited for: the worker keeps its state and joins again.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { Server } from '@grpc/grpc-js';
import { asBraidError, BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { createWorkerMetrics } from '../core/metrics.ts';
import { isSecret } from '../core/secret.ts';
import { serveStatus } from '../core/status-server.ts';
import { Device, type DeviceOptions, deviceName } from '../nn/device.ts';
import { guarded } from '../proto/access.ts';
import { connect } from '../proto/calls.ts';
import { hostOf, isUnix, listen, requireUnexposed, warnOfExposure } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { serveHealth } from '../proto/health.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type { JoinResponse } from '../proto/messages.ts';
import type { Tls } from '../proto/tls.ts';
import { VERSION } from '../proto/version.ts';
import { requireSoundMembership } from './bounds.ts';
import { Exchange } from './exchange/exchange.ts';
import { Gpu } from './gpu.ts';
import { Post } from './post.ts';
import { Service } from './service.ts';
import { Tracing } from './tracing.ts';
import { watchVitals } from './vitals.ts';
import { tellOfWorker } from './worker-metrics.ts';

export interface WorkerOptions {
  /** Where to join: "unix:/path" or "host:port". */
  coordinator: string;
  /** Where this worker listens: "host:port", port 0 for any. Not with a unix: coordinator. */
  listen?: string;
  /** The host that the coordinator and other workers reach it by, where that is another than it listens on. */
  advertise?: string;
  /** Port of the gradient exchange, on the same host; default: any free one. */
  exchangePort?: number;
  /** Listen also where other machines can connect, unencrypted. */
  insecure?: boolean;
  /** Who this process is to the coordinator and to other workers, and they to it; null: nothing is encrypted. */
  tls?: Tls | null;
  /** What the coordinator asks of who joins. */
  token?: string | null;
  /** Where metrics are served over HTTP, and health over gRPC; a port that is null: nowhere. */
  metrics?: { host: string; port: number | null; healthPort: number | null };
  /** TensorFlow threads. */
  threads: number;
  /** Asks the worker to end: it stays until the step under way is done. */
  signal: AbortSignal;
  /** Ends it at once. */
  hard?: AbortSignal;
  /** How long a coordinator that has gone is waited for, seconds; default 600. */
  rejoinSeconds?: number;
  log: Log;
  /** For tests: another device. */
  openDevice?: (options: DeviceOptions) => Promise<Device>;
}

/** How long a coordinator that is not there yet is waited for. */
const JOIN_TIMEOUT_MS = 120_000;
const REJOIN_SECONDS = 600;
/** A coordinator that takes nobody at the moment is asked again this soon. */
const REJOIN_PAUSE_MS = 500;
/** How long the step under way may take when this worker has been asked to end. */
const LEAVE_TIMEOUT_MS = 60_000;
/** How long the answer to Stop may take to leave. */
const SHUTDOWN_TIMEOUT_MS = 1_000;

/**
 * Returns when the run is over.
 * @throws BraidError WORKER_LOST when the coordinator has gone and does not come back, what it refused this worker with, or
 *   the signal's reason
 */
export async function runWorker(options: WorkerOptions): Promise<void> {
  const { coordinator, signal, log, threads } = options;
  const hard = options.hard ?? new AbortController().signal;
  await using open = new AsyncDisposableStack();
  const { tls = null, token = null, insecure = false } = options;
  const { service: serviceAddress, exchange: exchangeAddress } = addresses(options, open);
  requireUnexposed(serviceAddress, { tls, insecure });

  const exchange = await Exchange.listen(exchangeAddress, {
    tls: tls && (() => tls.current()),
    secret: () => joined?.secret ?? null,
  });
  open.defer(() => exchange.close());
  const client = connect(coordinatorService, coordinator, {
    peer: `the coordinator at ${coordinator}`,
    tls,
    secret: (rpc) => (rpc === 'join' ? token : (joined?.secret ?? null)),
  });
  open.defer(() => client.close());

  const now = () => performance.now() / 1000;
  const rejoinMs = 1000 * (options.rejoinSeconds ?? REJOIN_SECONDS);
  let joined: JoinResponse | null = null;
  const stopped = new AbortController();
  const metrics = createWorkerMetrics();
  const gpu = new Gpu(process.env);
  open.defer(() => gpu.close());
  const vitals = watchVitals(gpu);
  open.defer(vitals.close);
  const tracing = new Tracing(log);
  open.defer(() => tracing.close());
  const service = new Service({
    joined: () => joined,
    openPost: (request, before, preparing) =>
      Post.open(
        {
          request,
          secret: joined!.secret,
          before,
          exchange,
          threads,
          openDevice: options.openDevice ?? Device.open,
          pullShards: (shards, reading) => client.shards(shards, { signal: reading }),
          onRecipe: ({ tracing: { endpoint } }) => {
            const { run, member } = joined!;
            return tracing.to(endpoint, { 'braid.run': run, 'braid.member': member, 'host.name': hostname() });
          },
          metrics,
          now,
        },
        preparing,
      ),
    metrics,
    vitals: vitals.ask,
    onStop: () => stopped.abort(),
    now,
  });
  open.defer(() => service.close());
  const server = new Server(guarded((_, shown) => isSecret(shown, joined?.secret ?? null)));
  implement(server, workerService, service);
  const address = await listen(server, serviceAddress, { tls, insecure });
  open.defer(() => shutdown(server));
  warnOfExposure(log, address, tls);
  const identity = () =>
    joined && { run: joined.run, member: `${joined.member}`, host: hostname(), device: deviceName(), version: VERSION };
  tellOfWorker(metrics, { service, gpu, identity });
  const ready = () => service.progress.state === 'training';
  const { host, port, healthPort } = options.metrics ?? { host: '', port: null, healthPort: null };
  if (port !== null) {
    const http = await serveStatus({ host, port, registry: metrics.registry, ready });
    open.defer(http.close);
    log.info(`metrics on http://${http.address}/metrics`);
  }
  if (healthPort !== null) {
    const health = await serveHealth({ host, port: healthPort, ready });
    open.defer(health.close);
    log.info(`health on ${health.address}`);
  }

  const offer = {
    version: VERSION,
    address: reachedBy(address, options.advertise),
    exchangeAddress: reachedBy(exchange.address, options.advertise),
    host: hostname(),
    pid: process.pid,
    threads,
    device: deviceName(),
  };
  const left = new AbortController();
  if (signal.aborted) void leave();
  signal.addEventListener('abort', () => void leave());
  /** Asks to be let go at the next step boundary. */
  async function leave(): Promise<void> {
    try {
      if (joined !== null) await client.leave(joined, { signal: hard, timeoutMs: LEAVE_TIMEOUT_MS });
    } catch (error) {
      log.warn(`leaving without the coordinator: ${(error as Error).message}`);
    }
    left.abort(signal.reason);
  }

  const over = AbortSignal.any([hard, stopped.signal, left.signal]);
  let lost: { error: BraidError; at: number } | null = null;
  for (;;) {
    try {
      const timeoutMs = lost === null ? JOIN_TIMEOUT_MS : Math.max(1, lost.at + rejoinMs - 1000 * now());
      await client.ready({ signal: over, timeoutMs });
      for await (const response of client.join({ ...offer, generation: service.generation }, { signal: over })) {
        requireSoundMembership(response);
        if (response.over) return log.info(`run ${response.run} is done already`);
        joined = response;
        const { run, member } = response;
        if (lost !== null) metrics.rejoins.inc();
        lost = null;
        log.info(`member ${member} of run ${run}`, { address: offer.address, exchange: offer.exchangeAddress });
      }
      break;
    } catch (thrown) {
      if (stopped.signal.aborted) break;
      const error = asBraidError(thrown);
      if (over.aborted || joined === null || error.code !== 'WORKER_LOST') throw error;
      lost ??= { error, at: 1000 * now() };
      if (1000 * now() >= lost.at + rejoinMs) {
        const message = `${lost.error.message}; it did not come back within ${rejoinMs / 1000} s`;
        throw new BraidError('WORKER_LOST', message, {
          remedy: 'Start the coordinator again with --resume.',
          cause: error,
        });
      }
      log.warn(`${error.message}; its state is kept, waiting to join again`);
      await setTimeout(REJOIN_PAUSE_MS, undefined, { signal: over }).catch(() => {});
    }
  }
  if (joined === null)
    throw new BraidError('PROTOCOL', `the coordinator at ${coordinator} ended the call without an answer`);
  if (signal.aborted && !stopped.signal.aborted) throw asBraidError(signal.reason, 'CANCELLED'); // let go, as it asked
  log.info('the run is over');
}

/** Beside the coordinator on this machine: sockets in a private folder. Elsewhere: TCP. */
function addresses({ coordinator, listen, advertise, exchangePort }: WorkerOptions, open: AsyncDisposableStack) {
  if (!isUnix(coordinator)) {
    const address = listen ?? '127.0.0.1:0';
    return { service: address, exchange: `${hostOf(address)}:${exchangePort ?? 0}` };
  }
  const [option] = Object.entries({ listen, advertise, 'exchange-port': exchangePort }).filter(
    ([, v]) => v !== undefined,
  );
  if (option !== undefined) {
    throw new BraidError('SETUP', `--${option[0]} ${option[1]} with a coordinator at ${coordinator}`, {
      remedy: `A coordinator at a unix: path has all its workers on its machine: leave --${option[0]} out.`,
    });
  }
  const folder = mkdtempSync(join(tmpdir(), 'braid-worker-'));
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
  return { service: `unix:${join(folder, 'service')}`, exchange: `unix:${join(folder, 'exchange')}` };
}

/** An address as others write it. @param host null: the one that is listened on */
function reachedBy(address: string, host: string | undefined): string {
  return host === undefined ? address : `${host}${address.slice(address.lastIndexOf(':'))}`;
}

async function shutdown(server: Server): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  server.tryShutdown(() => resolve());
  await Promise.race([promise, setTimeout(SHUTDOWN_TIMEOUT_MS, undefined, { ref: false })]);
  server.forceShutdown();
}
