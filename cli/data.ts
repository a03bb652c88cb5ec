/** braid data: brings data sets to this machine, and checks them. */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { planRun } from '../coordinator/plan.ts';
import { BraidError } from '../core/errors.ts';
import { loadRecipe } from '../core/recipe.ts';
import { type Dataset, openDataset } from '../input/dataset.ts';
import { fetchDataset } from '../input/fetch.ts';
import { published } from '../input/sources.ts';
import { checkImage, decodeImage } from '../worker/input/decode.ts';

export const usage = `braid data fetch <name> [--to <folder>]   bring a data set into <folder>/<name> (default: data/<name>)
braid data list                           the data sets that fetch knows
braid data check <recipe> [--set path=value]
                                          open a recipe's data, decode every image, count the classes`;

const SAMPLES_A_TURN = 500; // then Ctrl-C is heard
const DAMAGED_SHOWN = 20; // files named before the rest is only counted

/** @returns the exit code */
export async function data(argv: string[], signal: AbortSignal = new AbortController().signal): Promise<number> {
  const [command, ...rest] = argv;
  switch (command) {
    case 'fetch':
      return fetchCommand(rest, signal);
    case 'list':
      return listCommand();
    case 'check':
      return checkCommand(rest, signal);
    default:
      throw wrongUse(command === undefined ? 'data: no command' : `data: unknown command ${command}`);
  }
}

async function fetchCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, { to: { type: 'string', default: 'data' } });
  const [name, ...more] = positionals;
  if (name === undefined || more.length > 0) throw wrongUse(`data fetch: ${positionals.length} names, expected one`);
  await fetchDataset(name, join(values.to as string, name), { signal, log: print });
  return 0;
}

function listCommand(): number {
  for (const [name, { title, licence }] of Object.entries(published)) print(`${name.padEnd(14)} ${title}. ${licence}`);
  return 0;
}

async function checkCommand(argv: string[], signal: AbortSignal): Promise<number> {
  const { values, positionals } = parse(argv, { set: { type: 'string', multiple: true, default: [] } });
  const [file, ...more] = positionals;
  if (file === undefined || more.length > 0) throw wrongUse(`data check: ${positionals.length} recipes, expected one`);
  const recipe = loadRecipe(file, values.set as string[]);
  const { train, test } = await planRun(recipe, openDataset);
  try {
    const anySize = recipe.data.resizedCrop !== null;
    const damaged = (await checkSamples(train, anySize, signal)) + (await checkSamples(test, anySize, signal));
    return damaged === 0 ? 0 : 1;
  } finally {
    train.close();
    test.close();
  }
}

/**
 * @param anySize whether images may be of other sizes than the data set's, which they are cropped to later
 * @returns how many samples do not decode
 */
async function checkSamples(dataset: Dataset, anySize: boolean, signal: AbortSignal): Promise<number> {
  const { height, width, channels } = dataset.image;
  const pixels = new Uint8Array(height * width * channels);
  const perClass = new Array<number>(dataset.classes).fill(0);
  let damaged = 0;
  for (let index = 0; index < dataset.length; index++) {
    if (index % SAMPLES_A_TURN === 0) await setImmediate();
    signal.throwIfAborted();
    perClass[dataset.label(index)]!++;
    if (dataset.encoding !== 'image-file') continue;
    try {
      const bytes = await dataset.read(index);
      if (anySize) checkImage(bytes);
      else decodeImage(bytes, dataset.image, pixels);
    } catch (error) {
      damaged++;
      if (damaged <= DAMAGED_SHOWN) print(`${dataset.where(index)}: ${(error as Error).message} (sample ${index})`);
    }
  }
  const [fewest, most] = [Math.min(...perClass), Math.max(...perClass)];
  print(
    `${dataset.name}: ${dataset.length} images of ${height}x${width}x${channels}, ${dataset.classes} classes of ` +
      `${fewest === most ? fewest : `${fewest} to ${most}`} images, ${damaged === 0 ? 'all sound' : `${damaged} damaged`}`,
  );
  return damaged;
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
