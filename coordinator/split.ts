/** Placement `split`: every worker owns one branch of one replica, the coordinator hosts the method. */
import { createHash } from 'node:crypto';
import { BraidError } from '../core/errors.ts';
import { bytesOf, floatsOf } from '../core/floats.ts';
import { evaluationBatchOf } from '../core/recipe.ts';
import { distinctMicroSizes, microSizes, shardBounds } from '../core/sampler.ts';
import { addScores, type Score } from '../nn/scores.ts';
import { fromTensors, type VariableSpec } from '../nn/variables.ts';
import type { BadSample, Call, ForwardRequest, Position } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { FlatState, GradientSum, Group, NetworkState } from './group.ts';
import { inspectShards, labelsWith, requireSameBad } from './inspect.ts';
import type { Seat } from './membership.ts';
import type { Method } from './method.ts';
import type { Decision, Plan, Update } from './plan.ts';
import { type Prepared, prepare, requireSameProgram } from './prepare.ts';
import { reduceGradients } from './reduce.ts';
import { requireIdentical } from './replicas.ts';
import { commitOf, isAt, settleOn } from './settle.ts';
import type { Shards } from './shards.ts';

/** Ranks count branches first: replica r's branch b is rank r * branches + b. */
export async function prepareSplit(
  crew: Crew,
  plan: Plan,
  shards: Shards,
  openMethod: () => Promise<Method>,
  step: number,
  signal: AbortSignal,
): Promise<Group> {
  const { branches } = plan;
  const everyone = crew.members.map(({ rank }) => rank);
  const preparing = prepare(crew, plan, step, signal, (rank) => {
    const branch = rank % branches;
    const alike = { segment: 'branch', ranks: everyone.filter((other) => other % branches === branch) };
    const trunk = { segment: 'trunk', ranks: everyone };
    const groups = plan.recipe.trunk === 'shared' ? [trunk, alike] : [alike];
    return { replica: Math.floor(rank / branches), branch, groups };
  });
  const [prepared, opened] = await Promise.allSettled([preparing, openMethod()]);
  if (prepared.status === 'rejected') throw prepared.reason;
  if (opened.status === 'rejected') throw opened.reason;
  const method = opened.value;
  await method.begin(crew, plan);
  const programs = prepared.value;
  programs.forEach((program, rank) => {
    requireSameProgram(programs[rank % branches]!, program, [rank % branches, rank]);
  });
  return new Split(crew, plan, shards, method, programs);
}

class Split implements Group {
  readonly variables: VariableSpec[];
  private readonly crew: Crew;
  private readonly plan: Plan;
  private readonly shards: Shards;
  private readonly method: Method;
  /** By branch. */
  private readonly programs: Prepared[];
  readonly held: (Position | null)[];
  /** Of micro-batches, descending: what the programs' outputLengths are for. */
  private readonly sizes: number[];

  /** @param programs by rank */
  constructor(crew: Crew, plan: Plan, shards: Shards, method: Method, programs: Prepared[]) {
    this.crew = crew;
    this.plan = plan;
    this.shards = shards;
    this.sizes = distinctMicroSizes(plan.shardSizes, plan.recipe.training.microBatches);
    this.method = method;
    this.held = programs.map((program) => program.held ?? null);
    this.programs = programs.slice(0, plan.branches);
    const all = [...this.programs, method.program].flatMap(({ variables }) => variables);
    this.variables = [...new Map(all.map((variable) => [variable.name, variable])).values()];
  }

  /** While the method has one micro-batch, workers compute the next one; each is backward as soon as it can but the last. */
  async forward(update: Update, signal: AbortSignal) {
    const sizes = this.microSizes(update);
    const count = Math.max(...sizes.map(({ length }) => length));
    await this.gather(update, 0, signal);
    const bad = await this.badSamples(update.step, signal);
    const labels = Array.from({ length: this.plan.replicas }, (_, replica) =>
      labelsWith(bad[replica] ?? [], this.shards.labels('SPLIT_TRAIN', update.step, replica)),
    );
    const losses: Losses = {};
    for (let microBatch = 0; microBatch < count; microBatch++) {
      const shards = sizes.flatMap((own, replica) => {
        const size = own[microBatch];
        if (size === undefined) return [];
        const [start, end] = shardBounds(labels[replica]!.length, own.length, microBatch);
        return { replica, labels: labels[replica]!.slice(start, end), shardWeight: size / update.samples };
      });
      const last = microBatch + 1 === count;
      const [fused] = await bothDone(
        this.crew.meter.time('method', () => this.method.fuse(update, microBatch, shards)),
        last ? Promise.resolve() : this.gather(update, microBatch + 1, signal),
      );
      for (const [name, loss] of Object.entries(fused)) losses[name] = (losses[name] ?? 0) + loss;
      if (!last) await this.scatter(update, microBatch, signal);
    }
    return { losses, bad: bad.flat() };
  }

