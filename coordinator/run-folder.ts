/** runs/<name>: what a run leaves behind. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { formatRecipe, type Recipe } from '../core/recipe.ts';

export interface RunFolder {
  path: string;
  /** The resolved recipe: enough to repeat the run. */
  recipe: string;
  /** The run's own name: workers that outlive a coordinator know the next one by it. */
  run: string;
  metrics: string;
  badSamples: string;
  checkpoints: string;
  summary: string;
}

export function runFolderAt(path: string): RunFolder {
  const at = resolve(path);
  return {
    path: at,
    recipe: join(at, 'recipe.yaml'),
    run: join(at, 'run.json'),
    metrics: join(at, 'metrics.jsonl'),
    badSamples: join(at, 'bad-samples.jsonl'),
    checkpoints: join(at, 'checkpoints'),
    summary: join(at, 'summary.json'),
  };
}

/** @throws BraidError SETUP when a new run would write over what is there */
export function requireEmpty({ path }: RunFolder): void {
  if (!existsSync(path) || readdirSync(path).length === 0) return;
  throw new BraidError('SETUP', `${path} holds another run`, {
    remedy: 'Go on with it (--resume), give this run another name (--set name=...), or remove the folder.',
  });
}

/** The name of the run that the folder is of; null where none has begun. */
export function runNameIn(folder: RunFolder): string | null {
  try {
    return z.object({ run: z.string() }).parse(JSON.parse(readFileSync(folder.run, 'utf8'))).run;
  } catch {
    return null;
  }
}

/** Makes the folder, with its recipe. @throws BraidError SETUP when it cannot be written */
export function createRunFolder(folder: RunFolder, recipe: Recipe, run: string): void {
  try {
    mkdirSync(folder.checkpoints, { recursive: true });
    writeFileSync(folder.recipe, formatRecipe(recipe));
    writeFileSync(folder.run, JSON.stringify({ run }));
  } catch (cause) {
    throw new BraidError('SETUP', `cannot write ${folder.path}: ${(cause as Error).message}`, {
      remedy: 'Run where there is write permission and room on the disk, or name another folder.',
      cause,
    });
  }
}
