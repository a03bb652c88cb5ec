/** Placement `together`: every worker holds a whole replica, method included. All of them stay bitwise identical. */
import { BraidError } from '../core/errors.ts';
import { bytesOf, floatsOf } from '../core/floats.ts';
import type { Recipe } from '../core/recipe.ts';
import { replicaSegments } from '../nn/phases.ts';
import { addScores, type Score } from '../nn/scores.ts';
import { fromTensors } from '../nn/variables.ts';
import type { Position } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { FlatState, GradientSum, Group, NetworkState } from './group.ts';
import { inspectShards } from './inspect.ts';
import type { Seat } from './membership.ts';
import type { Decision, Plan, Update } from './plan.ts';
import { type Prepared, prepare, requireSameProgram } from './prepare.ts';
import { reduceGradients } from './reduce.ts';
import { requireIdentical } from './replicas.ts';
import { commitOf, isAt, settleOn } from './settle.ts';

export async function prepareTogether(crew: Crew, plan: Plan, step: number, signal: AbortSignal): Promise<Group> {
  const ranks = crew.members.map(({ rank }) => rank);
  const groups = replicaSegments(plan.recipe.cluster).map((segment) => ({ segment, ranks }));
  const programs = await prepare(crew, plan, step, signal, (rank) => ({ replica: rank, groups }));
  programs.forEach((program, rank) => {
    requireSameProgram(programs[0]!, program, [0, rank]);
  });
  const held = programs.map((program) => program.held ?? null);
  return new Together(crew, plan.recipe, programs[0]!, held);
}

class Together implements Group {
  private readonly crew: Crew;
  private readonly recipe: Recipe;
  private readonly program: Prepared;
  readonly held: (Position | null)[];

  constructor(crew: Crew, recipe: Recipe, program: Prepared, held: (Position | null)[]) {
    this.crew = crew;
    this.recipe = recipe;
    this.program = program;
    this.held = held;
  }

  get variables() {
    return this.program.variables;
  }

  async fill(at: Position, signal: AbortSignal): Promise<boolean> {
    const holds = ({ rank }: Seat) => isAt(this.held[rank]!, at);
    const holders = this.crew.members.filter(holds);
    if (holders.length === 0) return false;
    await this.compare(at.step, signal, holders);
    const others = this.crew.members.filter((seat) => !holds(seat));
    if (others.length === 0) return true;
    const state = await this.readOne(holders[0]!, at.step, signal);
    await this.crew.each('fill', at.step, signal, (seat, call) => this.crew.writeState(seat, at, state, call), others);
    return true;
  }

  async forward({ step, distillWeight, shardWeights, round, lossScale }: Update, signal: AbortSignal) {
    const answers = await this.crew.each('compute', step, signal, ({ rank, worker }, call) => {
      const request = { distillWeight, shardWeight: shardWeights[rank]!, round, lossScale };
      return worker.compute({ ...this.crew.stamp(step), ...request }, call);
    });
    const names = this.program.rounds[round]!.losses;
    const losses: Losses = {};
    answers.forEach((answer, rank) => {
      if (answer.losses.length !== names.length) {
        throw new BraidError('PROTOCOL', `worker ${rank} answered ${answer.losses.length} losses, not ${names.length}`);
      }
      names.forEach((name, i) => {
        losses[name] = (losses[name] ?? 0) + shardWeights[rank]! * answer.losses[i]!;
      });
    });
    return { losses, bad: (await inspectShards(this.crew, this.recipe, step, signal)).flat() };
  }

  /** Compute has left the gradient on each worker. */
  async backward(): Promise<void> {}

  async reduce({ step }: Update, signal: AbortSignal): Promise<GradientSum> {
    const { answers, culprits } = await reduceGradients(this.crew, step, signal);
    return { norm: Math.hypot(...answers[0]!.segmentNorms), culprits };
  }

  async commit(update: Decision, signal: AbortSignal): Promise<void> {
    await this.crew.each('commit', update.step, signal, ({ worker }, call) =>
      worker.commit({ ...this.crew.stamp(update.step), ...commitOf(update) }, call),
    );
  }

  async settle(update: Decision, crew: Crew, signal: AbortSignal): Promise<boolean> {
    const settled = await settleOn(crew, update, signal);
    return settled.length > 0;
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

  async write(at: Position, { weights, momenta, averages }: NetworkState, signal: AbortSignal): Promise<void> {
    const state = bytesOf(fromTensors(this.program.variables, weights, momenta, averages));
    await this.crew.each('write', at.step, signal, (seat, call) => this.crew.writeState(seat, at, state, call));
  }

  async read(step: number, signal: AbortSignal, crew = this.crew): Promise<FlatState[]> {
    await this.compare(step, signal, crew.members, crew);
    const state = floatsOf(await this.readOne(crew.members[0]!, step, signal, crew));
    return [{ variables: this.program.variables, state }];
  }

  private async compare(step: number, signal: AbortSignal, members: readonly Seat[], crew = this.crew): Promise<void> {
    const hashes = await crew.each(
      'compare',
      step,
      signal,
      async ({ rank, worker }, call) => ({ rank, ...(await worker.hashState(this.crew.stamp(step), call)) }),
      members,
    );
    requireIdentical(hashes, 'state', step);
  }

  private readOne(seat: Seat, step: number, signal: AbortSignal, crew = this.crew): Promise<Uint8Array> {
    return crew.readState(seat, step, 4 * this.program.stateLength, signal);
  }
}
