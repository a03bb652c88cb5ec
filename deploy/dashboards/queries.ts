/**
 * What a panel asks. Each form says how Prometheus works it out (`promql`), and how it is worked out where there is none, from
 * the samples of the last minute (`at`); `npm run check:monitoring` holds the two against each other on a real run.
 */

export type Labels = Readonly<Record<string, string>>;

export interface Sample {
  labels: Labels;
  value: number;
}

/** What has been scraped of late. */
export interface Samples {
  /** When the newest was scraped: seconds since 1970. */
  now: number;
  /** The newest value of each series. */
  last(metric: string, where: Labels): Sample[];
  /** How much each counter has grown a second, over the window. */
  rate(metric: string, where: Labels): Sample[];
}

export interface Scope {
  /** Matchers that every selector carries, such as `job="braid"`. */
  matchers: string;
  /** Of rates, such as "1m". */
  window: string;
  /** Labels that every aggregation keeps. */
  keep: string[];
}

export interface Query {
  promql(scope: Scope): string;
  at(samples: Samples): Sample[];
}

interface Of {
  /** Labels that tell the results apart. */
  by?: string[];
  /** `a|b`: either. */
  where?: Labels;
}

/** A gauge; where several series have the same labels, the largest. */
export const value = (metric: string, of: Of = {}): Query => fold('max', metric, of, Math.max);

/** A gauge, summed over all series that have the same labels. */
export const total = (metric: string, of: Of = {}): Query => fold('sum', metric, of, sum);

/** How long ago a gauge says that something was: it tells seconds since 1970. */
export const age = (metric: string): Query => ({
  promql: (scope) => `time() - ${value(metric).promql(scope)}`,
  at: (samples) =>
    value(metric)
      .at(samples)
      .map(({ labels, value: at }) => ({ labels, value: samples.now - at })),
});

/** How much counters grow a second. */
export const rate = (metric: string, { by = [], where = {} }: Of = {}): Query => ({
  promql: (scope) => `sum${grouping(by, scope)} (rate(${selector(metric, where, scope)}[${scope.window}]))`,
  at: (samples) => group(samples.rate(metric, where), by, sum),
});

/** What a histogram observed on average. */
export const mean = (histogram: string, of: Of = {}): Query =>
  over(rate(`${histogram}_sum`, of), rate(`${histogram}_count`, of));

/** Below which a share `q` of a histogram's observations lies. */
export const quantileOf = (q: number, histogram: string, { by = [], where = {} }: Of = {}): Query => {
  const buckets = rate(`${histogram}_bucket`, { by: ['le', ...by], where });
  return {
    promql: (scope) => `histogram_quantile(${q}, ${buckets.promql(scope)})`,
    at: (samples) =>
      Object.values(Object.groupBy(buckets.at(samples), ({ labels }) => keyOf(labels, by))).map((of) => ({
        labels: pick(of![0]!.labels, by),
        value: quantileOfBuckets(q, of!),
      })),
  };
};

/** Below which a share `q` of the results of another query lies. */
export const across = (q: number, query: Query): Query => ({
  promql: (scope) => `quantile${grouping([], scope)} (${q}, ${query.promql(scope)})`,
  at: (samples) => {
    const values = query
      .at(samples)
      .map((sample) => sample.value)
      .sort((a, b) => a - b);
    if (values.length === 0) return [];
    const place = q * (values.length - 1);
    const [low, high] = [values[Math.floor(place)]!, values[Math.ceil(place)]!];
    return [{ labels: {}, value: low + (high - low) * (place - Math.floor(place)) }];
  },
});

/** The `k` largest. */
export const top = (k: number, query: Query): Query => ({
  promql: (scope) => `topk${grouping([], scope)} (${k}, ${query.promql(scope)})`,
  at: (samples) =>
    query
      .at(samples)
      .sort((a, b) => b.value - a.value)
      .slice(0, k),
});

