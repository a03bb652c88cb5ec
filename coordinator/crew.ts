/** The members of one generation, called all at once. What fails is thrown with who, in which phase, at which step. */
import { setMaxListeners } from 'node:events';
import { asBraidError, BraidError } from '../core/errors.ts';
import type { LossOfWorker } from '../core/metrics.ts';
import type { Call, Position, StepRequest } from '../proto/messages.ts';
import { collect, parts } from '../proto/parts.ts';
import type { Seat } from './membership.ts';
import type { Meter } from './meter.ts';
import type { Pace } from './pace.ts';

/**
 * A worker often fails because another one died, and can be quicker to say so than the other's connection is to close.
 * So long is waited for the news of who really is gone.
 */
const CULPRIT_WAIT_MS = 2_000;

export interface CrewOptions {
  run: string;
  generation: number;
  /** By rank. */
  members: Seat[];
  /** Aborts with WORKER_LOST when a member leaves. */
  lost: AbortSignal;
  pace: Pace;
  meter: Meter;
}

export class Crew {
  readonly members: readonly Seat[];
  readonly meter: Meter;
  private readonly options: CrewOptions;

  constructor(options: CrewOptions) {
    this.options = options;
    this.members = options.members;
    this.meter = options.meter;
  }

  /** Where a message of this step belongs. */
  stamp(step: number): StepRequest {
    return { run: this.options.run, generation: this.options.generation, step };
  }

  /**
   * Calls every member at once; the first failure cancels the other calls.
   * @returns the answers by rank
   * @throws BraidError WORKER_LOST or what the worker answered, naming it, the phase and the step; or the signal's reason
   */
  each<T>(
    phase: string,
    step: number,
    signal: AbortSignal,
    call: (member: Seat, call: Call) => Promise<T>,
    members: readonly Seat[] = this.members,
  ): Promise<T[]> {
    return this.meter.time(phase, () => this.fanOut(phase, step, signal, members, call));
  }

  /** Sends one member the state of a position. */
  writeState({ worker }: Seat, at: Position, state: Uint8Array, call: Call): Promise<object> {
    this.meter.moved('state', 'received', state.length);
    return worker.writeState(parts(this.stamp(at.step), state, at), call);
  }

  /** One member's state, of at most so many bytes. */
  readState(seat: Seat, step: number, maxBytes: number, signal: AbortSignal): Promise<Uint8Array> {
    const expect = this.stamp(step);
    return this.one(seat, 'read', step, signal, async ({ worker }, call) => {
      const state = await collect(worker.readState(expect, call), { maxBytes, expect });
      this.meter.moved('state', 'sent', state.length);
      return state;
    });
  }

  /** The members that are still here, as a crew of their own, of the same generation: for what is left to settle. */
  survivors(here: Set<number>): Crew {
    const members = this.options.members.filter(({ id }) => here.has(id));
    return new Crew({ ...this.options, members, lost: new AbortController().signal });
  }

  /** The same for one member, unmeasured. */
  async one<T>(
    member: Seat,
    phase: string,
    step: number,
    signal: AbortSignal,
    call: (member: Seat, call: Call) => Promise<T>,
  ): Promise<T> {
    const [answer] = await this.fanOut(phase, step, signal, [member], call);
    return answer!;
  }

  private async fanOut<T>(
    phase: string,
    step: number,
    signal: AbortSignal,
    members: readonly Seat[],
    call: (member: Seat, call: Call) => Promise<T>,
  ): Promise<T[]> {
    const { pace, lost } = this.options;
    const timeoutMs = pace.deadlineMs(phase);
    const start = this.meter.now();
    const taken: { seat: Seat; seconds: number }[] = [];
    // One a call: adding a listener to a signal walks through all that it has.
    const endings = members.map(() => new AbortController());
    const end = (reason: unknown) => {
      for (const ending of endings) ending.abort(reason);
    };
    setMaxListeners(0, signal, lost); // one a call under way
    const abort = () => end(signal.reason);
    const lose = () => end(lost.reason);
    if (signal.aborted) throw asBraidError(signal.reason, 'CANCELLED');
    if (lost.aborted) throw this.lossIn(phase, step);
    signal.addEventListener('abort', abort);
    lost.addEventListener('abort', lose);
    let first: { member: Seat; error: BraidError } | undefined;
    const answers = members.map(async (member, i) => {
      this.meter.calls++;
      try {
        const answer = await call(member, { signal: endings[i]!.signal, timeoutMs });
        taken.push({ seat: member, seconds: this.meter.now() - start });
        return answer;
      } catch (thrown) {
        first ??= { member, error: asBraidError(thrown) };
        end(thrown);
        throw thrown;
      } finally {
        this.meter.calls--;
      }
    });
    try {
      await Promise.allSettled(answers);
      if (first !== undefined) throw await this.explain(first, phase, step, signal);
      if (members === this.members) pace.called(phase, taken);
      return await Promise.all(answers);
    } finally {
      signal.removeEventListener('abort', abort);
      lost.removeEventListener('abort', lose);
    }
  }

  private async explain(
    { member, error }: { member: Seat; error: BraidError },
    phase: string,
    step: number,
    signal: AbortSignal,
  ): Promise<BraidError> {
    if (signal.aborted) return asBraidError(signal.reason, 'CANCELLED');
    if (error.code === 'WORKER_LOST') await aborted(this.options.lost, CULPRIT_WAIT_MS);
    if (this.options.lost.aborted) return this.lossIn(phase, step);
    const { rank, joined } = member;
    const own = error.message.startsWith(member.name); // what our own end says of it: silent, or out of reach
    const message = own
      ? `${error.message}, in ${phase} at step ${step}`
      : `${member.name} failed in ${phase} at step ${step}: ${error.message}`;
    const atFault = own || error.code === 'DEVICE';
    const loss: LossOfWorker = error.code === 'DEVICE' ? 'failed' : error.details.timeout ? 'timeout' : 'disconnected';
    return new BraidError(error.code, message, {
      remedy: error.remedy || `Look at the output of worker ${rank} on ${joined.host}.`,
      details: { rank, member: member.id, atFault, loss, host: joined.host, phase, step },
      cause: error,
    });
  }

  private lossIn(phase: string, step: number): BraidError {
    const loss = this.options.lost.reason as BraidError;
    const { rank, member } = loss.details as { rank: number; member: number };
    const { host } = this.options.members.find(({ id }) => id === member)!.joined;
    return new BraidError('WORKER_LOST', `${loss.message}, in ${phase} at step ${step}`, {
      remedy: `Look at the output of worker ${member} on ${host}; then go on from the last checkpoint with --resume.`,
      details: { rank, member, host, phase, step },
      cause: loss,
    });
  }
}

/** Resolves when the signal aborts, or after `timeoutMs`. */
function aborted(signal: AbortSignal, timeoutMs: number): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, timeoutMs);
    if (signal.aborted) return done();
    signal.addEventListener('abort', done);
  });
}
