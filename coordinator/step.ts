/**
 * One training step. Nothing before `commit` changes a weight.
 *
 * In `together` every worker computes a replica: forward is its Compute, backward has happened by then. In `split` the
 * branches' outputs are gathered, the coordinator runs the method, and backward sends the cotangents out (split.ts).
 */
import { BraidError } from '../core/errors.ts';
import type { Losses } from './events.ts';
import type { Group } from './group.ts';
import type { Step } from './plan.ts';

export interface StepResult {
  losses: Losses;
  gradientNorm: number;
}

export async function trainStep(group: Group, step: Step, signal: AbortSignal): Promise<StepResult> {
  const losses = await group.forward(step, signal);
  requireFinite(losses, step);
  await group.backward(step, signal);
  const gradientNorm = await group.reduce(step, signal);
  requireFinite({ 'gradient norm': gradientNorm }, step);
  await group.commit(step, signal); // the first line that changes a weight
  return { losses, gradientNorm };
}

function requireFinite(values: Record<string, number>, { step, epoch, learningRate }: Step): void {
  const bad = Object.entries(values).filter(([, value]) => !Number.isFinite(value));
  if (bad.length === 0) return;
  const which = bad.map(([name, value]) => `${name} is ${value}`).join(', ');
  throw new BraidError(
    'NON_FINITE',
    `step ${step} (epoch ${epoch}): ${which}; the weights are those of before the step`,
    {
      remedy: `Lower training.learningRate (${learningRate} at this step), or look at the batch; then go on with --resume.`,
      details: { step, epoch, ...values },
    },
  );
}