/** Those of a query whose labels are among another's. */
export const among = (query: Query, others: Query, by: string[]): Query => ({
  promql: (scope) => `(${query.promql(scope)}) and on (${[...scope.keep, ...by].join(', ')}) (${others.promql(scope)})`,
  at: (samples) => {
    const keys = new Set(others.at(samples).map(({ labels }) => keyOf(labels, by)));
    return query.at(samples).filter(({ labels }) => keys.has(keyOf(labels, by)));
  },
});

export const over = (a: Query, b: Query): Query => both('/', a, b, (x, y) => x / y);
export const plus = (a: Query, b: Query): Query => both('+', a, b, sum);

/** What Prometheus works out beforehand, by the name under which it is kept. */
export const RECORDED = new Map<string, Query>();

/** A query that Prometheus works out beforehand: one of many series, or of many panels. */
export function recorded(record: string, query: Query): Query {
  RECORDED.set(record, query);
  return {
    promql: ({ matchers }) => (matchers === '' ? record : `${record}{${matchers}}`),
    at: (samples) => query.at(samples),
  };
}

function fold(operator: string, metric: string, { by = [], where = {} }: Of, merge: Merge): Query {
  return {
    promql: (scope) => `${operator}${grouping(by, scope)} (${selector(metric, where, scope)})`,
    at: (samples) => group(samples.last(metric, where), by, merge),
  };
}

function both(operator: string, a: Query, b: Query, work: Merge): Query {
  return {
    promql: (scope) => `(${a.promql(scope)}) ${operator} (${b.promql(scope)})`,
    at: (samples) => {
      const right = new Map(b.at(samples).map((sample) => [keyOf(sample.labels), sample.value]));
      return a.at(samples).flatMap(({ labels, value: left }) => {
        const found = right.get(keyOf(labels));
        return found === undefined ? [] : [{ labels, value: work(left, found) }];
      });
    },
  };
}

type Merge = (a: number, b: number) => number;

function sum(a: number, b: number): number {
  return a + b;
}

function selector(metric: string, where: Labels, { matchers }: Scope): string {
  const own = Object.entries(where).map(([name, text]) => `${name}${text.includes('|') ? '=~' : '='}"${text}"`);
  const all = [matchers, ...own].filter((text) => text !== '').join(',');
  return all === '' ? metric : `${metric}{${all}}`;
}

function grouping(by: string[], { keep }: Scope): string {
  const labels = [...keep, ...by];
  return labels.length === 0 ? '' : ` by (${labels.join(', ')})`;
}

function group(samples: Sample[], by: string[], merge: Merge): Sample[] {
  const groups = new Map<string, Sample>();
  for (const { labels, value: one } of samples) {
    const key = keyOf(labels, by);
    const before = groups.get(key);
    groups.set(key, { labels: pick(labels, by), value: before === undefined ? one : merge(before.value, one) });
  }
  return [...groups.values()];
}

function pick(labels: Labels, by: string[]): Labels {
  return Object.fromEntries(by.map((name) => [name, labels[name] ?? '']));
}

function keyOf(labels: Labels, by = Object.keys(labels).sort()): string {
  return JSON.stringify(by.map((name) => [name, labels[name] ?? '']));
}

/** As Prometheus does it: within a bucket, observations are taken to be spread evenly. */
function quantileOfBuckets(q: number, buckets: Sample[]): number {
  const sorted = buckets
    .map(({ labels, value: count }) => ({ bound: Number((labels.le ?? '').replace('+Inf', 'Infinity')), count }))
    .sort((a, b) => a.bound - b.bound);
  const wanted = q * sorted.at(-1)!.count;
  const at = sorted.findIndex(({ count }) => count >= wanted);
  const { bound, count } = sorted[at]!;
  const below = sorted[at - 1] ?? { bound: 0, count: 0 };
  if (!Number.isFinite(bound)) return below.bound;
  return below.bound + (bound - below.bound) * ((wanted - below.count) / (count - below.count));
}
