/** The dashboards from a Prometheus: the very queries that Grafana asks. */
import { BraidError } from '../../core/errors.ts';
import { type Dashboard, panelsOf, queriesOf } from '../dashboards/dashboard.ts';
import type { Labels, Query, Scope } from '../dashboards/queries.ts';
import type { Happening, Look, Result, Source } from './source.ts';

const LOOK_BACK = '1h';
/** Of a chart: about as many points as it has pixels to show them apart. */
const POINTS = 360;
const ANSWER_TIMEOUT_MS = 10_000;

interface Answer<Data> {
  status: string;
  error?: string;
  data: Data;
}

interface Series {
  metric: Record<string, string>;
  values: [number, string][];
}

interface Alert {
  labels: Record<string, string>;
  annotations: Record<string, string>;
  state: string;
  activeAt: string;
}

export class Prometheus implements Source {
  readonly name: string;
  private readonly url: string;
  private readonly job: string;
  private readonly scope: Scope;
  private readonly now: () => number;

  /** @param job the run's scrape job   @param now seconds since 1970 */
  constructor(url: string, job: string, now: () => number) {
    this.name = `${url}, job ${job}`;
    this.url = url.replace(/\/$/, '');
    this.job = job;
    this.scope = { matchers: `job="${job}"`, window: '1m', keep: [] };
    this.now = now;
  }

  async look(dashboard: Dashboard): Promise<Look> {
    const end = Math.floor(this.now());
    const times = await this.timesUntil(end);
    const stepSeconds = times.length > 1 ? times[1]! - times[0]! : 1;
    const lines = panelsOf(dashboard).flatMap((panel) =>
      queriesOf(panel).map(({ query }) => ({ query, from: panel.kind === 'chart' ? times[0]! : end })),
    );
    const results = new Map<Query, Result[]>();
    await Promise.all(
      lines.map(async ({ query, from }) => {
        const found = await this.query(query.promql(this.scope), from, end, stepSeconds);
        results.set(
          query,
          found.map(({ metric, values }) => resultOf(metric, values, times)),
        );
      }),
    );
    const [info] = await this.query(`braid_run_info{${this.scope.matchers}}`, end, end);
    return {
      run: info?.metric.run ?? '',
      times,
      results,
      events: await this.firing(),
      lost: info === undefined ? `no run is scraped as ${this.name}` : null,
    };
  }

  /** The last hour, or what the run has had of it. */
  private async timesUntil(end: number): Promise<number[]> {
    const first = `min(min_over_time(timestamp(braid_steps{${this.scope.matchers}})[${LOOK_BACK}:1s]))`;
    const [found] = await this.query(first, end, end);
    const seconds = found === undefined ? 0 : Math.max(0, end - Number(found.values[0]![1]));
    const stepSeconds = Math.max(1, Math.ceil(seconds / POINTS));
    const steps = Math.floor(seconds / stepSeconds);
    return Array.from({ length: steps + 1 }, (_, i) => end - (steps - i) * stepSeconds);
  }

  private async firing(): Promise<Happening[]> {
    const { alerts } = await this.ask<{ alerts: Alert[] }>('alerts');
    return alerts
      .filter(({ labels, state }) => labels.job === this.job && state === 'firing')
      .map(({ labels: { severity, alertname }, annotations: { summary }, activeAt }) => {
        return { at: activeAt, text: `${alertname} (${severity}): ${summary}` };
      })
      .sort((a, b) => a.at.localeCompare(b.at));
  }

  private async query(query: string, start: number, end: number, step = 1): Promise<Series[]> {
    const body = new URLSearchParams({ query, start: `${start}`, end: `${end}`, step: `${step}` });
    return (await this.ask<{ result: Series[] }>('query_range', body)).result;
  }

  private async ask<Data>(what: string, body?: URLSearchParams): Promise<Data> {
    const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
    let answer: Answer<Data>;
    try {
      const request = body === undefined ? { signal } : { method: 'POST', body, signal };
      answer = (await (await fetch(`${this.url}/api/v1/${what}`, request)).json()) as Answer<Data>;
    } catch (cause) {
      throw new BraidError('SETUP', `Prometheus at ${this.url} does not answer: ${(cause as Error).message}`, {
        remedy: 'Look whether it runs, and whether --prometheus names it.',
        cause,
      });
    }
    if (answer.status === 'success') return answer.data;
    throw new BraidError('SETUP', `Prometheus at ${this.url} refuses ${body?.get('query') ?? what}: ${answer.error}`);
  }
}

function resultOf(labels: Labels, found: [number, string][], times: number[]): Result {
  const byTime = new Map(found.map(([at, text]) => [at, Number(text)]));
  const values = times.map((at) => byTime.get(at) ?? null);
  return { labels, values: values.map((number) => (Number.isFinite(number) ? number : null)) };
}
