/** The training loop: every step that is left, its evaluations and its checkpoints. */
import { BraidError } from '../core/errors.ts';
import { writeCheckpoint } from './checkpoints.ts';
import { resultsOf } from './evaluation.ts';
import type { RunEvent } from './events.ts';
import type { Group } from './group.ts';
import { endsEpoch, networkOf, type Plan, samplingOf, stepAt } from './plan.ts';
import type { Recorder } from './recorder.ts';
import type { RunFolder } from './run-folder.ts';
import { trainStep } from './step.ts';

export interface Training {
  plan: Plan;
  group: Group;
  recorder: Recorder;
  folder: RunFolder;
  run: string;
  firstStep: number;
  /** The newest checkpoint, once there is one. */
  saved: { step: number; path: string } | null;
  signal: AbortSignal;
  hard: AbortSignal;
  now(): number;
  onEvent(event: RunEvent): void;
}

/** All steps that are left, with their evaluations and checkpoints. @returns the path of the last checkpoint */
export async function train(training: Training): Promise<string> {
  const { plan, group, recorder, firstStep, signal, hard, now } = training;
  const { checkpoint, evaluation } = plan.recipe;
  for (let at = firstStep; at < plan.steps; at++) {
    if (signal.aborted) return await stopHere(training, at);
    const step = stepAt(plan, at);
    const start = now();
    const result = await trainStep(group, step, hard);
    recorder.step(step, result, now() - start);

    const done = at + 1;
    if (done === plan.steps) break;
    if (checkpoint.everySteps > 0 && done % checkpoint.everySteps === 0) await save(training, done);
    if (endsEpoch(plan, at) && (step.epoch + 1) % evaluation.everyEpochs === 0)
      await evaluate(training, step.epoch, done);
  }
  const path = await save(training, plan.steps);
  await evaluate(training, Math.floor((plan.steps - 1) / plan.stepsPerEpoch), plan.steps);
  return path;
}

/** Somebody asked for the end: what has been committed is kept. */
async function stopHere(training: Training, step: number): Promise<never> {
  const path = await save(training, step);
  throw new BraidError('CANCELLED', `stopped after step ${step} of ${training.plan.steps}; the checkpoint is ${path}`, {
    remedy: 'Go on with --resume.',
    details: { step, path },
  });
}

/** Compares the replicas, and writes what they agree on. @returns the checkpoint's path */
async function save(training: Training, step: number): Promise<string> {
  if (training.saved?.step === step) return training.saved.path;
  const { plan, group, recorder, folder, run, hard, now } = training;
  const start = now();
  const state = await group.read(step, hard);
  const epoch = Math.floor(step / plan.stepsPerEpoch);
  const facts = { run, step, epoch, network: networkOf(plan), sampling: samplingOf(plan), recipe: plan.recipe };
  const path = await writeCheckpoint(folder.checkpoints, facts, state, { keep: plan.recipe.checkpoint.keep });
  training.saved = { step, path };
  recorder.checkpointed(step, path, now() - start);
  return path;
}

async function evaluate(training: Training, epoch: number, step: number): Promise<void> {
  const { plan, group, recorder, signal, hard, now, onEvent } = training;
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
