/** Placement `together`: every worker holds a whole replica, method included. All of them stay bitwise identical. */
import { BraidError } from '../core/errors.ts';
import { addScores, type Score } from '../nn/scores.ts';
import { fromTensors, toTensors } from '../nn/variables.ts';
import { collect, parts } from '../proto/parts.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { Group, NetworkState } from './group.ts';
import { bytesOf, floatsOf } from './memory.ts';
import type { Plan, Update } from './plan.ts';
import { type Prepared, prepare, requireSameProgram } from './prepare.ts';
import { reduceGradients } from './reduce.ts';
import { requireIdentical } from './replicas.ts';

export async function prepareTogether(crew: Crew, plan: Plan, step: number, signal: AbortSignal): Promise<Group> {
  const ranks = crew.members.map(({ rank }) => rank);
  const groups = [{ segment: 'all', ranks }];
  const programs = await prepare(crew, plan, step, signal, (rank) => ({ replica: rank, groups }));
  programs.forEach((program, rank) => {
    requireSameProgram(programs[0]!, program, [0, rank]);
  });
  return new Together(crew, programs[0]!);
}

class Together implements Group {
  private readonly crew: Crew;
  private readonly program: Prepared;

  constructor(crew: Crew, program: Prepared) {
    this.crew = crew;
    this.program = program;
  }

  get variables() {
    return this.program.variables;
  }

  async forward({ step, distillWeight, shardWeights, round }: Update, signal: AbortSignal): Promise<Losses> {
    const answers = await this.crew.each('compute', step, signal, ({ rank, worker }, call) =>
      worker.compute({ ...this.crew.stamp(step), distillWeight, shardWeight: shardWeights[rank]!, round }, call),
    );
    const names = this.program.rounds[round]!.losses;
    const losses: Losses = {};
    answers.forEach((answer, rank) => {
      this.crew.meter.computed(rank, answer.deviceSeconds, answer.inputSeconds);
      if (answer.losses.length !== names.length) {
        throw new BraidError('PROTOCOL', `worker ${rank} answered ${answer.losses.length} losses, not ${names.length}`);
      }
      names.forEach((name, i) => {
        losses[name] = (losses[name] ?? 0) + shardWeights[rank]! * answer.losses[i]!;
      });
    });
    return losses;
  }

  /** Compute has left the gradient on each worker. */
  async backward(): Promise<void> {}

  async reduce({ step }: Update, signal: AbortSignal): Promise<number> {
    const answers = await reduceGradients(this.crew, step, signal);
    return answers[0]!.segmentNorms[0]!;
  }

  async commit({ step, learningRate, last }: Update, signal: AbortSignal): Promise<void> {
    await this.crew.each('commit', step, signal, ({ worker }, call) =>
      worker.commit({ ...this.crew.stamp(step), learningRate, last }, call),
    );
  }

  async evaluate(step: number, signal: AbortSignal): Promise<Score[]> {
    const answers = await this.crew.each('evaluate', step, signal, ({ worker }, call) =>
      worker.evaluate(this.crew.stamp(step), call),
    );
    return addScores(
      this.program.classifiers,
      answers.map(({ scores }) => scores),
    );
  }

  async write(step: number, { weights, momenta }: NetworkState, signal: AbortSignal): Promise<void> {
    const state = bytesOf(fromTensors(this.program.variables, weights, momenta));
    await this.crew.each('write', step, signal, ({ worker }, call) =>
      worker.writeState(parts(this.crew.stamp(step), state), call),
    );
  }

  async read(step: number, signal: AbortSignal): Promise<Required<NetworkState>> {
    const hashes = await this.crew.each('compare', step, signal, ({ worker }, call) =>
      worker.hashState(this.crew.stamp(step), call),
    );
    requireIdentical(
      hashes.map(({ sha256 }, rank) => ({ rank, sha256 })),
      'state',
      step,
    );
    const expect = this.crew.stamp(step);
    const state = await this.crew.one(this.crew.members[0]!, 'read', step, signal, ({ worker }, call) =>
      collect(worker.readState(expect, call), { maxBytes: 4 * this.program.stateLength, expect }),
    );
    return toTensors(this.program.variables, floatsOf(state));
  }

  async close(): Promise<void> {}
}
