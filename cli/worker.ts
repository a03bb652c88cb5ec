/** braid worker: one worker process. It owns one GPU, or a share of the cores. */
import { rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { BraidError } from '../core/errors.ts';
import { createLog } from '../core/log.ts';
import { isAddress } from '../proto/channel.ts';
import { runWorker } from '../worker/worker.ts';
import type { Interrupts } from './interrupts.ts';
import { parse } from './options.ts';
import { TLS, TOKEN_FILE, tlsOf, tokenOf } from './trust.ts';

const USAGE =
  'braid worker --coordinator <host:port | unix:/path> [--listen <host:port>] [--advertise <host>] [--exchange-port <n>] ' +
  '[--tls <folder> | --insecure] [--token-file <file>] [--threads <n>] [--metrics-port <n>] [--health-port <n>] ' +
  '[--metrics-host <host>] [--rejoin-seconds <s>]';

const OPTIONS = {
  ...TLS,
  ...TOKEN_FILE,
  coordinator: { type: 'string' },
  /** Where it listens; the port may be 0. */
  listen: { type: 'string' },
  /** The host that the coordinator and other workers reach it by; default: the one it listens on. */
  advertise: { type: 'string' },
  /** Of the exchange of gradients; default: any free one. */
  'exchange-port': { type: 'string' },
  /** Listen where other machines can connect, unencrypted. */
  insecure: { type: 'boolean', default: false },
  /** The sockets' folder of a `braid train` on this machine: removed when that ends without having done so. */
  folder: { type: 'string' },
  /** Where metrics are served over HTTP, and health over gRPC; default: nowhere. Port 0: any free one. */
  'metrics-port': { type: 'string' },
  'health-port': { type: 'string' },
  'metrics-host': { type: 'string', default: '127.0.0.1' },
  /** TensorFlow threads; default: all cores. */
  threads: { type: 'string' },
  /** How long a coordinator that has gone is waited for. */
  'rejoin-seconds': { type: 'string', default: '600' },
} as const;

export async function worker(argv: string[], { orderly, atOnce }: Interrupts): Promise<number> {
  const { values } = parse('worker', argv, OPTIONS, USAGE);
  if (values.coordinator === undefined) {
    throw new BraidError('INVALID_RECIPE', 'worker: --coordinator is missing', { remedy: USAGE });
  }
  const threads = Number(values.threads ?? availableParallelism());
  if (!Number.isInteger(threads) || threads < 1) {
    throw new BraidError('INVALID_RECIPE', `worker: --threads ${values.threads} is not a whole number above 0`, {
      remedy: USAGE,
    });
  }
  const rejoinSeconds = Number(values['rejoin-seconds']);
  if (!(rejoinSeconds >= 0)) {
    throw new BraidError(
      'INVALID_RECIPE',
      `worker: --rejoin-seconds ${values['rejoin-seconds']} is not a number from 0`,
      {
        remedy: USAGE,
      },
    );
  }
  const metrics = {
    host: values['metrics-host'],
    port: portOf('metrics-port', values['metrics-port']),
    healthPort: portOf('health-port', values['health-port']),
  };
  const { listen, advertise } = values;
  if (advertise !== undefined && !isAddress(`${advertise}:1`)) {
    throw new BraidError('INVALID_RECIPE', `worker: --advertise ${advertise} is no host`, { remedy: USAGE });
  }
  const exchangePort = portOf('exchange-port', values['exchange-port']);
  const log = createLog({
    format: 'human',
    level: 'info',
    write: (line) => process.stderr.write(line),
    now: () => new Date(),
  });
  try {
    await runWorker({
      coordinator: values.coordinator,
      ...(listen !== undefined && { listen }),
      ...(advertise !== undefined && { advertise }),
      ...(exchangePort !== null && { exchangePort }),
      insecure: values.insecure,
      tls: tlsOf(values, log),
      token: tokenOf(values),
      metrics,
      threads,
      signal: orderly,
      hard: atOnce,
      rejoinSeconds,
      log,
    });
  } finally {
    // `braid train` may have been killed: then nobody else is left to remove its sockets.
    if (values.folder !== undefined && !process.connected) rmSync(values.folder, { recursive: true, force: true });
  }
  return 0;
}

/** null: not given. */
function portOf(flag: string, text: string | undefined): number | null {
  if (text === undefined) return null;
  const port = Number(text);
  if (text.trim() !== '' && Number.isInteger(port) && port >= 0 && port <= 65_535) return port;
  throw new BraidError('INVALID_RECIPE', `worker: --${flag} ${text} is no port`, { remedy: USAGE });
}
