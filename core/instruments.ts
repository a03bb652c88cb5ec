/** Metric definitions as plain data, and what they become: prom-client's instruments in a registry of their own. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/** A label's values: all of them, which then are there from the start at 0; or in words what bounds them. */
export type Labels = Record<string, readonly string[] | string>;

export interface Definition<Kind extends 'gauge' | 'counter' | 'histogram' = 'gauge', L extends Labels = Labels> {
  kind: Kind;
  name: string;
  help: string;
  labels: L;
  /** Of a histogram: upper bounds. */
  buckets?: readonly number[];
}

type Described = Definition<'gauge' | 'counter' | 'histogram'>;
type NoLabels = Record<never, string>;
type LabelOf<D extends Described> = keyof D['labels'] & string;

export function gauge<const L extends Labels = NoLabels>(
  name: string,
  help: string,
  labels?: L,
): Definition<'gauge', L> {
  return { kind: 'gauge', name, help, labels: labels ?? ({} as L) };
}

export function counter<const L extends Labels = NoLabels>(
  name: string,
  help: string,
  labels?: L,
): Definition<'counter', L> {
  return { kind: 'counter', name, help, labels: labels ?? ({} as L) };
}

/** @param buckets upper bounds, ascending */
export function histogram<const L extends Labels = NoLabels>(
  name: string,
  help: string,
  buckets: readonly number[],
  labels?: L,
): Definition<'histogram', L> {
  return { kind: 'histogram', name, help, labels: labels ?? ({} as L), buckets };
}

type Instrument<D extends Described> = D['kind'] extends 'gauge'
  ? Gauge<LabelOf<D>>
  : D['kind'] extends 'counter'
    ? Counter<LabelOf<D>>
    : Histogram<LabelOf<D>>;

export type Instruments<D extends Record<string, Described>> = { [K in keyof D]: Instrument<D[K]> } & {
  readonly registry: Registry;
};

/** Of this process, whatever runs in it: event loop, memory, CPU, garbage. Made once. */
let ofProcess: Registry | undefined;

export function processMetrics(): Registry {
  if (ofProcess === undefined) {
    ofProcess = new Registry();
    collectDefaultMetrics({ register: ofProcess });
  }
  return ofProcess;
}

/** One registry a call, so that two runs in one process never mix. It tells of the process, too. */
export function instruments<D extends Record<string, Described>>(definitions: D): Instruments<D> {
  const registry = new Registry();
  const made = Object.entries(definitions).map(([key, definition]) => [key, instrument(definition, registry)]);
  for (const metric of processMetrics().getMetricsAsArray()) registry.registerMetric(metric as never);
  return { ...Object.fromEntries(made), registry };
}

/** Asks for a value when it is scraped. */
export function sampled(gauge: Gauge<never>, value: () => number): void;
/** Asks for the values of all labels that there are at the moment. */
export function sampled<L extends string>(
  gauge: Gauge<L>,
  values: () => Iterable<readonly [Record<L, string>, number]>,
): void;
export function sampled(
  gauge: Gauge,
  sample: () => number | Iterable<readonly [Record<string, string>, number]>,
): void {
  (gauge as { collect?: () => void }).collect = () => {
    const values = sample();
    if (typeof values === 'number') return gauge.set(values);
    gauge.reset();
    for (const [labels, value] of values) gauge.set(labels, value);
  };
}

/** 1 for the state that holds, 0 for the others. */
export function* oneOf<State extends string>(
  states: readonly State[],
  state: State,
): Generator<[{ state: State }, number]> {
  for (const each of states) yield [{ state: each }, each === state ? 1 : 0];
}

function instrument({ kind, name, help, labels, buckets }: Described, registry: Registry) {
  const options = { name, help, labelNames: Object.keys(labels), registers: [registry] };
  if (kind === 'histogram') {
    const made = new Histogram({ ...options, buckets: [...buckets!] });
    for (const values of combinations(labels)) made.zero(values);
    return made;
  }
  if (kind === 'gauge') {
    const made = new Gauge(options);
    if (options.labelNames.length === 0) made.remove(); // 0 would be a value: it has none yet
    return made;
  }
  const made = new Counter(options);
  for (const values of combinations(labels)) made.inc(values, 0);
  return made;
}

/** Every combination of the labels' values, where all of them are known beforehand; none where there is no label. */
function combinations(labels: Labels): Record<string, string>[] {
  const entries = Object.entries(labels);
  if (entries.length === 0) return [];
  return entries.reduce<Record<string, string>[]>(
    (all, [name, values]) =>
      typeof values === 'string' ? [] : all.flatMap((before) => values.map((value) => ({ ...before, [name]: value }))),
    [{}],
  );
}
