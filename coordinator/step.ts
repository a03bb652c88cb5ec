/**
 * One training step, of one update or of several. Nothing before an update's `commit` changes a weight.
 *
 * In `together` every worker computes a replica: forward is its Compute, backward has happened by then. In `split` the
 * branches' outputs are gathered, the coordinator runs the method, and backward sends the cotangents out (split.ts).
 */
import { BraidError } from '../core/errors.ts';
import type { Losses } from './events.ts';
import type { Group } from './group.ts';
import type { Step, Update } from './plan.ts';

export interface StepResult {
  losses: Losses;
  gradientNorm: number;
}

export async function trainStep(group: Group, step: Step, signal: AbortSignal): Promise<StepResult> {
  const updates: StepResult[] = [];
  for (const [i, round] of step.rounds.entries()) {
    updates.push(await trainRound(group, { ...step, round, last: i === step.rounds.length - 1 }, signal));
  }
  return updates.length === 1 ? updates[0]! : together(updates);
}

async function trainRound(group: Group, update: Update, signal: AbortSignal): Promise<StepResult> {
  const losses = await group.forward(update, signal);
  requireFinite(losses, update);
  await group.backward(update, signal);
  const gradientNorm = await group.reduce(update, signal);
  requireFinite({ 'gradient norm': gradientNorm }, update);
  await group.commit(update, signal); // the first line that changes a weight
  return { losses, gradientNorm };
}

/** A step's updates as one: each term was some update's, and the totals add up. */
function together(updates: StepResult[]): StepResult {
  const losses: Losses = {};
  let total = 0;
  for (const update of updates) {
    Object.assign(losses, update.losses);
    total += update.losses.total!;
  }
  return { losses: { ...losses, total }, gradientNorm: Math.hypot(...updates.map((update) => update.gradientNorm)) };
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
