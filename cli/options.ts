/** Command lines: options that several commands take, and errors that name the command. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { BraidError, nearest } from '../core/errors.ts';
import { loadRecipe, type Recipe } from '../core/recipe.ts';

export type Options = NonNullable<ParseArgsConfig['options']>;

/** `--set path=value`, as often as wanted. */
export const SET = { set: { type: 'string', multiple: true, default: [] as string[] } } as const satisfies Options;

/** @throws BraidError INVALID_RECIPE naming the option, and the nearest known one */
export function parse<O extends Options>(command: string, argv: string[], options: O, usage: string) {
  try {
    return parseArgs({ args: argv, options, allowPositionals: true });
  } catch (cause) {
    const given = /'(--?[^']+)'/.exec((cause as Error).message)?.[1];
    const near = given === undefined ? undefined : nearest(given.replace(/^-+/, ''), Object.keys(options));
    const hint = near === undefined ? '' : `, did you mean --${near}?`;
    throw new BraidError('INVALID_RECIPE', `${command}: ${(cause as Error).message.split('. ')[0]}${hint}`, {
      remedy: usage,
      cause,
    });
  }
}

/** The one recipe that a command is given. */
export function recipeOf(command: string, positionals: string[], overrides: string[], usage: string): Recipe {
  const [file, ...more] = positionals;
  if (file === undefined || more.length > 0) {
    throw new BraidError('INVALID_RECIPE', `${command}: ${positionals.length} recipes, expected one`, {
      remedy: usage,
    });
  }
  return loadRecipe(file, overrides);
}
