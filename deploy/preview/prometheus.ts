/** The dashboards from a Prometheus: the very queries that Grafana asks. */
import { BraidError } from '../../core/errors.ts';
import { type Dashboard, panelsOf, queriesOf } from '../dashboards/dashboard.ts';
import type { Labels, Query, Scope } from '../dashboards/queries.ts';
import type { Happening, Look, Result, Source } from './source.ts';

const LOOK_BACK_SECONDS = 3_600;
/** Of a chart: about as many points as it has pixels to show them apart. */
const POINTS = 360;
const ANSWER_TIMEOUT_MS = 10_000;

interface Answer {
  status: string;
  error?: string;
  data: { result: { metric: Record<string, string>; values: [number, string][] }[] };
}

export class Prometheus implements Source {
  readonly name: string;
  private readonly url: string;
  private readonly scope: Scope;
  private readonly now: () => number;

  /** @param job the run's scrape job   @param now seconds since 1970 */
  constructor(url: string, job: string, now: () => number) {
    this.name = `${url}, job ${job}`;
    this.url = url.replace(/\/$/, '');
    this.scope = { matchers: `job="${job}"`, window: '1m', keep: [] };
    this.now = now;
  }

  async look(dashboard: Dashboard): Promise<Look> {
    const stepSeconds = LOOK_BACK_SECONDS / POINTS;
    const end = Math.floor(this.now());
    const times = Array.from({ length: POINTS + 1 }, (_, i) => end - (POINTS - i) * stepSeconds);
    const lines = panelsOf(dashboard).flatMap((panel) =>
      queriesOf(panel).map(({ query }) => ({ query, from: panel.kind === 'chart' ? times[0]! : end })),
    );
    const results = new Map<Query, Result[]>();
    await Promise.all(
      lines.map(async ({ query, from }) => {
        const found = await this.ask(query.promql(this.scope), from, end, stepSeconds);
        results.set(
          query,
          found.map(({ metric, values }) => resultOf(metric, values, times)),
        );
      }),
    );
    const { matchers } = this.scope;
    const [info] = await this.ask(`braid_run_info{${matchers}}`, end, end, stepSeconds);
    const alerts = await this.ask(
      `ALERTS_FOR_STATE{${matchers}} and ignoring (alertstate) ALERTS{alertstate="firing"}`,
      end,
      end,
      stepSeconds,
    );
    return {
      run: info?.metric.run ?? '',
      ...sinceTheFirst(times, results),
      events: alerts.map(firing).sort((a, b) => a.at.localeCompare(b.at)),
      lost: info === undefined ? `no run is scraped as ${this.name}` : null,
    };
  }

  private async ask(query: string, start: number, end: number, step: number) {
    const body = new URLSearchParams({ query, start: `${start}`, end: `${end}`, step: `${step}` });
    const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
    let answer: Answer;
    try {
      answer = (await (
        await fetch(`${this.url}/api/v1/query_range`, { method: 'POST', body, signal })
      ).json()) as Answer;
    } catch (cause) {
      throw new BraidError('SETUP', `Prometheus at ${this.url} does not answer: ${(cause as Error).message}`, {
        remedy: 'Look whether it runs, and whether --prometheus names it.',
        cause,
      });
    }
    if (answer.status === 'success') return answer.data.result;
    throw new BraidError('SETUP', `Prometheus at ${this.url} refuses ${query}: ${answer.error}`);
  }
}

function resultOf(labels: Labels, found: [number, string][], times: number[]): Result {
  const byTime = new Map(found.map(([at, text]) => [at, Number(text)]));
  const values = times.map((at) => byTime.get(at) ?? null);
  return { labels, values: values.map((number) => (Number.isFinite(number) ? number : null)) };
}

function firing({ metric, values }: Answer['data']['result'][number]): Happening {
  const { alertname = '', severity = '', instance = '' } = metric;
  const since = new Date(1000 * Number(values.at(-1)?.[1]));
  return { at: since.toISOString(), text: [severity, alertname, instance].filter((text) => text !== '').join('  ') };
}

/** Nothing is shown of the time before there was anything. */
function sinceTheFirst(times: number[], results: Map<Query, Result[]>) {
  const all = [...results.values()].flat();
  const first = times.findIndex((_, i) => all.some(({ values }) => values[i] !== null));
  const from = Math.max(0, first);
  return {
    times: times.slice(from),
    results: new Map(
      [...results].map(([query, found]) => [query, found.map((one) => ({ ...one, values: one.values.slice(from) }))]),
    ),
  };
}
