/** braid status: how a running cluster is doing, asked of its coordinator. */
import { setTimeout } from 'node:timers/promises';
import { BraidError } from '../core/errors.ts';
import type { MemberStatus, WatchResponse } from '../proto/messages.ts';
import type { Interrupts } from './interrupts.ts';
import { lookAt } from './onlooker.ts';
import { parse } from './options.ts';
import { duration } from './progress.ts';
import { columns } from './result-table.ts';
import { TLS, TOKEN_FILE } from './trust.ts';

const USAGE = 'braid status --coordinator <host:port | unix:/path> [--watch] [--tls <folder>] [--token-file <file>]';
const ANSWER_TIMEOUT_MS = 5_000;
const REFRESH_MS = 1_000;
/** Of a page, besides those of workers and events. */
const OTHER_LINES = 6;
const BAR_CELLS = 20;
/** Above the usual cluster.heartbeatSeconds, and then some. */
const SILENT_SECONDS = 5;

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
  const client = lookAt(coordinator, values);
  try {
    const call = { signal: orderly, timeoutMs: ANSWER_TIMEOUT_MS };
    await client.ready(call);
    for (;;) {
      const run = await client.watch({}, call);
      if (!values.watch || !process.stdout.isTTY) process.stdout.write(statusPage(run));
      else process.stdout.write(redrawn(statusPage(run, process.stdout.rows - OTHER_LINES - run.events.length)));
      if (!values.watch) return 0;
      await setTimeout(REFRESH_MS, undefined, { signal: orderly }).catch(() => {});
      if (orderly.aborted) return 0;
    }
  } finally {
    client.close();
  }
}

/** In place of the page before, without clearing it first: that would flicker. */
function redrawn(page: string): string {
  return `\x1b[H${page.replaceAll('\n', '\x1b[K\n')}\x1b[J`;
}

const HEAD = [
  'worker',
  'rank',
  'host',
  'pid',
  'device',
  'state',
  'step',
  'doing',
  'images/s',
  'memory',
  'GPU',
  'ready',
];

/** @param room lines that there are for workers: those to look at first stay, and how many are left out is said */
export function statusPage(run: WatchResponse, room = Number.POSITIVE_INFINITY): string {
  const { step, steps, epoch, epochs, generation, imagesPerSecond, secondsLeft } = run;
  const rate = imagesPerSecond > 0 ? `${Math.round(imagesPerSecond)} images/s, ${duration(secondsLeft)} left` : '';
  const members = run.members.toSorted((a, b) => worry(b) - worry(a) || orderOf(a) - orderOf(b));
  const shown = members.length > room ? members.slice(0, Math.max(1, room - 1)) : members;
  const more = members.length - shown.length;
  return `
${run.run}  ${bar(step / steps)} step ${step}/${steps}  epoch ${epoch + 1}/${epochs}  generation ${generation}  ${rate}

${columns([[...HEAD, 'lag', 'seen'], ...shown.map(rowOf)])}${more > 0 ? `  and ${more} more\n` : ''}
${run.events.map((event) => `  ${local(event)}\n`).join('')}`;
}

/** At this machine's time, as logs are. */
function local(event: string): string {
  const [at = '', ...words] = event.split(' ');
  return `${new Date(at).toLocaleString('sv-SE')}  ${words.join(' ')}`;
}

function bar(done: number): string {
  const full = Math.round(BAR_CELLS * Math.min(1, done || 0));
  return `[${'#'.repeat(full)}${'.'.repeat(BAR_CELLS - full)}]`;
}

/** Who is to be looked at first. */
function worry({ seenSeconds, slow, state }: MemberStatus): number {
  if (seenSeconds > SILENT_SECONDS) return 3;
  return slow ? 2 : state === 'training' ? 0 : 1;
}

/** By rank; who has none comes after. */
function orderOf({ rank, member }: MemberStatus): number {
  return rank ?? 1e6 + member;
}

function rowOf(of: MemberStatus): string[] {
  const { member, rank, host, pid, device, state, status, seenSeconds, slow, imagesPerSecond } = of;
  const { step = 0, phase = '', phaseSeconds = 0, readyShards = 0, eventLoopLagSeconds = 0 } = status ?? {};
  const { residentBytes = 0, deviceBytes = 0 } = status ?? {};
  const silent = seenSeconds > SILENT_SECONDS ? ', silent' : '';
  return [
    `${member}`,
    `${rank ?? '-'}`,
    host,
    `${pid}`,
    device,
    `${state}${slow ? ', slow' : ''}${silent}`,
    `${step}`,
    phase === '' ? '-' : `${phase} ${phaseSeconds.toFixed(1)} s`,
    imagesPerSecond > 0 ? `${Math.round(imagesPerSecond)}` : '-',
    mebibytes(residentBytes),
    deviceBytes > 0 ? mebibytes(deviceBytes) : '-',
    `${readyShards}`,
    `${Math.round(1000 * eventLoopLagSeconds)} ms`,
    `${seenSeconds.toFixed(1)} s ago`,
  ];
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
