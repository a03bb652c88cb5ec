/** The samples of the last minute: what `rate` needs, and no more. */
import type { Labels, Sample, Samples } from '../dashboards/queries.ts';
import type { Scraped } from './exposition.ts';

interface Series {
  labels: Labels;
  /** Oldest first: when, in seconds, and what. */
  points: { at: number; value: number }[];
}

export class Recent implements Samples {
  private readonly windowSeconds: number;
  /** By metric, then by labels. */
  private readonly metrics = new Map<string, Map<string, Series>>();
  now = 0;

  constructor(windowSeconds: number) {
    this.windowSeconds = windowSeconds;
  }

  /** @param at seconds, never going back */
  add(at: number, scraped: Scraped[]): void {
    this.now = at;
    for (const { metric, labels, value } of scraped) {
      const all = this.metrics.get(metric) ?? new Map<string, Series>();
      this.metrics.set(metric, all);
      const key = JSON.stringify(labels);
      const series = all.get(key) ?? { labels, points: [] };
      all.set(key, series);
      series.points.push({ at, value });
    }
    this.forget();
  }

  last(metric: string, where: Labels): Sample[] {
    return this.matching(metric, where).flatMap(({ labels, points }) => {
      const { at, value } = points.at(-1)!;
      return at === this.now ? [{ labels, value }] : []; // one that the newest scrape lacks is over
    });
  }

  rate(metric: string, where: Labels): Sample[] {
    return this.matching(metric, where).flatMap(({ labels, points }) => {
      const seconds = points.at(-1)!.at - points[0]!.at;
      return seconds > 0 ? [{ labels, value: increase(points) / seconds }] : [];
    });
  }

  private matching(metric: string, where: Labels): Series[] {
    const wanted = Object.entries(where);
    const all = [...(this.metrics.get(metric)?.values() ?? [])];
    return all.filter(({ labels }) => wanted.every(([name, text]) => text.split('|').includes(labels[name] ?? '')));
  }

  private forget(): void {
    for (const all of this.metrics.values()) {
      for (const [key, { points }] of all) {
        while (points.length > 0 && points[0]!.at < this.now - this.windowSeconds) points.shift();
        if (points.length === 0) all.delete(key);
      }
    }
  }
}

/** A counter that has gone down began again from 0. */
function increase(points: Series['points']): number {
  return points.reduce((sum, { value }, i) => {
    if (i === 0) return 0;
    const before = points[i - 1]!.value;
    return sum + (value >= before ? value - before : value);
  }, 0);
}
