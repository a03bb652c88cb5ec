/** braid worker: one worker process. It owns one GPU, or a share of the cores. */
import { rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { BraidError } from '../core/errors.ts';
import { createLog } from '../core/log.ts';
import { runWorker } from '../worker/worker.ts';
import type { Interrupts } from './interrupts.ts';
import { parse } from './options.ts';

const USAGE = 'braid worker --coordinator <host:port | unix:/path> [--listen <host:port> [--insecure]] [--threads <n>]';

const OPTIONS = {
  coordinator: { type: 'string' },
  /** Where the coordinator and other workers reach this one; the port may be 0. */
  listen: { type: 'string' },
  /** Listen where other machines can connect, unencrypted. */
  insecure: { type: 'boolean', default: false },
  /** The sockets' folder of a `braid train` on this machine: removed when that ends without having done so. */
  folder: { type: 'string' },
  /** TensorFlow threads; default: all cores. */
  threads: { type: 'string' },
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
  const log = createLog({
    format: 'human',
    level: 'info',
    write: (line) => process.stderr.write(line),
    now: () => new Date(),
  });
  // A worker has nothing of its own to save: the first request ends it.
  try {
    await runWorker({
      coordinator: values.coordinator,
      ...(values.listen === undefined ? {} : { listen: values.listen }),
      insecure: values.insecure,
      threads,
      signal: AbortSignal.any([orderly, atOnce]),
      log,
    });
  } finally {
    // `braid train` may have been killed: then nobody else is left to remove its sockets.
    if (values.folder !== undefined && !process.connected) rmSync(values.folder, { recursive: true, force: true });
  }
  return 0;
}
