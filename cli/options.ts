/** Command lines: options that several commands take, and errors that name the command. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { checkpointName, stepOf } from '../coordinator/checkpoints-manifest.ts';
import { BraidError, nearest } from '../core/errors.ts';
import { loadRecipe, type Recipe } from '../core/recipe.ts';

export type Options = NonNullable<ParseArgsConfig['options']>;

/** `--set path=value`, as often as wanted. */
export const SET = { set: { type: 'string', multiple: true, default: [] as string[] } } as const satisfies Options;

/** `--resume`: go on from the newest checkpoint; where there is no run yet, it begins. `--resume step-00000120`: from that one. */
export const RESUME = { resume: { type: 'string' } } as const satisfies Options;

/** An option without a value is nothing that parseArgs knows: `--resume` alone becomes `--resume=`. */
export function withResume(argv: string[]): string[] {
  const isName = (text = '') => /^(step-)?\d+$/.test(text);
  return argv.flatMap((text, i) => {
    if (text === '--resume') return [`--resume=${isName(argv[i + 1]) ? argv[i + 1] : ''}`];
    return argv[i - 1] === '--resume' && isName(text) ? [] : [text];
  });
}

/** @returns whether to go on, or from which checkpoint   @throws BraidError INVALID_RECIPE */
export function resumeOf(command: string, value: string | undefined): boolean | string {
  if (value === undefined) return false;
  if (value === '') return true;
  if (stepOf(value) !== null) return value;
  throw new BraidError('INVALID_RECIPE', `${command}: --resume ${value}: not the name of a checkpoint`, {
    remedy: `For example: --resume ${checkpointName(120)}. braid checkpoints list <run folder> has all of them.`,
  });
}

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
