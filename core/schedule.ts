/** What changes over a run, as pure functions of the recipe and the epoch or step. Epochs and steps count from 0. */
import { branchesOf, type RampUp, type Recipe } from './recipe.ts';
import { stepsPerEpoch } from './sampler.ts';

/**
 * The learning rate of a step: a tenth (gamma) less for every milestone reached, from the first step of its epoch on, or half
 * a cosine; less than that in the warm-up. Where a method trains in phases, each has the whole schedule to itself, at its
 * own scale.
 * @param part of the epoch that is over, [0, 1)
 */
export function learningRateAt({ training, method }: Schedule, epoch: number, part = 0): number {
  const { schedule, milestones, gamma, epochs, warmUp } = training;
  const { start, end } = phasesOf(method, epochs).find((phase) => epoch < phase.end) ?? { start: 0, end: epochs };
  const at = (within: number) => ((epoch + within - start) * epochs) / (end - start);
  const peak = peakLearningRate(training);
  if (at(part) < warmUp.epochs)
    return peak * (warmUp.startFactor + (1 - warmUp.startFactor) * (at(part) / warmUp.epochs));
  if (schedule === 'cosine') {
    const progress = (at(part) - warmUp.epochs) / (epochs - warmUp.epochs);
    return (peak * (1 + Math.cos(Math.PI * progress))) / 2;
  }
  return peak * gamma ** milestones.filter((milestone) => at(0) >= milestone).length;
}

/** By the linear scaling rule, where the recipe has it. */
function peakLearningRate({ learningRate, referenceBatch, batch }: Recipe['training']): number {
  return referenceBatch === null ? learningRate : learningRate * (batch / referenceBatch);
}

type Schedule = Pick<Recipe, 'training' | 'method' | 'branches'>;

/** The rounds that a method's steps are made of, each an update of its own: most have one alone, `all`. */
export function roundNames({ training, method, branches }: Schedule): string[] {
  if (method.name === 'dml' && method.update === 'alternate')
    return branchesOf({ branches }).map((_, k) => `network.${k}`);
  const phases = phasesOf(method, training.epochs);
  return phases.length === 0 ? ['all'] : phases.map(({ name }) => name);
}

/** The rounds of an epoch's steps, in order, by their place in `roundNames`. */
export function roundsAt(schedule: Schedule, epoch: number): number[] {
  const phases = phasesOf(schedule.method, schedule.training.epochs);
  if (phases.length === 0) return roundNames(schedule).map((_, round) => round);
  const current = phases.findIndex(({ end }) => epoch < end);
  return [current < 0 ? phases.length - 1 : current];
}

/** DualNet's published phases: epochs [start, end). */
function phasesOf(method: Recipe['method'], epochs: number): { name: string; start: number; end: number }[] {
  if (method.name !== 'dualnet' || method.schedule === 'joint') return [];
  const parts = Object.entries(method.phases);
  const whole = parts.reduce((sum, [, part]) => sum + part, 0);
  let before = 0;
  return parts.flatMap(([name, part]) => {
    const start = Math.round((before / whole) * epochs);
    before += part;
    const end = Math.round((before / whole) * epochs);
    return end > start ? [{ name, start, end }] : [];
  });
}

/** w(e) of a ramp-up: exp(-5 (1 - clip(e, 0, E) / E)^2), from 0.0067 to 1 over E epochs, constant within each. */
export function rampUpWeight(rampUp: RampUp, epoch: number): number {
  if (rampUp.kind === 'constant') return rampUp.value;
  const rest = 1 - Math.min(Math.max(epoch, 0), rampUp.epochs) / rampUp.epochs;
  return Math.exp(-5 * rest * rest);
}

/** The weight of the method's distillation terms; 0 where it has none. */
export function distillWeightAt(method: Recipe['method'], epoch: number): number {
  return 'rampUp' in method ? rampUpWeight(method.rampUp, epoch) : 0;
}

/** How many steps a run has: all of its epochs', or fewer where the recipe says so. */
export function totalSteps({ epochs, batch, maxSteps }: Recipe['training'], samples: number): number {
  return Math.min(epochs * stepsPerEpoch(samples, batch), maxSteps ?? Number.POSITIVE_INFINITY);
}
