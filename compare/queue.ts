/** The runs of a comparison, where each stands, and how long they will all take. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { openStore, placeOf } from '../coordinator/checkpoints-store.ts';
import { runFolderAt } from '../coordinator/run-folder.ts';
import { BraidError } from '../core/errors.ts';
import { loadRecipe, type Recipe } from '../core/recipe.ts';
import type { Survey } from './survey.ts';

export interface QueuedRun {
  /** The name of the recipe that was given. */
  label: string;
  /** With this run's name and seed. */
  recipe: Recipe;
  folder: string;
  /** Training images of the whole run. */
  images: number;
  /** Multiply-adds of all of them: what its duration goes by. */
  work: number;
}

/** All systems with the first seed, then all with the second: an early end leaves whole tables of fewer seeds. */
export function queueOf(systems: (Survey & { recipe: Recipe })[], seeds: number, folder: string): QueuedRun[] {
  return Array.from({ length: seeds }, (_, i) => i + 1).flatMap((seed) =>
    systems.map(({ recipe, stepsPerEpoch, images, complexity }) => {
      const name = `${recipe.name}-seed${seed}`;
      // An interrupted comparison goes on from here: a recipe that saves nothing on its way saves every epoch.
      const everySteps = recipe.checkpoint.everySteps || stepsPerEpoch;
      const store = recipe.checkpoint.store && `${recipe.checkpoint.store}/${basename(folder)}/${name}`;
      const own = { ...recipe, name, seed, checkpoint: { ...recipe.checkpoint, everySteps, store } };
      return {
        label: recipe.name,
        recipe: own,
        folder: join(folder, name),
        images,
        work: images * complexity.multiplyAdds,
      };
    }),
  );
}

/** finished: has a summary. unfinished: has a checkpoint. new: its folder is free, or holds an attempt without either. */
export type Standing = 'new' | 'unfinished' | 'finished';

/** @throws BraidError INVALID_RECIPE when the folder holds a run of another recipe */
export async function standingOf({ folder, recipe }: QueuedRun): Promise<Standing> {
  const at = runFolderAt(folder);
  if (!existsSync(at.path) || readdirSync(at.path).length === 0) return 'new';
  const differences = existsSync(at.recipe) ? differing(loadRecipe(at.recipe), recipe) : ['it has no recipe.yaml'];
  if (differences.length > 0) {
    throw new BraidError('INVALID_RECIPE', `${at.path} holds another run: ${differences.join('; ')}`, {
      remedy: 'Compare under another --name, or remove the folder.',
    });
  }
  if (existsSync(at.summary)) return 'finished';
  const store = await openStore(placeOf(recipe, at));
  return (await store.list()).length > 0 ? 'unfinished' : 'new';
}

/** Removes what an attempt left that ended before its first checkpoint. The run must be new. */
export function clear({ folder }: QueuedRun): void {
  rmSync(folder, { recursive: true, force: true });
}

/**
 * Seconds until all runs are done, at the rate seen so far.
 * @param seen runs of this comparison and how long each takes, the one under way included
 * @param left of the one under way   @param waiting the work of those not begun
 */
export function secondsLeft(seen: { work: number; seconds: number }[], left: number, waiting: number[]): number {
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
  const secondsPerWork = sum(seen.map(({ seconds }) => seconds)) / sum(seen.map(({ work }) => work));
  return left + sum(waiting) * secondsPerWork;
}

function differing(there: unknown, here: unknown, path = ''): string[] {
  if (isDeepStrictEqual(there, here)) return [];
  const nested = (value: unknown) => typeof value === 'object' && value !== null && !Array.isArray(value);
  if (nested(there) && nested(here)) {
    const keys = new Set([...Object.keys(there as object), ...Object.keys(here as object)]);
    const inner = (value: unknown, key: string) => (value as Record<string, unknown>)[key];
    return [...keys].flatMap((key) =>
      differing(inner(there, key), inner(here, key), path === '' ? key : `${path}.${key}`),
    );
  }
  return [`${path} is ${JSON.stringify(there) ?? 'absent'} there and ${JSON.stringify(here) ?? 'absent'} here`];
}
