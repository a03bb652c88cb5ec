/** Fetches what a recipe says it can be fetched from, where its files are not there yet. */
import { existsSync } from 'node:fs';
import type { Recipe } from '../core/recipe.ts';
import { ensureDataset } from '../input/fetch.ts';

export async function bringData({ data }: Recipe, signal: AbortSignal): Promise<void> {
  if (data.fetch === null) return;
  if (!existsSync(data.path)) process.stdout.write(`bringing ${data.fetch} into ${data.path}\n`);
  await ensureDataset(data.fetch, data.path, { signal, log: (line) => process.stdout.write(`${line}\n`) });
}
