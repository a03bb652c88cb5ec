/** How a run is doing, for whoever watches it: its progress, its members, and what happened last. */
import type { WatchResponse } from '../proto/messages.ts';
import type { RunEvent, StepProgress } from './events.ts';
import type { Generations } from './generations.ts';
import type { Ledger } from './ledger.ts';
import type { Membership } from './membership.ts';
import type { Plan } from './plan.ts';

const KEPT_EVENTS = 20;

export interface WatchOptions {
  run: string;
  plan: Plan;
  membership: Membership;
  generations: Generations;
  ledger: Ledger;
  /** Seconds, monotonic. */
  now(): number;
  /** For the times of events. */
  clock(): Date;
}

export class Watch {
  private readonly options: WatchOptions;
  private readonly events: { kind: RunEvent['kind']; line: string }[] = [];
  private progress: StepProgress | null = null;

  constructor(options: WatchOptions) {
    this.options = options;
  }

  /** Something has happened. */
  note(event: RunEvent): void {
    if (event.kind === 'step') this.progress = event.progress;
    const text = textOf(event);
    if (text === null) return;
    this.events.push({ kind: event.kind, line: `${this.options.clock().toISOString()} ${text}` });
    if (this.events.length > KEPT_EVENTS) this.makeRoom();
  }

  /** What happens often makes room for what is rare: a hundred epochs do not drive out the fault before them. */
  private makeRoom(): void {
    const byKind = Map.groupBy(this.events, ({ kind }) => kind);
    const [oldest] = [...byKind.values()].reduce((most, each) => (each.length > most.length ? each : most));
    this.events.splice(this.events.indexOf(oldest!), 1);
  }

  /** @param metrics in Prometheus's text format, or '' */
  answer(metrics: string): WatchResponse {
    const { run, plan, membership, generations, ledger, now } = this.options;
    const seats = new Map(generations.seats.map(({ id, rank }) => [id, rank]));
    return {
      run,
      generation: membership.generation,
      step: ledger.position.step,
      steps: plan.steps,
      epoch: Math.min(
        Math.floor(ledger.position.step / plan.stepsPerEpoch),
        Math.ceil(plan.steps / plan.stepsPerEpoch) - 1,
      ),
      epochs: Math.ceil(plan.steps / plan.stepsPerEpoch),
      imagesPerSecond: this.progress?.imagesPerSecond ?? 0,
      secondsLeft: this.progress?.secondsLeft ?? 0,
      members: membership.here.map(({ id, joined, status, seenAt, leaving }) => {
        const rank = seats.get(id);
        return {
          member: id,
          host: joined.host,
          pid: joined.pid,
          device: joined.device,
          state: leaving ? 'leaving' : rank === undefined ? 'waiting' : 'training',
          ...(rank !== undefined && { rank }),
          ...(status !== null && { status }),
          seenSeconds: now() - seenAt,
          slow: generations.straggler === id,
          imagesPerSecond: generations.rateOf(id),
        };
      }),
      events: this.events.map(({ line }) => line),
      metrics,
    };
  }
}

function textOf(event: RunEvent): string | null {
  switch (event.kind) {
    case 'joined':
      return `worker ${event.member} joined from ${event.host}`;
    case 'disturbed':
      return `disturbed at step ${event.step}: ${event.message}`;
    case 'regrouped':
      return `generation ${event.generation}: ${event.workers} worker(s), from step ${event.step} on`;
    case 'skipped':
      return `step ${event.step} was not finite and is left out`;
    case 'checkpoint':
      return `checkpoint at step ${event.step}`;
    case 'epoch':
      return `epoch ${event.epoch + 1} evaluated`;
    default:
      return null;
  }
}
