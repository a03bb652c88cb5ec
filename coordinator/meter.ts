/** Measures a step from outside: how long each phase takes, and what workers report of theirs. */
import type { Direction, Link, Metrics } from '../core/metrics.ts';
import { within } from '../core/spans.ts';

export class Meter {
  /** Seconds, monotonic. */
  readonly now: () => number;
  /** To workers, not answered yet. */
  calls = 0;
  /** That workers are reading. */
  shardStreams = 0;
  private readonly metrics: Metrics;
  /** Seconds by phase since the last `take`. */
  private seconds: Record<string, number> = {};

  constructor(now: () => number, metrics: Metrics) {
    this.now = now;
    this.metrics = metrics;
  }

  async time<T>(phase: string, work: () => Promise<T>): Promise<T> {
    const start = this.now();
    const result = await within(phase, work);
    const seconds = this.now() - start;
    this.seconds[phase] = (this.seconds[phase] ?? 0) + seconds;
    this.metrics.phaseSeconds.observe({ phase }, seconds);
    return result;
  }

  /** Seconds by phase since the last call. */
  take(): Record<string, number> {
    const taken = this.seconds;
    this.seconds = {};
    return taken;
  }

  /** What a worker's device did and waited for since it was last told of. */
  computed(deviceSeconds: number, inputSeconds: number): void {
    this.metrics.deviceSeconds.inc(deviceSeconds);
    this.metrics.inputSeconds.inc(inputSeconds);
  }

  /** Payload bytes: `sent` by workers, or `received` by them. */
  moved(link: Link, direction: Direction, bytes: number): void {
    this.metrics.bytes.inc({ link, direction }, bytes);
  }
}
