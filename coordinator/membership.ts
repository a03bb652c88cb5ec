/**
 * Who belongs to the run. A worker's Join stream is its membership: while it is open, the worker is here. It is asked for a
 * sign of life every few seconds, too, since a frozen process keeps its connections open.
 *
 * Training happens in generations: numbered, each with its seats. A member that leaves ends its generation; whoever joins
 * waits for the next one. A message of an earlier generation is refused.
 */
import { setMaxListeners } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { asBraidError, BraidError } from '../core/errors.ts';
import type { LossOfWorker } from '../core/metrics.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { workerService } from '../proto/load.ts';
import type {
  JoinRequest,
  JoinResponse,
  LeaveRequest,
  StatusResponse,
  StepRequest,
  WorkerService,
} from '../proto/messages.ts';
import type { Tls } from '../proto/tls.ts';
import { VERSION } from '../proto/version.ts';

export interface Member {
  /** From 0, in the order of joining: never given twice. */
  readonly id: number;
  /** For messages: "worker 1 (host a, pid 7)". */
  readonly name: string;
  readonly joined: JoinRequest;
  readonly worker: Connection<WorkerService>;
  /** Its last sign of life, and when that came, in seconds. */
  status: StatusResponse | null;
  seenAt: number;
  /** Whether it has asked to be let go. */
  leaving: boolean;
}

/** A member's place in a generation. */
export interface Seat extends Omit<Member, 'status' | 'seenAt' | 'leaving'> {
  readonly rank: number;
}

export interface MembershipOptions {
  run: string;
  /** Told to whoever joins; every later call shows it. */
  secret: string;
  /** How members are called; null: in clear text. */
  tls: Tls | null;
  /** No more than these are taken. */
  most: number;
  heartbeat: { everySeconds: number; misses: number };
  /** Seconds, monotonic. */
  now(): number;
  onJoin(member: Member, joined: number): void;
  /** @param loss null: it went as it should */
  onLeave(member: Member, why: string, loss: LossOfWorker | null): void;
}

export class Membership {
  private readonly options: MembershipOptions;
  /** In the order of joining. */
  private readonly members = new Map<number, { member: Member; ending: AbortController }>();
  private nextId = 0;
  private current: { number: number; seats: Seat[]; loss: AbortController } | null = null;
  /** The latest generation that anybody here knows of. */
  private latest = 0;
  /** Resolved and made anew whenever somebody joins or leaves. */
  private change = Promise.withResolvers<void>();
  /** How the run ended: well, or with an error; null while it lasts. */
  private verdict: 'done' | BraidError | null = null;

  constructor(options: MembershipOptions) {
    this.options = options;
  }

  get generation(): number {
    return this.current?.number ?? this.latest;
  }

  /** Whether every seat of the current generation is taken. */
  get whole(): boolean {
    return this.current !== null && !this.current.loss.signal.aborted && this.verdict === null;
  }

  /** Everybody here, in the order of joining. */
  get here(): Member[] {
    return [...this.members.values()].map(({ member }) => member);
  }

  /** Those of `here` who have no seat, or whose seat is to be given up: what the next generation would change. */
  get waiting(): Member[] {
    const seated = new Set(this.current?.seats.map(({ id }) => id));
    return this.here.filter(({ id, leaving }) => !leaving && !seated.has(id));
  }

  /** Who has asked to be let go, and has not been. */
  get leaving(): Member[] {
    const entries = [...this.members.values()];
    return entries.filter(({ member, ending }) => member.leaving && !ending.signal.aborted).map(({ member }) => member);
  }

  /**
   * The Join rpc: stays open for as long as the worker belongs to the run.
   * @throws BraidError VERSION_MISMATCH or RUN_FULL when the worker cannot be taken, WORKER_LOST when it has been fenced, and
   *   what the run ended with
   */
  async *join(request: JoinRequest, signal: AbortSignal): AsyncGenerator<JoinResponse> {
    const { run, secret } = this.options;
    if (this.verdict === 'done') return yield { run, member: 0, secret, over: true };
    const { member, ending } = this.admit(request);
    let why = 'its connection ended';
    try {
      yield { run, member: member.id, secret, over: false };
      await untilEither(signal, ending.signal);
      if (ending.signal.aborted) why = asBraidError(ending.signal.reason).message;
    } finally {
      this.remove(member, why);
    }
    const { reason } = ending.signal;
    if (reason instanceof BraidError) throw reason;
  }

  /** The Leave rpc: resolves when the member has been let go. */
  async leave({ run, member: id }: LeaveRequest, signal: AbortSignal): Promise<void> {
    this.requireRun(run);
    const entry = this.members.get(id);
    if (entry === undefined) return;
    entry.member.leaving = true;
    this.changed();
    await untilEither(signal, entry.ending.signal);
  }