  /** By replica. @throws BraidError INVALID_DATA when its branches do not leave the same samples out */
  private async badSamples(step: number, signal: AbortSignal): Promise<BadSample[][]> {
    const { branches, recipe } = this.plan;
    // All branches of a replica leave the same ones out, but where each reads for itself.
    const asked = this.crew.members.filter(({ rank }) => recipe.data.send === 'ids' || this.branchOf(rank) === 0);
    const answers = await inspectShards(this.crew, recipe, step, signal, asked);
    answers.forEach((bad, i) => {
      const { rank } = asked[i]!;
      const first = answers[i - this.branchOf(rank)]!;
      requireSameBad([rank - this.branchOf(rank), first], [rank, bad], step);
    });
    return asked.length === this.crew.members.length ? answers.filter((_, rank) => rank % branches === 0) : answers;
  }

  async backward(update: Update, signal: AbortSignal): Promise<void> {
    await this.scatter(update, Math.max(...this.microSizes(update).map(({ length }) => length)) - 1, signal);
  }

  /** Cotangents of a micro-batch to everybody who has it. */
  private async scatter(update: Update, microBatch: number, signal: AbortSignal): Promise<void> {
    const { step, round } = update;
    const sizes = this.microSizes(update);
    await this.crew.each('backward', step, signal, async ({ rank }, call) => {
      const program = this.programs[this.branchOf(rank)]!;
      const replica = this.replicaOf(rank);
      const size = sizes[replica]![microBatch];
      if (size === undefined || program.rounds[round]!.gradientLength === 0) return;
      const elements = program.outputLengths[this.sizes.indexOf(size)]!;
      const bytes = await this.method.of(replica).scatter({ rank, elements, stamp: this.crew.stamp(step) }, call);
      this.crew.meter.moved('cotangents', 'received', bytes);
    });
  }

  /** @returns [replica][micro-batch]: samples */
  private microSizes({ shardWeights, samples }: Update): number[][] {
    const { microBatches } = this.plan.recipe.training;
    return shardWeights.map((weight) => microSizes(Math.round(weight * samples), microBatches));
  }

  async reduce(update: Update, signal: AbortSignal): Promise<GradientSum> {
    const { step, round } = update;
    const [{ answers, culprits }, own] = await bothDone(
      reduceGradients(this.crew, step, signal),
      this.method.reduce(update),
    );
    // Every segment once: the trunk's norm is everybody's, a branch's that of its first worker.
    const norms = new Map<string, number>();
    this.programs.forEach(({ rounds }, branch) => {
      rounds[round]!.segments.forEach((segment, i) => {
        norms.set(segment === 'trunk' ? segment : `${segment} ${branch}`, answers[branch]!.segmentNorms[i]!);
      });
    });
    return { norm: Math.hypot(...norms.values(), own), culprits };
  }

  async commit(update: Decision, signal: AbortSignal): Promise<void> {
    const { step } = update;
    await this.crew.each('commit', step, signal, ({ worker }, call) =>
      worker.commit({ ...this.crew.stamp(step), ...commitOf(update) }, call),
    );
    await this.method.commit(update);
  }

  async settle(update: Decision, crew: Crew, signal: AbortSignal): Promise<boolean> {
    const settled = await settleOn(crew, update, signal);
    const branches = new Set(settled.map(({ rank }) => this.branchOf(rank)));
    if (branches.size < this.plan.branches) return false;
    await this.method.commit(update);
    return true;
  }

  async fill(at: Position, signal: AbortSignal): Promise<boolean> {
    if (!isAt(this.method.position, at)) return false;
    const holds = ({ rank }: Seat) => isAt(this.held[rank]!, at);
    const sources = this.programs.map((_, branch) =>
      this.crew.members.find((seat) => this.branchOf(seat.rank) === branch && holds(seat)),
    );
    if (sources.some((source) => source === undefined)) return false;
    await this.compare(at.step, signal, this.crew.members.filter(holds));
    const others = this.crew.members.filter((seat) => !holds(seat));
    const wanted = new Set(others.map(({ rank }) => this.branchOf(rank)));
    const states = await Promise.all(
      sources.map((source, branch) => (wanted.has(branch) ? this.readOne(source!, at.step, signal) : null)),
    );
    await this.crew.each(
      'fill',
      at.step,
      signal,
      (seat, call) => this.crew.writeState(seat, at, states[this.branchOf(seat.rank)]!, call),
      others,
    );
    return true;
  }

  async evaluate(step: number, signal: AbortSignal): Promise<Score[]> {
    const replicas = Array.from({ length: this.plan.replicas }, (_, replica) => replica);
    return this.crew.meter.time('evaluate', async () => {
      const scores = await Promise.all(replicas.map((replica) => this.evaluateReplica(replica, step, signal)));
      return addScores(this.method.program.classifiers, scores.flat());
    });
  }

