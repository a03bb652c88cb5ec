/**
 * Who belongs to the run. A worker's Join stream is its membership: while it is open, the worker is here.
 *
 * So far there is one generation: once all are here the membership is complete, and one that leaves ends the run.
 */
import { setMaxListeners } from 'node:events';
import { BraidError } from '../core/errors.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { workerService } from '../proto/load.ts';
import type { JoinRequest, JoinResponse, StepRequest, WorkerService } from '../proto/messages.ts';
import { VERSION } from '../proto/version.ts';

export interface Member {
  readonly rank: number;
  /** For messages: "worker 1 (host a, pid 7)". */
  readonly name: string;
  readonly joined: JoinRequest;
  readonly worker: Connection<WorkerService>;
}

export interface MembershipOptions {
  run: string;
  /** How many workers the run takes. */
  workers: number;
  onJoin(member: Member, joined: number): void;
  onLeave(member: Member, joined: number): void;
}

export class Membership {
  readonly generation = 1;
  /** Aborts when a member of the complete membership leaves; its reason names who. */
  readonly lost: AbortSignal;
  private readonly options: MembershipOptions;
  /** By rank. */
  private readonly seats: (Member | null)[];
  private readonly full = Promise.withResolvers<Member[]>();
  private readonly loss = new AbortController();
  private readonly closing = new AbortController();
  private state: 'gathering' | 'complete' | 'closed' = 'gathering';

  constructor(options: MembershipOptions) {
    this.options = options;
    this.seats = Array.from({ length: options.workers }, () => null);
    this.lost = this.loss.signal;
    setMaxListeners(0, this.closing.signal); // one a member
  }

  /**
   * The Join rpc: gives a rank, then stays open for as long as the worker belongs to the run.
   * @throws BraidError VERSION_MISMATCH or SETUP when the worker cannot be taken
   */
  async *join(request: JoinRequest, signal: AbortSignal): AsyncGenerator<JoinResponse> {
    const member = this.admit(request);
    try {
      yield { run: this.options.run, rank: member.rank };
      await untilEither(signal, this.closing.signal);
    } finally {
      this.leave(member);
    }
    if (this.closing.signal.reason instanceof BraidError) throw this.closing.signal.reason;
  }

  /**
   * All members by rank, once all have joined.
   * @throws BraidError SETUP naming who is here and who is missing after `timeoutMs`, or the signal's reason
   */
  async complete({ timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal }): Promise<Member[]> {
    signal.throwIfAborted();
    const over = Promise.withResolvers<never>();
    const aborted = () => over.reject(signal.reason);
    const timer = setTimeout(() => over.reject(this.missing(timeoutMs)), timeoutMs);
    signal.addEventListener('abort', aborted);
    try {
      return await Promise.race([this.full.promise, over.promise]);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', aborted);
    }
  }

  /** @throws BraidError for a message of another run or membership */
  requireCurrent({ run, generation }: Pick<StepRequest, 'run' | 'generation'>): void {
    if (run !== this.options.run) {
      const message = `this call is for run ${run}, the coordinator's is ${this.options.run}`;
      throw new BraidError('VERSION_MISMATCH', message, { remedy: 'Start the worker again.' });
    }
    if (generation !== this.generation || this.state !== 'complete') {
      const message = `this call is for generation ${generation}, the coordinator is in ${this.generation} (${this.state})`;
      throw new BraidError('STALE_GENERATION', message, { remedy: 'Join again.' });
    }
  }

  /** From here on members may leave: the run is over. */
  dismiss(): void {
    this.state = 'closed';
  }

  /** Ends every Join stream, with the reason where there is one. */
  close(reason?: BraidError): void {
    this.dismiss();
    this.closing.abort(reason ?? 'over');
    for (const member of this.seats) member?.worker.close();
  }

  private admit(request: JoinRequest): Member {
    const { version, address, host, pid } = request;
    if (version !== VERSION) {
      const message = `the worker on ${host} (pid ${pid}) is Braid ${version}, the coordinator is ${VERSION}`;
      throw new BraidError('VERSION_MISMATCH', message, { remedy: 'Install the same version on both machines.' });
    }
    const rank = this.seats.indexOf(null);
    if (this.state !== 'gathering' || rank < 0) {
      const why = this.state === 'closed' ? 'is over' : `has all of its ${this.options.workers} workers`;
      throw new BraidError('SETUP', `run ${this.options.run} ${why}`, {
        remedy: 'Start one worker fewer, or a run with more replicas (cluster.replicas).',
      });
    }
    const name = `worker ${rank} (${host}, pid ${pid})`;
    const member = { rank, name, joined: request, worker: connect(workerService, address, { peer: name }) };
    this.seats[rank] = member;
    this.options.onJoin(member, this.here().length);
    if (!this.seats.includes(null)) {
      this.state = 'complete';
      this.full.resolve(this.here());
    }
    return member;
  }

  private leave(member: Member): void {
    member.worker.close();
    this.seats[member.rank] = null; // while gathering, its rank is free for another
    this.options.onLeave(member, this.here().length);
    if (this.state === 'complete') {
      this.loss.abort(
        new BraidError('WORKER_LOST', `${member.name} is gone: its connection ended`, {
          details: { rank: member.rank },
        }),
      );
    }
  }

  private here(): Member[] {
    return this.seats.filter((seat) => seat !== null);
  }

  private missing(timeoutMs: number): BraidError {
    const here = this.here();
    const ranks = this.seats.flatMap((seat, rank) => (seat === null ? [rank] : []));
    const who = here.length === 0 ? 'none' : here.map(({ name }) => name).join(', ');
    return new BraidError(
      'SETUP',
      `${here.length} of ${this.options.workers} workers joined within ${timeoutMs / 1000} s: here: ${who}; missing: ${ranks.map((rank) => `worker ${rank}`).join(', ')}`,
      {
        remedy:
          'Start the missing workers with `braid worker`, and look at their output; or raise cluster.joinTimeoutSeconds.',
      },
    );
  }
}

/** Resolves when either aborts. */
function untilEither(a: AbortSignal, b: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      a.removeEventListener('abort', done);
      b.removeEventListener('abort', done);
      resolve();
    };
    if (a.aborted || b.aborted) return resolve();
    a.addEventListener('abort', done);
    b.addEventListener('abort', done);
  });
}