  /**
   * Waits for members.
   * @param enough whether those who are here (and not leaving) will do; asked anew when somebody comes or goes
   * @returns false after `timeoutMs`
   * @throws the signal's reason
   */
  async until(enough: (here: Member[]) => boolean, timeoutMs: number, signal: AbortSignal): Promise<boolean> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const ended = untilEither(timeout, signal); // once: every wait of its own would leave listeners behind
    for (;;) {
      signal.throwIfAborted();
      if (enough(this.here.filter(({ leaving }) => !leaving))) return true;
      if (timeout.aborted) return false;
      await Promise.race([this.change.promise, ended]);
    }
  }

  /** Who has asked to leave may do so: no step is under way. */
  letGo(): void {
    for (const { id } of this.leaving) this.members.get(id)!.ending.abort('left');
  }

  /** A new generation begins, with these members by rank. */
  begin(members: Member[]): { generation: number; seats: Seat[]; lost: AbortSignal } {
    this.latest = Math.max(this.latest, ...this.here.map(({ joined }) => joined.generation)) + 1;
    const seats = members.map((member, rank) => ({ ...member, rank }));
    const loss = new AbortController();
    setMaxListeners(0, loss.signal);
    this.current = { number: this.latest, seats, loss };
    const gone = seats.find(({ id }) => !this.members.has(id));
    if (gone !== undefined) loss.abort(lossOf(gone, 'its connection ended'));
    return { generation: this.latest, seats, lost: loss.signal };
  }

  /** Puts a member out: it may come back, as a new one. */
  fence({ id }: Pick<Member, 'id'>, reason: BraidError): void {
    this.members.get(id)?.ending.abort(reason);
  }

  /** @throws BraidError for a message of another run or generation */
  requireCurrent({ run, generation }: Pick<StepRequest, 'run' | 'generation'>): void {
    this.requireRun(run);
    if (generation !== this.current?.number || this.verdict !== null) {
      const state = this.verdict !== null ? 'over' : this.current === null ? 'gathering' : 'training';
      const message = `this call is for generation ${generation}, the coordinator is in ${this.generation} (${state})`;
      throw new BraidError('STALE_GENERATION', message, { remedy: 'Join again.' });
    }
  }

  /** From here on members may leave: the run has ended so. */
  dismiss(verdict: 'done' | BraidError): void {
    this.verdict = verdict;
  }

  /** Ends every Join stream, with the error where there is one. */
  close(): void {
    for (const { ending } of this.members.values()) ending.abort(this.verdict);
  }

  private admit(request: JoinRequest): { member: Member; ending: AbortController } {
    const { version, address, host, pid } = request;
    if (version !== VERSION) {
      const message = `the worker on ${host} (pid ${pid}) is Braid ${version}, the coordinator is ${VERSION}`;
      throw new BraidError('VERSION_MISMATCH', message, { remedy: 'Install the same version on both machines.' });
    }
    const { run, most, secret, tls } = this.options;
    if (this.verdict instanceof BraidError) throw this.verdict;
    if (this.members.size >= most) {
      throw new BraidError('RUN_FULL', `run ${run} has all of its ${most} workers`, {
        remedy: 'Start one worker fewer, or a run with more replicas (cluster.replicas, cluster.maxReplicas).',
      });
    }
    const id = this.nextId++;
    const name = `worker ${id} (${host}, pid ${pid})`;
    const worker = connect(workerService, address, { peer: name, tls, secret: () => secret });
    const member = { id, name, joined: request, worker, status: null, seenAt: this.options.now(), leaving: false };
    const entry = { member, ending: new AbortController() };
    setMaxListeners(0, entry.ending.signal);
    this.members.set(id, entry);
    void this.listen(entry);
    this.options.onJoin(member, this.members.size);
    this.changed();
    return entry;
  }

  private remove(member: Member, why: string): void {
    const entry = this.members.get(member.id);
    if (entry === undefined) return;
    this.members.delete(member.id);
    const loss = this.lossOf(entry);
    entry.ending.abort('left');
    member.worker.close();
    this.options.onLeave(member, why, loss);
    const seat = this.current?.seats.find(({ id }) => id === member.id);
    if (seat !== undefined && this.verdict === null) this.current!.loss.abort(lossOf(seat, why));
    this.changed();
  }

  private lossOf({ member, ending }: { member: Member; ending: AbortController }): LossOfWorker | null {
    if (this.verdict !== null || member.leaving) return null;
    const { reason } = ending.signal;
    return reason instanceof BraidError
      ? ((reason.details.loss as LossOfWorker | undefined) ?? 'failed')
      : 'disconnected';
  }

  /** Asks for a sign of life, again and again; who gives none is fenced. */
  private async listen({ member, ending }: { member: Member; ending: AbortController }): Promise<void> {
    const { run, now, heartbeat } = this.options;
    const everyMs = 1000 * heartbeat.everySeconds;
    let missed = 0;
    while (!ending.signal.aborted) {
      try {
        member.status = await member.worker.status({ run }, { signal: ending.signal, timeoutMs: everyMs });
        member.seenAt = now();
        missed = 0;
      } catch {
        missed++;
      }
      if (ending.signal.aborted) return;
      if (missed >= heartbeat.misses) {
        const silent = (now() - member.seenAt).toFixed(1);
        const doing = member.status?.phase ? `, last seen in ${member.status.phase} at step ${member.status.step}` : '';
        this.fence(
          member,
          new BraidError('WORKER_LOST', `no sign of life for ${silent} s${doing}`, { details: { loss: 'frozen' } }),
        );
        return;
      }
      await setTimeout(everyMs, undefined, { signal: ending.signal, ref: false }).catch(() => {}); // its end is seen above
    }
  }

  private requireRun(run: string): void {
    if (run === this.options.run) return;
    const message = `this call is for run ${run}, the coordinator's is ${this.options.run}`;
    throw new BraidError('VERSION_MISMATCH', message, { remedy: 'Start the worker again.' });
  }

  private changed(): void {
    this.change.resolve();
    this.change = Promise.withResolvers<void>();
  }
}

function lossOf({ name, rank, id }: Seat, why: string): BraidError {
  return new BraidError('WORKER_LOST', `${name} is gone: ${why}`, { details: { rank, member: id } });
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
