/** What the bench prints: a line a comparison, as JSON or for people. */

/** Seconds of each step, by phase. */
export type Phases = Record<string, number[]>;

export interface Comparison {
  bench: 'step' | 'cluster';
  case: string;
  /** Medians over the rounds. */
  braid: number;
  peer: number;
  unit: 's' | 'images/s';
  /** What the ratio braid / peer should be. */
  bar: { atMost: number } | { atLeast: number };
  /** Who the peer is, and anything else worth knowing. */
  note: string;
  /** Median seconds of a step by phase, on Braid's side: shown where the bar is missed. */
  phases: Record<string, number>;
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
