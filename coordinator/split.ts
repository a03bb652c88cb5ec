/** Placement `split`: every worker owns one branch of one replica, the coordinator hosts the method. */
import { createHash } from 'node:crypto';
import { BraidError } from '../core/errors.ts';
import { addScores, type Score } from '../nn/scores.ts';
import { fromTensors, type TensorMap, toTensors, type VariableSpec } from '../nn/variables.ts';
import type { Call, ForwardRequest } from '../proto/messages.ts';
import { collect, parts } from '../proto/parts.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { Group, NetworkState } from './group.ts';
import type { Member } from './membership.ts';
import { bytesOf, floatsOf } from './memory.ts';
import { Method, type MethodDevice } from './method.ts';
import type { Plan, Update } from './plan.ts';
import { type Prepared, prepare, requireSameProgram } from './prepare.ts';
import { reduceGradients } from './reduce.ts';
import { requireIdentical } from './replicas.ts';
import type { Shards } from './shards.ts';

/** Ranks count branches first: replica r's branch b is rank r * branches + b. */
export async function prepareSplit(
  crew: Crew,
  plan: Plan,
  shards: Shards,
  openDevice: () => Promise<MethodDevice>,
  step: number,
  signal: AbortSignal,
): Promise<Group> {
  const { branches } = plan;
  const everyone = crew.members.map(({ rank }) => rank);
  const opening = openDevice();
  try {
    const preparing = prepare(crew, plan, step, signal, (rank) => {
      const branch = rank % branches;
      const alike = { segment: 'branch', ranks: everyone.filter((other) => other % branches === branch) };
      const trunk = { segment: 'trunk', ranks: everyone };
      const groups = plan.recipe.trunk === 'shared' ? [trunk, alike] : [alike];
      return { replica: Math.floor(rank / branches), branch, groups };
    });
    const [programs, device] = await Promise.all([preparing, opening]);
    programs.forEach((program, rank) => {
      requireSameProgram(programs[rank % branches]!, program, [rank % branches, rank]);
    });
    return new Split(crew, plan, shards, new Method(device), programs.slice(0, branches));
  } catch (error) {
    await opening.then(
      (device) => device.close(),
      () => {}, // the first error is the one to tell
    );
    throw error;
  }
}

class Split implements Group {
  readonly variables: VariableSpec[];
  private readonly crew: Crew;
  private readonly plan: Plan;
  private readonly shards: Shards;
  private readonly method: Method;
  /** By branch. */
  private readonly programs: Prepared[];
  /** By rank, reused from step to step: a step's outputs have been used up when the next one's come. */
  private readonly outputMemory: (Uint8Array | undefined)[] = [];
  /** [replica][branch], between forward and backward. */
  private cotangents: (Float32Array | undefined)[][] = [];

  constructor(crew: Crew, plan: Plan, shards: Shards, method: Method, programs: Prepared[]) {
    this.crew = crew;
    this.plan = plan;
    this.shards = shards;
    this.method = method;
    this.programs = programs;
    const all = [...programs, method.program].flatMap(({ variables }) => variables);
    this.variables = [...new Map(all.map((variable) => [variable.name, variable])).values()];
  }

  async forward(update: Update, signal: AbortSignal): Promise<Losses> {
    const outputs = await this.gather(update, signal); // [replica][branch]
    const labels = outputs.map((_, replica) => this.shards.labels('SPLIT_TRAIN', update.step, replica));
    const fused = await this.crew.meter.time('method', () => this.method.fuse(update, outputs, labels));
    this.cotangents = fused.cotangents;
    return fused.losses;
  }

  async backward({ step, round, shardWeights, samples }: Update, signal: AbortSignal): Promise<void> {
    await this.crew.each('backward', step, signal, async ({ rank, worker }, call) => {
      const program = this.programs[this.branchOf(rank)]!;
      if (program.rounds[round]!.gradientLength === 0) return;
      const replica = this.replicaOf(rank);
      // A branch that does not learn may still hold a trunk that does.
      const none = () => new Float32Array(program.outputLengths[this.shardSize(shardWeights[replica]!, samples)]!);
      const cotangents = bytesOf(this.cotangents[replica]![this.branchOf(rank)] ?? none());
      this.crew.meter.moved('cotangents', 'received', cotangents.length);
      await worker.backward(parts(this.crew.stamp(step), cotangents), call);
    });
  }

  async reduce({ step, round }: Update, signal: AbortSignal): Promise<number> {
    const answers = await reduceGradients(this.crew, step, signal);
    // Every segment once: the trunk's norm is everybody's, a branch's that of its first worker.
    const norms = new Map<string, number>();
    this.programs.forEach(({ rounds }, branch) => {
      rounds[round]!.segments.forEach((segment, i) => {
        norms.set(segment === 'trunk' ? segment : `${segment} ${branch}`, answers[branch]!.segmentNorms[i]!);
      });
    });
    return Math.hypot(...norms.values(), this.method.gradientNorm());
  }

  async commit({ step, learningRate, round, last }: Update, signal: AbortSignal): Promise<void> {
    await this.crew.each('commit', step, signal, ({ worker }, call) =>
      worker.commit({ ...this.crew.stamp(step), learningRate, last }, call),
    );
    await this.method.commit(round, learningRate);
  }

