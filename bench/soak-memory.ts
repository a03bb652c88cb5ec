/** Resident memory of processes over their lives. */
import { residentBytes } from './processes.ts';
import { median } from './report.ts';

/** Loading, and the first run of everything. */
const WARM_UP_SAMPLES = 10;

export class Lives {
  /** Resident bytes by process id, one a second. */
  private readonly samples = new Map<number, number[]>();

  /** Once a second. */
  sample(pid: number | undefined): void {
    const bytes = pid === undefined ? null : residentBytes(pid);
    if (bytes === null) return;
    const life = this.samples.get(pid!) ?? [];
    this.samples.set(pid!, life);
    life.push(bytes);
  }

  /**
   * Of the longest of these lives, once it has warmed up: its seconds, and the medians of its first and its last tenth, MiB.
   * @returns null when none was long enough
   */
  longest(pids: Iterable<number>): { seconds: number; first: number; last: number } | null {
    const lives = Array.from(pids, (pid) => (this.samples.get(pid) ?? []).slice(WARM_UP_SAMPLES));
    const [life = []] = lives.sort((a, b) => b.length - a.length);
    const tenth = Math.floor(life.length / 10);
    if (tenth === 0) return null;
    const mib = (samples: number[]) => median(samples) / 2 ** 20;
    return { seconds: life.length, first: mib(life.slice(0, tenth)), last: mib(life.slice(-tenth)) };
  }
}
