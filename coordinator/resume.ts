/** Where a run goes on: from a checkpoint that is whole, and of this very network and order of samples. */
import { BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { type Checkpoint, readCheckpoint } from './checkpoints.ts';
import { requireEqual } from './checkpoints-manifest.ts';
import type { CheckpointStore } from './checkpoints-store.ts';
import { networkOf, type Plan, samplingOf } from './plan.ts';

/**
 * @param name of the checkpoint; null: the newest
 * @throws BraidError INVALID_CHECKPOINT when there is none, it is damaged (and from which one to go on instead), or it is of
 *   another network or order of samples
 */
export async function checkpointToResume(
  store: CheckpointStore,
  plan: Plan,
  name: string | null,
  log: Log,
): Promise<Checkpoint> {
  const names = (await store.list()).map((stored) => stored.name);
  const at = name === null ? names.length - 1 : names.indexOf(name);
  if (at < 0) throw missing(store, names, name);
  const checkpoint = await readOrOffer(store, names.slice(0, at + 1));
  const { path, manifest } = checkpoint;
  const remedy = 'Resume with the recipe that the run was started with: it is in the run folder.';
  requireEqual(manifest.network, networkOf(plan), `${path} is of another network`, remedy);
  requireEqual(manifest.sampling, samplingOf(plan), `${path} is of a run with another order of samples`, remedy);
  const later = names.slice(at + 1);
  if (later.length > 0) log.warn(`going back: the next checkpoint replaces ${later.join(', ')}`);
  return checkpoint;
}

/** @throws BraidError SETUP when a new run would write over another one's checkpoints */
export async function requireNoCheckpoints(store: CheckpointStore): Promise<void> {
  const newest = (await store.list()).at(-1);
  if (newest === undefined) return;
  throw new BraidError('SETUP', `${store.where} holds another run: it has ${newest.name}`, {
    remedy: 'Go on with it (--resume), or name another place (--set checkpoint.store=...).',
  });
}

/** Reads the last of `names`; where it is damaged, the error says which of the others is not. */
async function readOrOffer(store: CheckpointStore, names: string[]): Promise<Checkpoint> {
  try {
    return await readCheckpoint(store, names.at(-1)!);
  } catch (error) {
    if (!(error instanceof BraidError) || error.code !== 'INVALID_CHECKPOINT') throw error;
    const whole = await newestWhole(store, names.slice(0, -1));
    const remedy =
      whole === null
        ? `${error.remedy} No earlier one is whole.`
        : `Go on from the newest one before that is whole: --resume ${whole}`;
    throw new BraidError(error.code, error.message, { remedy, cause: error });
  }
}

async function newestWhole(store: CheckpointStore, names: string[]): Promise<string | null> {
  for (const name of names.toReversed()) {
    try {
      await readCheckpoint(store, name);
      return name;
    } catch {} // the one before it, then
  }
  return null;
}

function missing({ where }: CheckpointStore, names: string[], name: string | null): BraidError {
  if (names.length === 0) {
    return new BraidError('INVALID_CHECKPOINT', `${where} has no checkpoint to go on from`, {
      remedy: 'Start without --resume, or name the run whose checkpoint you mean.',
    });
  }
  return new BraidError('INVALID_CHECKPOINT', `${where} has no checkpoint ${name}`, {
    remedy: `It has ${names.join(', ')}.`,
  });
}
