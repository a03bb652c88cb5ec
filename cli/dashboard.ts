/** braid dashboard: a live view of a run in the browser, from its coordinator or from a Prometheus. */
import { once } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { asBraidError, BraidError } from '../core/errors.ts';
import { DASHBOARDS, withoutWorkersOwn } from '../deploy/dashboards/all.ts';
import type { Dashboard } from '../deploy/dashboards/dashboard.ts';
import { Live } from '../deploy/preview/live.ts';
import { Prometheus } from '../deploy/preview/prometheus.ts';
import { servePreview } from '../deploy/preview/server.ts';
import type { Source } from '../deploy/preview/source.ts';
import { toldBy } from '../deploy/preview/told.ts';
import type { Connection } from '../proto/calls.ts';
import type { CoordinatorService } from '../proto/messages.ts';
import type { Interrupts } from './interrupts.ts';
import { lookAt } from './onlooker.ts';
import { parse } from './options.ts';
import { TLS, TOKEN_FILE } from './trust.ts';

const USAGE =
  'braid dashboard --coordinator <host:port | unix:/path> [--tls <folder>] [--token-file <file>] [--port <n>], ' +
  'or braid dashboard --prometheus <url> [--job <name>] [--port <n>]';
const ANSWER_TIMEOUT_MS = 5_000;
const REFRESH_MS = 2_000;

const OPTIONS = {
  coordinator: { type: 'string' },
  prometheus: { type: 'string' },
  /** The scrape job of the run. */
  job: { type: 'string', default: 'braid' },
  /** Of the page, on loopback; 0: any free one. */
  port: { type: 'string', default: '7080' },
  ...TLS,
  ...TOKEN_FILE,
} as const;

type Values = ReturnType<typeof parse<typeof OPTIONS>>['values'];

export async function dashboard(argv: string[], { orderly }: Interrupts): Promise<number> {
  const { values } = parse('dashboard', argv, OPTIONS, USAGE);
  if ((values.coordinator === undefined) === (values.prometheus === undefined)) {
    throw new BraidError('INVALID_RECIPE', 'dashboard: either --coordinator or --prometheus says what is looked at', {
      remedy: USAGE,
    });
  }
  const port = Number(values.port);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    throw new BraidError('INVALID_RECIPE', `dashboard: --port ${values.port} is no port`, { remedy: USAGE });
  }
  const ended = new AbortController();
  const signal = AbortSignal.any([orderly, ended.signal]);
  const { dashboards, source, asking } = sourceOf(values, signal);
  const page = await servePreview({ dashboards, source, port });
  try {
    process.stdout.write(`${source.name}: ${page.url}\n`);
    if (!orderly.aborted) await once(orderly, 'abort');
  } finally {
    ended.abort();
    await asking;
    await page.close();
  }
  return 0;
}

interface Looking {
  dashboards: Dashboard[];
  source: Source;
  /** Ends when it has been told to. */
  asking: Promise<void>;
}

function sourceOf(values: Values, signal: AbortSignal): Looking {
  const { prometheus, job, coordinator } = values;
  if (prometheus !== undefined) {
    const source = new Prometheus(prometheus, job, () => Date.now() / 1000);
    return { dashboards: DASHBOARDS, source, asking: Promise.resolve() };
  }
  const dashboards = withoutWorkersOwn(DASHBOARDS);
  const live = new Live(`coordinator at ${coordinator}`, dashboards);
  const client = lookAt(coordinator!, values);
  return { dashboards, source: live, asking: ask(live, client, signal) };
}

/** Asks a coordinator every other second: one that goes away, and one that comes back, is told on the page. */
async function ask(live: Live, client: Connection<CoordinatorService>, signal: AbortSignal): Promise<void> {
  try {
    while (!signal.aborted) {
      try {
        const answer = await client.watch({ metrics: true }, { signal, timeoutMs: ANSWER_TIMEOUT_MS });
        live.take(Date.now() / 1000, toldBy(answer));
      } catch (thrown) {
        live.miss(asBraidError(thrown).message);
      }
      await setTimeout(REFRESH_MS, undefined, { signal }).catch(() => {});
    }
  } finally {
    client.close();
  }
}
