/** braid config: a recipe with every value resolved, and where each came from. */
import { isDeepStrictEqual } from 'node:util';
import { formatRecipe, readRecipe } from '../core/recipe.ts';
import { parse, recipeOf, SET } from './options.ts';

const VALUE_COLUMNS = 48; // most values fit; longer ones push their origin to the right

const USAGE = 'braid config <recipe.yaml> [--set path=value ...]';

export async function config(argv: string[]): Promise<number> {
  const { values, positionals } = parse('config', argv, SET, USAGE);
  const resolved = recipeOf('config', positionals, values.set, USAGE);
  const file = readRecipe(positionals[0]!);
  for (const line of formatRecipe(resolved).trimEnd().split('\n')) process.stdout.write(`${line}\n`);
  process.stdout.write('\n# where each value came from\n');
  for (const [path, value] of leaves(resolved)) {
    const source = isDeepStrictEqual(at(file, path), value)
      ? positionals[0]
      : values.set.some((s) => path.join('.').startsWith(s.split('=')[0]!))
        ? '--set'
        : 'default';
    process.stdout.write(`# ${`${path.join('.')}: ${JSON.stringify(value)}`.padEnd(VALUE_COLUMNS)} ${source}\n`);
  }
  return 0;
}

function leaves(value: unknown, path: string[] = []): [string[], unknown][] {
  if (typeof value !== 'object' || value === null) return [[path, value]];
  return Object.entries(value).flatMap(([key, inner]) => leaves(inner, [...path, key]));
}

function at(value: unknown, path: string[]): unknown {
  return path.reduce<unknown>((inner, key) => (inner as Record<string, unknown> | undefined)?.[key], value);
}
