/**
 * The dashboards of a run that no Prometheus scrapes: what its coordinator tells is asked for every other second, every query
 * is worked out there and then, and only the results are kept, so that it makes no difference how many workers there are.
 */
import { type Dashboard, panelsOf, queriesOf } from '../dashboards/dashboard.ts';
import type { Query } from '../dashboards/queries.ts';
import type { Scraped } from './exposition.ts';
import { Recent } from './recent.ts';
import type { Happening, Look, Result, Source } from './source.ts';

/** As the `1m` that recording rules and alerts look back. */
const RATE_WINDOW_SECONDS = 60;
/** More than a chart has pixels. Beyond, every other point is dropped: the whole run stays in sight. */
const KEPT_POINTS = 2_000;

export class Live implements Source {
  readonly name: string;
  private readonly recent = new Recent(RATE_WINDOW_SECONDS);
  private readonly queries: Query[];
  private times: number[] = [];
  /** By query, then by labels. */
  private readonly results = new Map<Query, Map<string, Result>>();
  private events: Happening[] = [];
  private run = '';
  private lost: string | null = 'nothing has been heard of it yet';

  constructor(name: string, dashboards: Dashboard[]) {
    this.name = name;
    const lines = dashboards.flatMap(panelsOf).flatMap(queriesOf);
    this.queries = [...new Set(lines.map(({ query }) => query))];
    for (const query of this.queries) this.results.set(query, new Map());
  }

  /** @param at seconds since 1970 */
  take(at: number, told: { run: string; scraped: Scraped[]; events: Happening[] }): void {
    this.lost = null;
    this.run = told.run;
    this.events = told.events;
    this.recent.add(at, told.scraped);
    this.times.push(at);
    for (const query of this.queries) this.keep(query);
    if (this.times.length > KEPT_POINTS) this.thin();
  }

  /** It does not answer. */
  miss(why: string): void {
    this.lost = why;
  }

  async look(): Promise<Look> {
    const results = new Map<Query, Result[]>();
    for (const [query, byLabels] of this.results) results.set(query, [...byLabels.values()]);
    const { run, times, events, lost } = this;
    return { run, times, results, events, lost };
  }

  private keep(query: Query): void {
    const byLabels = this.results.get(query)!;
    for (const { labels, value: number } of query.at(this.recent)) {
      const key = JSON.stringify(labels);
      const result = byLabels.get(key) ?? { labels, values: this.times.slice(1).map(() => null) };
      byLabels.set(key, result);
      result.values.push(Number.isFinite(number) ? number : null);
    }
    for (const { values } of byLabels.values()) if (values.length < this.times.length) values.push(null);
  }

  private thin(): void {
    const last = this.times.length - 1;
    const half = <T>(all: T[]) => all.filter((_, i) => (last - i) % 2 === 0);
    this.times = half(this.times);
    for (const byLabels of this.results.values()) {
      for (const [key, result] of byLabels) {
        result.values = half(result.values);
        if (result.values.every((number) => number === null)) byLabels.delete(key);
      }
    }
  }
}
