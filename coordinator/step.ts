/**
 * One training step, of one update or of several. Nothing before an update's `commit` changes a weight.
 *
 * In `together` every worker computes a replica: forward is its Compute, backward has happened by then. In `split` the
 * branches' outputs are gathered, the coordinator's threads run the method, and backward sends the cotangents out (split.ts).
 *
 * An update that is not finite is left out where the recipe says so; in f16 also one whose gradients overflow, which lowers
 * the scale of the next one's losses (core/loss-scale.ts).
 */
import { asBraidError, BraidError } from '../core/errors.ts';
import { nextLossScale } from '../core/loss-scale.ts';
import type { Recipe } from '../core/recipe.ts';
import type { BadSample } from '../proto/messages.ts';
import type { Losses } from './events.ts';
import type { Group } from './group.ts';
import type { Ledger } from './ledger.ts';
import type { Step, Update } from './plan.ts';

export interface StepResult {
  losses: Losses;
  gradientNorm: number;
  /** Updates that were left out because they were not finite. */
  skipped: number;
  /** Updates that were left out because their gradients, multiplied by the loss scale, were not. */
  overflowed: number;
  /** Samples that others stood in for. */
  bad: BadSample[];
}

/** What is left of the step that the ledger is at. */
export async function trainStep(
  group: Group,
  step: Step,
  ledger: Ledger,
  training: Recipe['training'],
  signal: AbortSignal,
): Promise<void> {
  for (let i = ledger.position.round; i < step.rounds.length; i++) {
    const { lossScale, goodUpdates } = ledger.position;
    const update = { ...step, round: step.rounds[i]!, last: i === step.rounds.length - 1, lossScale };
    const result = await compute(group, update, training.nonFinite, signal);
    const [failed, overflowed] = [result.skipped > 0, result.overflowed > 0];
    const scale = { lossScale, goodUpdates };
    const next = failed ? scale : nextLossScale(scale, overflowed, training);
    const decision = { ...update, skip: failed || overflowed, next };
    ledger.decide(decision, result);
    await group.commit(decision, signal); // the first line that changes a weight
    ledger.commit();
  }
}

async function compute(
  group: Group,
  update: Update,
  nonFinite: 'stop' | 'skip',
  signal: AbortSignal,
): Promise<StepResult> {
  let losses: Losses = {};
  let bad: BadSample[] = [];
  try {
    ({ losses, bad } = await group.forward(update, signal));
    requireFinite(losses, update);
    await group.backward(update, signal);
    const { norm: gradientNorm, culprits } = await group.reduce(update, signal);
    const overflows = update.lossScale > 1 && !Number.isFinite(gradientNorm);
    if (!overflows) requireFinite({ 'gradient norm': gradientNorm }, update, culprits);
    return { losses, gradientNorm, skipped: 0, overflowed: overflows ? 1 : 0, bad };
  } catch (thrown) {
    if (nonFinite === 'stop' || asBraidError(thrown).code !== 'NON_FINITE') throw thrown;
    return { losses, gradientNorm: Number.NaN, skipped: 1, overflowed: 0, bad };
  }
}

/** @param culprits the ranks that it comes from, where that is known */
function requireFinite(values: Record<string, number>, update: Step, culprits: number[] = []): void {
  const { step, epoch, learningRate } = update;
  const bad = Object.entries(values).filter(([, value]) => !Number.isFinite(value));
  if (bad.length === 0) return;
  const which = bad.map(([name, value]) => `${name} is ${value}`).join(', ');
  const whose = culprits.length === 0 ? '' : `, by the gradient of rank ${culprits.join(', ')}`;
  throw new BraidError(
    'NON_FINITE',
    `step ${step} (epoch ${epoch}): ${which}${whose}; the weights are those of before the step`,
    {
      remedy: `Lower training.learningRate (${learningRate} at this step), or look at the batch; then go on with --resume.`,
      details: { step, epoch, ...values },
    },
  );
}
