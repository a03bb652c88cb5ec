/** braid data: brings data sets to this machine, indexes and checks them. */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { BraidError } from '../core/errors.ts';
import { fetchDataset } from '../input/fetch.ts';
import { published } from '../input/sources.ts';
import { checkRecipeData, checkSource } from './data-check.ts';
import { writeIndex } from './data-index.ts';
import { pack } from './data-pack.ts';

export const usage = `braid data fetch <name> [--to <folder>]   bring a data set into <folder>/<name> (default: data/<name>)
braid data list                           the data sets that fetch knows
braid data index <source> [--to <file>] [--first-label <n>]
                                          make the index of a data set (default: <source>/index.braid)
braid data check <source or recipe> [--set path=value] [--first-label <n>]
                                          read and decode every image once, and name those that are broken
braid data pack <source> <folder> [--short-side <pixels>] [--quality <q>] [--first-label <n>]
                                          the data set once more, images shrunk, as indexed shards (default: 256, 90)
A source is a folder, s3://bucket/prefix, or files: train-*.parquet, https://host/shard-{000..146}.tar`;

/** @returns the exit code */
export async function data(argv: string[], signal: AbortSignal = new AbortController().signal): Promise<number> {
  const [command, ...rest] = argv;
  switch (command) {
    case 'fetch':
      return fetchCommand(rest, signal);
    case 'list':
      return listCommand();
    case 'index':
      return indexCommand(rest, signal);
    case 'pack':
      return packCommand(rest, signal);
    case 'check':
      return checkCommand(rest, signal);
    default:
      throw wrongUse(command === undefined ? 'data: no command' : `data: unknown command ${command}`);
  }
}

async function fetchCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, { to: { type: 'string', default: 'data' } });
  const name = only('fetch', positionals, 'names');
  await fetchDataset(name, join(values.to as string, name), { signal, log: print });
  return 0;
}

function listCommand(): number {
  for (const [name, { title, licence }] of Object.entries(published)) print(`${name.padEnd(14)} ${title}. ${licence}`);
  return 0;
}

async function indexCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, { to: { type: 'string' }, ...FIRST_LABEL });
  const source = only('index', positionals, 'sources');
  const options = scanOptions('index', values['first-label'] as string, signal);
  const { path, header, samples } = await writeIndex(source, (values.to as string | undefined) ?? null, options);
  const { format, files, classes, broken } = header;
  print(`${path}: ${samples} images of ${classes} classes in ${files.length} files (${format})`);
  for (const { sample, reason } of broken) print(`sample ${sample} cannot be decoded: ${reason}`);
  return 0;
}

async function packCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, {
    'short-side': { type: 'string', default: '256' },
    quality: { type: 'string', default: '90' },
    ...FIRST_LABEL,
  });
  const [target, ...more] = positionals.slice(1);
  if (target === undefined || more.length > 0) throw wrongUse('data pack: expected a source and a folder');
  const number = (flag: 'short-side' | 'quality', most: number) => {
    const value = Number(values[flag]);
    if (Number.isInteger(value) && value >= 1 && value <= most) return value;
    throw wrongUse(`data pack: --${flag} ${values[flag]} is no whole number from 1 to ${most}`);
  };
  const packing = { shortSide: number('short-side', MAX_SIDE), quality: number('quality', 100) };
  const options = scanOptions('pack', values['first-label'] as string, signal);
  const { path, samples, before, after } = await pack(positionals[0]!, target, packing, options, print);
  print(`${path}: ${samples} images, ${(before / 1e6).toFixed(1)} MB before, ${(after / 1e6).toFixed(1)} MB now`);
  return 0;
}

const MAX_SIDE = 1 << 14; // pixels

async function checkCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, {
    set: { type: 'string', multiple: true, default: [] },
    ...FIRST_LABEL,
  });
  const what = only('check', positionals, 'sources or recipes');
  const options = scanOptions('check', values['first-label'] as string, signal);
  const broken = /\.ya?ml$/.test(what)
    ? await checkRecipeData(what, values.set as string[], signal, print)
    : await checkSource(what, options, print);
  return broken === 0 ? 0 : 1;
}

/** What the source calls class 0. */
const FIRST_LABEL = { 'first-label': { type: 'string', default: '0' } } as const;

function scanOptions(command: string, firstLabel: string, signal: AbortSignal) {
  if (!/^\d+$/.test(firstLabel))
    throw wrongUse(`data ${command}: --first-label ${firstLabel} is no whole number from 0`);
  const log = (line: string) => void process.stderr.write(`${line}\n`);
  return { firstLabel: Number(firstLabel), signal, log, nowMs: () => performance.now() };
}

function only(command: string, [first, ...more]: string[], what: string): string {
  if (first !== undefined && more.length === 0) return first;
  const hint = more.length > 0 ? ' (a pattern goes in quotes)' : '';
  throw wrongUse(`data ${command}: ${first === undefined ? 0 : 1 + more.length} ${what}, expected one${hint}`);
}

function parse(argv: string[], options: NonNullable<Parameters<typeof parseArgs>[0]>['options'] & {}) {
  try {
    return parseArgs({ args: argv, options, allowPositionals: true });
  } catch (error) {
    throw wrongUse(`data: ${(error as Error).message}`);
  }
}

function wrongUse(message: string): BraidError {
  return new BraidError('INVALID_RECIPE', message, { remedy: usage });
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
