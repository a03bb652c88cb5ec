/** What changes over a run, as pure functions of the recipe and the epoch or step. Epochs and steps count from 0. */
import type { RampUp, Recipe } from './recipe.ts';
import { stepsPerEpoch } from './sampler.ts';

/** The learning rate of an epoch: multiplied by gamma once for every milestone reached. */
export function learningRateAt({ learningRate, milestones, gamma }: Recipe['training'], epoch: number): number {
  return learningRate * gamma ** milestones.filter((milestone) => epoch >= milestone).length;
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
