/**
 * A run through whatever happens to its workers: one generation after another, until the last step. What has been decided
 * is finished by those who are left; the next generation goes on from there, filled from whoever holds the state.
 */
import { asBraidError, BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { firstLossScale, type LossScale } from '../core/loss-scale.ts';
import type { Metrics } from '../core/metrics.ts';
import { Crew } from './crew.ts';
import type { Group, NetworkState } from './group.ts';
import type { Member, Membership, Seat } from './membership.ts';
import type { Meter } from './meter.ts';
import { Method } from './method.ts';
import type { Share } from './method-share.ts';
import { Pace } from './pace.ts';
import { type Plan, planFor, stepAt } from './plan.ts';
import { seatsFor } from './seats.ts';
import { isAt } from './settle.ts';
import { Shards } from './shards.ts';
import { prepareSplit } from './split.ts';
import { prepareTogether } from './together.ts';
import { saveNow, type Training, train } from './train.ts';

/** What a generation may end with and another one begin: the rest ends the run. */
const SURVIVABLE = new Set(['WORKER_LOST', 'STALE_GENERATION', 'PROTOCOL', 'DEVICE']);

/** Phases in which each member works for itself: who is slow there is slow. */
const WATCHED = ['compute', 'forward', 'backward'];

/** A state to train from, and how many steps it has been trained for. */
export interface Start extends NetworkState {
  step: number;
  /** Where the loss scale of f16 stands; absent: where it begins. */
  lossScale?: LossScale;
  /** For people: "the checkpoint ...", "the seed". */
  from: string;
}

export interface GenerationsOptions
  extends Pick<Training, 'ledger' | 'recorder' | 'checkpoints' | 'run' | 'signal' | 'hard' | 'now' | 'onEvent'> {
  /** For the recipe's own number of replicas. */
  plan: Plan;
  membership: Membership;
  meter: Meter;
  metrics: Metrics;
  log: Log;
  openShares(plan: Plan): Promise<Share[]>;
  /** Where training begins when no worker holds a later state: the newest checkpoint, or the first weights. */
  startFrom(group: Group): Promise<Start>;
  /** All are here, and training begins. */
  onStart(group: Group, plan: Plan): void;
}

export class Generations {
  /** By rank, of the current generation. */
  seats: Seat[] = [];
  private readonly options: GenerationsOptions;
  private readonly pace: Pace;
  private plan: Plan;
  private shardsNow: Shards;
  private crew: Crew | null = null;
  private group: Group | null = null;
  private method: Method | null = null;
  /** Generations that ended without a step. */
  private futile = { step: -1, round: 0, attempts: 0 };
  private started = false;
  /** The member that holds the others up at the moment, by its number. */
  straggler: number | null = null;
  /** What the last generation ended by. */
  private lastFault: BraidError | null = null;

  constructor(options: GenerationsOptions) {
    const { plan } = options;
    this.options = options;
    this.plan = plan;
    this.pace = new Pace(1000 * plan.recipe.cluster.stepTimeoutSeconds);
    this.shardsNow = new Shards(plan);
  }

  get shards(): Shards {
    return this.shardsNow;
  }

  /** By phase: each member's seconds of the last call to all of them. */
  get latestSeconds(): ReadonlyMap<string, number[]> {
    return this.pace.latest;
  }

  /** Images a second that a member would train alone, by its median time of what each does for itself; 0: not known. */
  rateOf(id: number): number {
    const seat = this.seats.find((each) => each.id === id);
    if (seat === undefined) return 0;
    const { rounds, samples } = stepAt(this.plan, Math.min(this.options.ledger.position.step, this.plan.steps - 1));
    const { cluster, training } = this.plan.recipe;
    const calls = rounds.length * (cluster.placement === 'split' ? training.microBatches : 1);
    const seconds = calls * WATCHED.reduce((sum, phase) => sum + this.pace.secondsOf(seat, phase), 0);
    return seconds === 0 ? 0 : samples / this.plan.replicas / seconds;
  }

  /** @returns the path of the last checkpoint */
  async train(): Promise<string> {
    for (;;) {
      await this.assemble();
      try {
        await this.form();
        const path = await train(this.training());
        if (path !== null) return path;
        await this.letGo();
      } catch (thrown) {
        await this.recover(asBraidError(thrown));
      }
    }
  }

  close(): Promise<void> | undefined {
    return this.method?.close();
  }

  /** Waits for the members of a generation. */
  private async assemble(): Promise<void> {
    const { membership, signal, hard, now } = this.options;
    const { replicas, minReplicas, joinTimeoutSeconds } = this.plan.recipe.cluster;
    const least = this.unit * (minReplicas ?? replicas);
    const timeoutMs = 1000 * joinTimeoutSeconds;
    const either = AbortSignal.any([signal, hard]);
    if (this.seats.length > 0 && membership.here.length < least) {
      this.options.log.warn(
        `waiting for ${least - membership.here.length} more worker(s), at most ${joinTimeoutSeconds} s`,
      );
    }
    // At first everybody is waited for, later only as many as it takes.
    const wanted = this.seats.length === 0 ? this.unit * replicas : least;
    const started = now();
    try {
      for (;;) {
        const enough = (here: Member[]) => here.length >= wanted || membership.leaving.length > 0;
        const came = await membership.until(
          enough,
          Math.max(0, Math.round(timeoutMs - 1000 * (now() - started))),
          either,
        );
        if (membership.leaving.length > 0) await this.letGo();
        else if (came || membership.here.length >= least) return;
        else throw this.missing(least);
      }
    } catch (thrown) {
      if (!hard.aborted) await this.salvage();
      throw thrown;
    }
  }

  /** A new generation: everybody prepared, and filled with one state. */
  private async form(): Promise<void> {
    const { membership, plan: base, run, meter, metrics, ledger, log, hard, signal } = this.options;
    const { replicas, maxReplicas } = base.recipe.cluster;
    const here = membership.here.filter(({ leaving }) => !leaving);
    const members = seatsFor(here, this.seats, { unit: this.unit, most: maxReplicas ?? replicas });
    const { generation, seats, lost } = membership.begin(members);
    this.seats = seats;
    this.plan = planFor(base, seats.length / this.unit);
    this.shardsNow = new Shards(this.plan);
    this.crew = new Crew({ run, generation, members: seats, lost, pace: this.pace, meter });
    metrics.generation.set(generation);

    const either = AbortSignal.any([signal, hard]);
    const { step } = ledger.position;
    this.group = await (base.recipe.cluster.placement === 'together'
      ? prepareTogether(this.crew, this.plan, step, either)
      : prepareSplit(this.crew, this.plan, this.shardsNow, () => this.openMethod(), step, either));
    await this.fill(this.group, either);
    if (this.started) {
      const { step: at } = ledger.position;
      log.warn(`generation ${generation}: going on from step ${at} with ${seats.length} worker(s)`);
      this.options.onEvent({ kind: 'regrouped', generation, workers: seats.length, step: at });
    } else this.options.onStart(this.group, this.plan);
    this.started = true;
  }

  private async fill(group: Group, signal: AbortSignal): Promise<void> {
    const { ledger, recorder, log, startFrom } = this.options;
    if (this.started) {
      if (await group.fill(ledger.position, signal)) return;
      log.warn(`no worker is left that holds the state of step ${ledger.position.step}`);
    }
    const start = await startFrom(group);
    const { training } = this.plan.recipe;
    // A coordinator that comes back finds its workers with what they held.
    const [held] = group.held;
    const agree = held != null && held.step >= start.step && group.held.every((other) => isAt(other, held));
    if (!this.started && agree && (await group.fill(held, signal))) {
      log.warn(`going on from what the workers hold: step ${held.step}`);
      ledger.goTo({ ...held, ...firstLossScale(training, held) });
    } else {
      log.info(`from ${start.from}, step ${start.step}`);
      ledger.goTo({ step: start.step, round: 0, ...firstLossScale(training, start.lossScale) });
      await group.write(ledger.position, start, signal);
    }
    recorder.goTo(ledger.position.step);
  }

  /** The method's devices: the same ones as long as the shards keep their sizes. */
  private async openMethod(): Promise<Method> {
    const { plan } = this;
    const open = () => this.options.openShares(plan);
    const sizes = plan.shardSizes.join();
    if (this.method === null) this.method = new Method(await open(), sizes);
    else if (this.method.shardSizes !== sizes) this.method = await this.method.succeed(open, sizes);
    return this.method;
  }

  /** Finishes what was decided, and puts out who is at fault. @throws what ends the run */
  private async recover(error: BraidError): Promise<void> {
    const { membership, ledger, metrics, log, hard, signal, onEvent } = this.options;
    if (hard.aborted) throw error;
    metrics.errors.inc({ code: error.code });
    const { atFault, member } = error.details as { atFault?: boolean; member?: number };
    if (atFault && member !== undefined) membership.fence({ id: member }, error);
    await this.settle();
    if (signal.aborted || !SURVIVABLE.has(error.code) || this.isFutile()) {
      await this.salvage();
      throw error;
    }
    log.warn(error.message);
    this.lastFault = error;
    metrics.retries.inc();
    onEvent({ kind: 'disturbed', step: ledger.position.step, code: error.code, message: error.message });
  }

  private async settle(): Promise<void> {
    const { ledger, recorder, membership, hard } = this.options;
    if (ledger.decided === null || this.group === null || this.crew === null) return;
    const crew = this.crew.survivors(idsOf(membership.here));
    if (await this.group.settle(ledger.decided, crew, hard)) return ledger.commit();
    ledger.goTo(ledger.position);
    recorder.goTo(ledger.position.step);
  }

  /** Whether too many generations have ended at one and the same step. */
  private isFutile(): boolean {
    const { step, round } = this.options.ledger.position;
    const same = this.futile.step === step && this.futile.round === round;
    this.futile = { step, round, attempts: same ? this.futile.attempts + 1 : 1 };
    return this.futile.attempts >= this.plan.recipe.cluster.attempts;
  }

  /** The run ends: what those who are left hold becomes a checkpoint, where they hold it all. */
  private async salvage(): Promise<void> {
    const { ledger, membership, log } = this.options;
    if (!this.started || this.group === null || this.crew === null || ledger.position.round > 0) return;
    try {
      const crew = this.crew.survivors(idsOf(membership.here));
      if (crew.members.length > 0 && ledger.position.step > 0)
        await saveNow(this.training(), ledger.position.step, crew);
    } catch (thrown) {
      log.warn(`no checkpoint could be made of what is left: ${asBraidError(thrown).message}`);
    }
  }

  /** Who has asked to leave does so. What nobody else could hand on is kept in a checkpoint first. */
  private async letGo(): Promise<void> {
    const { membership } = this.options;
    const staying = idsOf(membership.here.filter(({ leaving }) => !leaving));
    const kept = new Set(this.seats.filter(({ id }) => staying.has(id)).map(({ rank }) => rank % this.unit));
    if (kept.size < this.unit) await this.salvage();
    membership.letGo();
  }

  private training(): Training {
    const { membership, ledger } = this.options;
    const { replicas, maxReplicas } = this.plan.recipe.cluster;
    const most = maxReplicas ?? replicas;
    return {
      ...this.options,
      ledger,
      plan: this.plan,
      group: this.group!,
      regroup: () => {
        this.nameStraggler();
        return (
          membership.leaving.some(({ id }) => this.seats.some((seat) => seat.id === id)) ||
          (this.plan.replicas < most && membership.waiting.length >= this.unit)
        );
      },
    };
  }

  /** Who holds the others up: in the metrics while it lasts, in the log when it begins. */
  private nameStraggler(): void {
    const { metrics, log } = this.options;
    metrics.stragglerSeconds.reset();
    const found = WATCHED.map((phase) => this.pace.straggler(phase)).find((straggler) => straggler !== null);
    if (found !== undefined) {
      const { seat, phase, seconds, others } = found;
      metrics.stragglerSeconds.set({ rank: seat.rank, phase }, seconds);
      if (this.straggler !== seat.id) {
        log.warn(`${seat.name} is slow: ${seconds.toFixed(2)} s in ${phase}, the others take ${others.toFixed(2)} s`);
      }
    }
    this.straggler = found?.seat.id ?? null;
  }

  /** Workers of a replica. */
  private get unit(): number {
    return this.plan.recipe.cluster.placement === 'together' ? 1 : this.plan.branches;
  }

  /** Not enough came: who is here, and, once training, who went. */
  private missing(least: number): BraidError {
    const { here } = this.options.membership;
    const { joinTimeoutSeconds } = this.plan.recipe.cluster;
    const who = here.length === 0 ? 'none' : here.map(({ name }) => name).join(', ');
    const went = this.lastFault === null ? '' : `; ${this.lastFault.message}`;
    return new BraidError(
      this.lastFault === null ? 'SETUP' : 'WORKER_LOST',
      `${here.length} of ${least} workers are here after ${joinTimeoutSeconds} s: ${who}; ${least - here.length} missing${went}`,
      {
        remedy:
          'Start the missing workers with `braid worker`, and look at their output; or raise cluster.joinTimeoutSeconds, or lower cluster.minReplicas.',
      },
    );
  }
}

function idsOf(members: Member[]): Set<number> {
  return new Set(members.map(({ id }) => id));
}
