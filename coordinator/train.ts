/** The training loop: every step that is left, its evaluations and its checkpoints. */
import { BraidError } from '../core/errors.ts';
import { within } from '../core/spans.ts';
import type { CheckpointWriter } from './checkpoints-writer.ts';
import type { Crew } from './crew.ts';
import { resultsOf } from './evaluation.ts';
import type { RunEvent } from './events.ts';
import type { Group } from './group.ts';
import type { Ledger } from './ledger.ts';
import { endsEpoch, networkOf, type Plan, samplingOf, stepAt } from './plan.ts';
import type { Recorder } from './recorder.ts';
import { trainStep } from './step.ts';

export interface Training {
  plan: Plan;
  group: Group;
  ledger: Ledger;
  recorder: Recorder;
  run: string;
  /** One for all generations. */
  checkpoints: CheckpointWriter;
  /** Whether somebody waits to join or to leave: the next generation would be another. */
  regroup(): boolean;
  signal: AbortSignal;
  hard: AbortSignal;
  now(): number;
  onEvent(event: RunEvent): void;
}

/**
 * All steps that are left, with their evaluations and checkpoints.
 * @returns the path of the last checkpoint, or null where another generation should go on
 */
export async function train(training: Training): Promise<string | null> {
  const { plan, group, ledger, checkpoints, signal, hard } = training;
  while (ledger.position.step < plan.steps) {
    const { step, round } = ledger.position;
    if (round === 0) {
      if (checkpoints.failure !== null) throw checkpoints.failure;
      if (signal.aborted) return await stopHere(training, step);
      await whatIsDue(training, step);
      if (training.regroup()) return null;
    }
    training.recorder.begin();
    const { everySteps } = plan.recipe.tracing;
    await within('step', () => trainStep(group, stepAt(plan, step), ledger, plan.recipe.training, hard), {
      attributes: { step },
      sampled: step % everySteps === 0,
    });
  }
  const path = await saveNow(training, plan.steps);
  await evaluate(training, plan.steps);
  return path;
}

/** The checkpoint and the evaluation that belong between two steps, where they have not been made. */
async function whatIsDue(training: Training, done: number): Promise<void> {
  const { plan, recorder } = training;
  const { checkpoint, evaluation } = plan.recipe;
  if (done === 0) return;
  const atCheckpoint = checkpoint.everySteps > 0 && done % checkpoint.everySteps === 0;
  if (atCheckpoint) await save(training, done);
  const epochs = done / plan.stepsPerEpoch;
  const atEvaluation = endsEpoch(plan, done - 1) && epochs % evaluation.everyEpochs === 0;
  if (atEvaluation && !recorder.evaluatedAfter(done)) await evaluate(training, done);
}

/** Somebody asked for the end: what has been committed is kept. */
async function stopHere(training: Training, step: number): Promise<never> {
  const path = await saveNow(training, step);
  throw new BraidError('CANCELLED', `stopped after step ${step} of ${training.plan.steps}; the checkpoint is ${path}`, {
    remedy: 'Go on with --resume.',
    details: { step, path },
  });
}

/** Training goes on while it is written. @throws why the one before could not be written */
async function save(training: Training, step: number): Promise<void> {
  const { recorder, checkpoints, now } = training;
  const start = now();
  const waits = checkpoints.busy;
  await checkpoints.settled();
  if (checkpoints.failure !== null) throw checkpoints.failure;
  if (checkpoints.newest?.step !== step) await beginToWrite(training, step);
  recorder.stoodStill(now() - start, waits);
}

/**
 * Waits until it is there to stay, whatever came of the one before.
 * @param crew who is left, where that is not everybody
 * @returns the checkpoint's path   @throws why it could not be written
 */
export async function saveNow(training: Training, step: number, crew?: Crew): Promise<string> {
  const { checkpoints } = training;
  await checkpoints.settled();
  if (checkpoints.newest?.step !== step) await beginToWrite(training, step, crew);
  await checkpoints.settled();
  if (checkpoints.failure !== null) throw checkpoints.failure;
  return checkpoints.newest!.path;
}

/** Compares the replicas, and hands over what they agree on. */
async function beginToWrite(training: Training, step: number, crew?: Crew): Promise<void> {
  const { plan, group, ledger, checkpoints, run, hard, now } = training;
  const start = now();
  const states = await group.read(step, hard, crew);
  const epoch = Math.floor(step / plan.stepsPerEpoch);
  const { lossScale, goodUpdates } = ledger.position;
  const facts = {
    ...{ run, step, epoch, network: networkOf(plan), sampling: samplingOf(plan), recipe: plan.recipe },
    ...(plan.recipe.training.precision === 'f16' && { lossScale: { lossScale, goodUpdates } }),
  };
  checkpoints.write(facts, states, start);
}

async function evaluate(training: Training, step: number): Promise<void> {
  const { plan, group, recorder, signal, hard, now, onEvent } = training;
  const epoch = Math.floor((step - 1) / plan.stepsPerEpoch);
  onEvent({ kind: 'evaluating', epoch, step });
  const start = now();
  const either = AbortSignal.any([signal, hard]);
  try {
    const results = resultsOf(await group.evaluate(step, either), plan.test.length);
    recorder.evaluated(epoch, step, results, now() - start);
  } catch (thrown) {
    if (signal.aborted && !hard.aborted) await stopHere(training, step);
    throw thrown;
  }
}
