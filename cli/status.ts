/** braid status: how a running cluster is doing, asked of its coordinator. */
import { setTimeout } from 'node:timers/promises';
import { BraidError } from '../core/errors.ts';
import { createLog } from '../core/log.ts';
import { connect } from '../proto/calls.ts';
import { coordinatorService } from '../proto/load.ts';
import type { MemberStatus, WatchResponse } from '../proto/messages.ts';
import type { Interrupts } from './interrupts.ts';
import { parse } from './options.ts';
import { duration } from './progress.ts';
import { columns } from './result-table.ts';
import { TLS, TOKEN_FILE, tlsOf, tokenOf } from './trust.ts';

const USAGE = 'braid status --coordinator <host:port | unix:/path> [--watch] [--tls <folder>] [--token-file <file>]';
const ANSWER_TIMEOUT_MS = 5_000;
const REFRESH_MS = 1_000;

const OPTIONS = {
  coordinator: { type: 'string' },
  /** Again every second, until Ctrl-C. */
  watch: { type: 'boolean', default: false },
  ...TLS,
  ...TOKEN_FILE,
} as const;

export async function status(argv: string[], { orderly }: Interrupts): Promise<number> {
  const { values } = parse('status', argv, OPTIONS, USAGE);
  const { coordinator } = values;
  if (coordinator === undefined) {
    throw new BraidError('INVALID_RECIPE', 'status: --coordinator is missing', { remedy: USAGE });
  }
  const log = createLog({
    format: 'human',
    level: 'warn',
    write: (line) => process.stderr.write(line),
    now: () => new Date(),
  });
  const token = tokenOf(values);
  const peer = `the coordinator at ${coordinator}`;
  const client = connect(coordinatorService, coordinator, { peer, tls: tlsOf(values, log), secret: () => token });
  try {
    const call = { signal: orderly, timeoutMs: ANSWER_TIMEOUT_MS };
    await client.ready(call);
    for (;;) {
      const page = statusPage(await client.watch({}, call));
      process.stdout.write(values.watch && process.stdout.isTTY ? `\x1b[H\x1b[2J${page}` : page);
      if (!values.watch) return 0;
      await setTimeout(REFRESH_MS, undefined, { signal: orderly }).catch(() => {});
      if (orderly.aborted) return 0;
    }
  } finally {
    client.close();
  }
}

export function statusPage(run: WatchResponse): string {
  const rate =
    run.imagesPerSecond > 0 ? `${Math.round(run.imagesPerSecond)} images/s, ${duration(run.secondsLeft)} left` : '';
  const rows = [
    ['worker', 'rank', 'host', 'pid', 'device', 'state', 'step', 'doing', 'memory', 'ready', 'seen'],
    ...run.members.map(rowOf),
  ];
  return `
${run.run}  step ${run.step}/${run.steps}  epoch ${run.epoch + 1}/${run.epochs}  generation ${run.generation}  ${rate}

${columns(rows)}
${run.events.map((event) => `  ${event}\n`).join('')}`;
}

function rowOf({ member, rank, host, pid, device, state, status, seenSeconds, slow }: MemberStatus): string[] {
  const { step = 0, phase = '', phaseSeconds = 0, residentBytes = 0, readyShards = 0 } = status ?? {};
  return [
    `${member}`,
    `${rank ?? '-'}`,
    host,
    `${pid}`,
    device,
    slow ? `${state}, slow` : state,
    `${step}`,
    phase === '' ? '-' : `${phase} ${phaseSeconds.toFixed(1)} s`,
    `${Math.round(residentBytes / 2 ** 20)} MiB`,
    `${readyShards}`,
    `${seenSeconds.toFixed(1)} s ago`,
  ];
}
