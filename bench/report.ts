/** What the bench prints: a line a comparison, a table of what has no peer; or JSON. */

/** Seconds of each step, by phase. */
export type Phases = Record<string, number[]>;

export interface Comparison {
  bench: 'step' | 'imagenet' | 'cluster' | 'allreduce' | 'input';
  case: string;
  /** Medians over the rounds. */
  braid: number;
  peer: number;
  unit: 's' | 'ms' | 'images/s' | 'MiB';
  /** What the ratio braid / peer should be. */
  bar: { atMost: number } | { atLeast: number };
  /** Who the peer is, and anything else worth knowing. */
  note: string;
  /** Median seconds of a step by phase, on Braid's side: shown where the bar is missed. */
  phases: Record<string, number>;
}

/** What is measured of Braid alone: there is no peer, and no bar. */
export interface Measurement {
  bench: 'soak' | 'scale' | 'plan';
  case: string;
  /** By name, which says the unit. */
  figures: Record<string, number>;
  /** What must not happen and did; empty: all is well. */
  wrong: string[];
}

export function measurementAsJson({ bench, case: name, figures, wrong }: Measurement): string {
  return JSON.stringify({ bench, case: name, ...figures, wrong });
}

/** A line a figure, a column a case. */
export function tableOf(measurements: Measurement[]): string {
  const names = [...new Set(measurements.flatMap(({ figures }) => Object.keys(figures)))];
  const rows = [
    [measurements[0]!.bench, ...measurements.map((measurement) => measurement.case)],
    ...names.map((name) => [name, ...measurements.map(({ figures }) => figureAsText(figures[name]))]),
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const lines = rows.map(([name, ...cells]) =>
    [name!.padEnd(widths[0]!), ...cells.map((cell, i) => cell.padStart(widths[i + 1]!))].join('  '),
  );
  const wrong = measurements.flatMap((measurement) =>
    measurement.wrong.map((what) => `WRONG: ${measurement.case}: ${what}`),
  );
  return [...lines, ...wrong].join('\n');
}

function figureAsText(value: number | undefined): string {
  if (value === undefined) return '';
  const digits = Number.isInteger(value) || Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 1 : 3;
  return value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

export function ratioOf({ braid, peer }: Comparison): number {
  return braid / peer;
}

export function meetsBar(comparison: Comparison): boolean {
  const { bar } = comparison;
  return 'atMost' in bar ? ratioOf(comparison) <= bar.atMost : ratioOf(comparison) >= bar.atLeast;
}

export function asJson(comparison: Comparison): string {
  const { bench, case: name, braid, peer, unit } = comparison;
  return JSON.stringify({ bench, case: name, braid, peer, unit, ratio: ratioOf(comparison) });
}

export function asText(comparison: Comparison): string {
  const { bench, case: name, braid, peer, unit, bar, note, phases } = comparison;
  const digits = unit === 's' ? 3 : 1;
  const wanted = 'atMost' in bar ? `at most ${bar.atMost}` : `at least ${bar.atLeast}`;
  const verdict = meetsBar(comparison) ? `met (${wanted})` : `MISSED (${wanted})`;
  const figures = `braid ${braid.toFixed(digits)} ${unit}, peer ${peer.toFixed(digits)} ${unit}`;
  const lines = [`${`${bench} ${name}`.padEnd(34)} ${figures}, ratio ${ratioOf(comparison).toFixed(3)}: ${verdict}`];
  lines.push(`    ${note}`);
  if (!meetsBar(comparison)) {
    for (const [phase, seconds] of Object.entries(phases)) {
      lines.push(`    ${phase.padEnd(24)} ${(seconds * 1000).toFixed(1).padStart(8)} ms a step`);
    }
  }
  return lines.join('\n');
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Median seconds of each phase over all steps. */
export function medianPhases(steps: Phases[]): Record<string, number> {
  const names = new Set(steps.flatMap((phases) => Object.keys(phases)));
  return Object.fromEntries(Array.from(names, (name) => [name, median(steps.flatMap((phases) => phases[name] ?? []))]));
}