  async evaluate(step: number, signal: AbortSignal): Promise<Score[]> {
    const replicas = Array.from({ length: this.plan.replicas }, (_, replica) => replica);
    return this.crew.meter.time('evaluate', async () => {
      const scores = await Promise.all(replicas.map((replica) => this.evaluateReplica(replica, step, signal)));
      return addScores(this.method.program.classifiers, scores.flat());
    });
  }

  async write(step: number, state: NetworkState, signal: AbortSignal): Promise<void> {
    const states = this.programs.map(({ variables }) => bytesOf(fromTensors(variables, state.weights, state.momenta)));
    await this.crew.each('write', step, signal, ({ rank, worker }, call) =>
      worker.writeState(parts(this.crew.stamp(step), states[this.branchOf(rank)]!), call),
    );
    await this.method.write(state);
  }

  async read(step: number, signal: AbortSignal): Promise<Required<NetworkState>> {
    const expect = this.crew.stamp(step);
    const hashes = await this.crew.each('compare', step, signal, ({ worker }, call) => worker.hashState(expect, call));
    this.programs.forEach((_, branch) => {
      const alike = hashes
        .map(({ sha256 }, rank) => ({ rank, sha256 }))
        .filter(({ rank }) => this.branchOf(rank) === branch);
      requireIdentical(alike, `state of branch ${branch}`, step);
    });
    const states = await Promise.all(
      this.programs.map(async ({ variables, stateLength }, branch) => {
        const bytes = await this.crew.one(this.crew.members[branch]!, 'read', step, signal, ({ worker }, call) =>
          collect(worker.readState(expect, call), { maxBytes: 4 * stateLength, expect }),
        );
        return toTensors(variables, floatsOf(bytes));
      }),
    );
    this.requireOneTrunk(states, step);
    states.push(await this.method.read());
    return {
      weights: new Map(states.flatMap(({ weights }) => [...weights])),
      momenta: new Map(states.flatMap(({ momenta }) => [...momenta])),
    };
  }

  close(): Promise<void> {
    return this.method.close();
  }

  /** Every branch's outputs on the step's shards. @returns [replica][branch] */
  private async gather({ step, shardWeights, samples, round }: Update, signal: AbortSignal): Promise<Float32Array[][]> {
    const outputs = await this.crew.each('forward', step, signal, async (member, call) => {
      const shardWeight = shardWeights[this.replicaOf(member.rank)]!;
      const size = this.shardSize(shardWeight, samples);
      return this.forwardOf(member, call, { step, split: 'SPLIT_TRAIN', shardWeight, round }, size);
    });
    const { branches, replicas } = this.plan;
    return Array.from({ length: replicas }, (_, r) => outputs.slice(r * branches, (r + 1) * branches));
  }

  /** Which of plan.shardSizes a shard has. */
  private shardSize(shardWeight: number, samples: number): number {
    return this.plan.shardSizes.indexOf(Math.round(shardWeight * samples));
  }

  private async forwardOf(
    { rank, worker }: Member,
    call: Call,
    request: Pick<ForwardRequest, 'step' | 'split' | 'shardWeight' | 'round'>,
    size: number,
  ): Promise<Float32Array> {
    const expect = this.crew.stamp(request.step);
    const elements = this.programs[this.branchOf(rank)]!.outputLengths.at(size)!;
    const memory = this.outputMemory[rank];
    const into = memory?.length === 4 * elements ? { into: memory } : {};
    const options = { maxBytes: 4 * elements, expect, ...into };
    const bytes = await collect(worker.forward({ ...expect, ...request }, call), options);
    if (bytes.length !== 4 * elements) {
      throw new BraidError('PROTOCOL', `worker ${rank} answered ${bytes.length} bytes of outputs, not ${4 * elements}`);
    }
    this.outputMemory[rank] = bytes;
    this.crew.meter.moved('outputs', 'sent', bytes.length);
    return floatsOf(bytes);
  }

  private async evaluateReplica(replica: number, step: number, signal: AbortSignal): Promise<Score[][]> {
    const scores: Score[][] = [];
    const { branches } = this.plan;
    const members = this.crew.members.slice(replica * branches, (replica + 1) * branches);
    const labels = new Int32Array(this.plan.recipe.evaluation.batch);
    for (let batch = 0; batch < this.shards.count('SPLIT_TEST', replica); batch++) {
      const outputs = await Promise.all(
        members.map((member) =>
          this.crew.one(member, `evaluate (after ${step} steps)`, batch, signal, (_, call) =>
            this.forwardOf(member, call, { step: batch, split: 'SPLIT_TEST', shardWeight: 1, round: 0 }, -1),
          ),
        ),
      );
      labels.fill(-1); // what the last batch lacks
      labels.set(this.shards.labels('SPLIT_TEST', batch, replica));
      scores.push(await this.method.evaluate(outputs, labels));
    }
    return scores;
  }

  /** With a shared trunk, the branches' copies of it must be one. */
  private requireOneTrunk(states: { weights: TensorMap; momenta: TensorMap }[], step: number): void {
    const hashes = states.map(({ weights, momenta }, rank) => {
      const hash = createHash('sha256');
      for (const { name, segment, trainable } of this.programs[rank]!.variables) {
        if (segment !== 'trunk') continue;
        hash.update(bytesOf(weights.get(name)!.data));
        if (trainable) hash.update(bytesOf(momenta.get(name)!.data));
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