  async write(at: Position, state: NetworkState, signal: AbortSignal): Promise<void> {
    const states = this.programs.map(({ variables }) =>
      bytesOf(fromTensors(variables, state.weights, state.momenta, state.averages)),
    );
    await this.crew.each('write', at.step, signal, (seat, call) =>
      this.crew.writeState(seat, at, states[this.branchOf(seat.rank)]!, call),
    );
    await this.method.write(state);
    this.method.position = at;
  }

  async read(step: number, signal: AbortSignal, crew = this.crew): Promise<FlatState[]> {
    await this.compare(step, signal, crew.members, crew);
    const states = await Promise.all(
      this.programs.map(async ({ variables }, branch) => {
        const source = crew.members.find(({ rank }) => this.branchOf(rank) === branch);
        if (source === undefined) throw new BraidError('WORKER_LOST', `no worker is left that holds branch ${branch}`);
        return { variables, state: floatsOf(await this.readOne(source, step, signal, crew)) };
      }),
    );
    this.requireOneTrunk(states, step);
    return [...states, await this.method.read(step)];
  }

  /** Whoever owns the same branch must hold the same state of it. */
  private async compare(step: number, signal: AbortSignal, members: readonly Seat[], crew = this.crew): Promise<void> {
    const hashes = await crew.each(
      'compare',
      step,
      signal,
      async ({ rank, worker }, call) => ({ rank, ...(await worker.hashState(this.crew.stamp(step), call)) }),
      members,
    );
    this.programs.forEach((_, branch) => {
      const alike = hashes.filter(({ rank }) => this.branchOf(rank) === branch);
      requireIdentical(alike, `state of branch ${branch}`, step);
    });
  }

  private readOne(seat: Seat, step: number, signal: AbortSignal, crew = this.crew): Promise<Uint8Array> {
    return crew.readState(seat, step, 4 * this.programs[this.branchOf(seat.rank)]!.stateLength, signal);
  }

  /** Every branch's outputs on a micro-batch of the step's shards, into the method's memory. */
  private async gather(update: Update, microBatch: number, signal: AbortSignal): Promise<void> {
    const { step, shardWeights, round, lossScale } = update;
    const sizes = this.microSizes(update);
    await this.crew.each('forward', step, signal, async (member, call) => {
      const replica = this.replicaOf(member.rank);
      const size = sizes[replica]![microBatch];
      if (size === undefined) return;
      const how = { shardWeight: shardWeights[replica]!, round, microBatch, lossScale };
      const request = { step, split: 'SPLIT_TRAIN', ...how } as const;
      await this.forwardOf(member, call, request, this.sizes.indexOf(size));
    });
  }

  private async forwardOf(
    { rank }: Seat,
    call: Call,
    request: Omit<ForwardRequest, 'run' | 'generation'>,
    size: number,
  ): Promise<void> {
    const elements = this.programs[this.branchOf(rank)]!.outputLengths.at(size)!;
    const forward = { ...this.crew.stamp(request.step), ...request };
    const bytes = await this.method.of(this.replicaOf(rank)).gather({ rank, elements, forward }, call);
    this.crew.meter.moved('outputs', 'sent', bytes);
  }

  private async evaluateReplica(replica: number, step: number, signal: AbortSignal): Promise<Score[][]> {
    const scores: Score[][] = [];
    const { branches } = this.plan;
    const members = this.crew.members.slice(replica * branches, (replica + 1) * branches);
    const labels = new Int32Array(evaluationBatchOf(this.plan.recipe));
    for (let batch = 0; batch < this.shards.count('SPLIT_TEST', replica); batch++) {
      await Promise.all(
        members.map((member) =>
          this.crew.one(member, `evaluate (after ${step} steps)`, batch, signal, (_, call) =>
            this.forwardOf(
              member,
              call,
              { step: batch, split: 'SPLIT_TEST', shardWeight: 1, round: 0, microBatch: 0, lossScale: 1 },
              -1,
            ),
          ),
        ),
      );
      labels.fill(-1); // what the last batch lacks
      labels.set(this.shards.labels('SPLIT_TEST', batch, replica));
      scores.push(await this.method.evaluate(replica, labels));
    }
    return scores;
  }

  /** With a shared trunk, the branches' copies of it must be one. */
  private requireOneTrunk(states: FlatState[], step: number): void {
    const hashes = states.map(({ variables, state }, rank) => {
      const hash = createHash('sha256');
      for (const { segment, trainable, offset, momentumOffset, averageOffset, size } of variables) {
        if (segment !== 'trunk') continue;
        for (const start of [offset, trainable ? momentumOffset : undefined, averageOffset]) {
          if (start !== undefined) hash.update(bytesOf(state.subarray(start, start + size)));
        }
      }
      return { rank, sha256: hash.digest() };
    });
    requireIdentical(hashes, 'trunk', step);
  }

  private branchOf(rank: number): number {
    return rank % this.plan.branches;
  }

  private replicaOf(rank: number): number {
    return Math.floor(rank / this.plan.branches);
  }
}

/** Neither is left under way when the other fails. */
async function bothDone<A, B>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  await Promise.allSettled([a, b]);
  return Promise.all([a, b]);
}
