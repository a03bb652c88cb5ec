/**
 * One training step, of one update or of several. Nothing before an update's `commit` changes a weight.
 *
 * In `together` every worker computes a replica: forward is its Compute, backward has happened by then. In `split` the
 * branches' outputs are gathered, the coordinator's threads run the method, and backward sends the cotangents out (split.ts).
 */
import { asBraidError, BraidError } from '../core/errors.ts';
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
  /** Samples that others stood in for. */
  bad: BadSample[];
}

/** What is left of the step that the ledger is at. */
export async function trainStep(
  group: Group,
  step: Step,
  ledger: Ledger,
  nonFinite: 'stop' | 'skip',
  signal: AbortSignal,
): Promise<void> {
  for (let i = ledger.position.round; i < step.rounds.length; i++) {
    const update = { ...step, round: step.rounds[i]!, last: i === step.rounds.length - 1, skip: false };
    const { result, skip } = await compute(group, update, nonFinite, signal);
    const decided = { ...update, skip };
    ledger.decide(decided, result);
    await group.commit(decided, signal); // the first line that changes a weight
    ledger.commit();
  }
}

async function compute(group: Group, update: Update, nonFinite: 'stop' | 'skip', signal: AbortSignal) {
  let losses: Losses = {};
  let bad: BadSample[] = [];
  try {
    ({ losses, bad } = await group.forward(update, signal));
    requireFinite(losses, update);
    await group.backward(update, signal);
    const gradientNorm = await group.reduce(update, signal);
    requireFinite({ 'gradient norm': gradientNorm }, update);
    return { result: { losses, gradientNorm, skipped: 0, bad }, skip: false };
  } catch (thrown) {
    if (nonFinite === 'stop' || asBraidError(thrown).code !== 'NON_FINITE') throw thrown;
    return { result: { losses, gradientNorm: Number.NaN, skipped: 1, bad }, skip: true };
  }
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
