/** How long phases take and who is slow: deadlines follow what was seen, and a straggler is named. */
import type { Seat } from './membership.ts';

const WINDOW = 32; // calls of a phase that are remembered
const ENOUGH = 8; // to judge by
/** A phase may take this many times its median, and never less than LEAST_DEADLINE_MS: garbage, swapping, a busy disk. */
const DEADLINE_FACTOR = 20;
const LEAST_DEADLINE_MS = 30_000;
/** A straggler takes this many times what the others take, in most of the last calls, and by no less than LEAST_LAG_SECONDS. */
const STRAGGLER_FACTOR = 1.5;
const LEAST_LAG_SECONDS = 0.02;

export interface Straggler {
  seat: Seat;
  phase: string;
  /** Its median seconds, and the others'. */
  seconds: number;
  others: number;
}

export class Pace {
  /** By phase: the slowest member's seconds of each of the last calls. */
  private readonly calls = new Map<string, number[]>();
  /** By phase: each member's seconds of the last call. */
  readonly latest = new Map<string, number[]>();
  /** By phase and rank. */
  private readonly members = new Map<string, Map<number, { seat: Seat; seconds: number[] }>>();
  private readonly mostMs: number;

  /** @param mostMs what no deadline exceeds */
  constructor(mostMs: number) {
    this.mostMs = mostMs;
  }

  deadlineMs(phase: string): number {
    const seen = this.calls.get(phase) ?? [];
    if (seen.length < ENOUGH) return this.mostMs;
    return Math.min(this.mostMs, Math.max(LEAST_DEADLINE_MS, 1000 * DEADLINE_FACTOR * median(seen)));
  }

  /** All members have answered. @param seconds by member */
  called(phase: string, seconds: { seat: Seat; seconds: number }[]): void {
    remember(this.calls, phase, Math.max(...seconds.map((each) => each.seconds)));
    this.latest.set(
      phase,
      seconds.map((each) => each.seconds),
    );
    const before = this.members.get(phase);
    const members = seconds.map(({ seat, seconds: taken }) => {
      const known = before?.get(seat.rank);
      const history = known?.seat.id === seat.id ? known.seconds : [];
      return [seat.rank, { seat, seconds: [...history, taken].slice(-WINDOW) }] as const;
    });
    this.members.set(phase, new Map(members)); // who was not among them is gone
  }

  /** Median seconds that a member takes for one call of a phase; 0: not known. */
  secondsOf({ id, rank }: Pick<Seat, 'id' | 'rank'>, phase: string): number {
    const known = this.members.get(phase)?.get(rank);
    return known?.seat.id === id ? median(known.seconds) : 0;
  }

  /** The member that holds a phase up, where one does. */
  straggler(phase: string): Straggler | null {
    const members = [...(this.members.get(phase)?.values() ?? [])];
    if (members.length < 2 || members.some(({ seconds }) => seconds.length < ENOUGH)) return null;
    const medians = members.map(({ seat, seconds }) => ({ seat, seconds: median(seconds) }));
    medians.sort((a, b) => b.seconds - a.seconds);
    const [slowest, ...rest] = medians as [(typeof medians)[0], ...typeof medians];
    const others = median(rest.map(({ seconds }) => seconds));
    const lags = slowest.seconds > STRAGGLER_FACTOR * others && slowest.seconds - others > LEAST_LAG_SECONDS;
    return lags ? { seat: slowest.seat, phase, seconds: slowest.seconds, others } : null;
  }
}

function remember(into: Map<string, number[]>, key: string, value: number): void {
  into.set(key, [...(into.get(key) ?? []), value].slice(-WINDOW));
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
