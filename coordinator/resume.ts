/** Where a run goes on: the newest checkpoint of its folder, if it is whole and of this very network and order of samples. */
import { BraidError } from '../core/errors.ts';
import { type Checkpoint, listCheckpoints, readCheckpoint, requireEqual } from './checkpoints.ts';
import { networkOf, type Plan, samplingOf } from './plan.ts';
import type { RunFolder } from './run-folder.ts';

/** @throws BraidError INVALID_CHECKPOINT when there is none, it is damaged, or it is of another network or order of samples */
export async function newestCheckpoint(folder: RunFolder, plan: Plan): Promise<Checkpoint> {
  const path = listCheckpoints(folder.checkpoints).at(-1);
  if (path === undefined) {
    throw new BraidError('INVALID_CHECKPOINT', `${folder.checkpoints} has no checkpoint to go on from`, {
      remedy: 'Start without --resume, or name the run whose checkpoint you mean.',
    });
  }
  const checkpoint = await readCheckpoint(path);
  const { network, sampling } = checkpoint.manifest;
  const remedy = 'Resume with the recipe that the run was started with: it is in the run folder.';
  requireEqual(network, networkOf(plan), `${path} is of another network`, remedy);
  requireEqual(sampling, samplingOf(plan), `${path} is of a run with another order of samples`, remedy);
  return checkpoint;
}
