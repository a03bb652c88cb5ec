/**
 * braid compare: trains recipes with several seeds, one run after another, and writes what came out side by side.
 *
 *     check all recipes, their data and their networks
 *     for each run that is not finished:  train it here, or go on with it;  write the comparison anew
 *
 * What is done is told by the runs' folders alone: the same command goes on where it was stopped.
 */
import { join, relative } from 'node:path';
import { comparisonOf, type Failure, type System } from '../compare/comparison.ts';
import { readRun } from '../compare/finished-run.ts';
import { tableOf } from '../compare/markdown.ts';
import { clear, type QueuedRun, queueOf, secondsLeft, standingOf } from '../compare/queue.ts';
import { surveyIfPossible, surveyOf } from '../compare/survey.ts';
import { tablesOf } from '../compare/tables.ts';
import { writeComparison } from '../compare/write.ts';
import { asBraidError, BraidError } from '../core/errors.ts';
import { loadRecipe } from '../core/recipe.ts';
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { parse, SET } from './options.ts';
import { duration, Progress } from './progress.ts';
import { runHere } from './run-here.ts';

const USAGE =
  'braid compare <recipe.yaml> ... [--seeds N] [--name <comparison>] [--runs <folder>] [--best] [--set path=value ...] ' +
  '[--with <label>=<folder of a finished run> ...]';

const OPTIONS = {
  ...SET,
  /** Every recipe is trained with the seeds 1 to this one. */
  seeds: { type: 'string', default: '3' },
  /** Names the folder <runs>/<name>. */
  name: { type: 'string', default: 'comparison' },
  runs: { type: 'string', default: 'runs' },
  /** Also each classifier's best epoch on the test set. */
  best: { type: 'boolean', default: false },
  /** Runs from elsewhere; those of one label are one system's seeds. */
  with: { type: 'string', multiple: true, default: [] as string[] },
} as const;

/** @returns the exit code: 1 when a run failed */
export async function compare(argv: string[], interrupts: Interrupts): Promise<number> {
  const { values, positionals } = parse('compare', argv, OPTIONS, USAGE);
  const { orderly } = interrupts;

  // Refuse what is wrong before hours of training.
  const seeds = wholeNumber('--seeds', values.seeds);
  const folder = join(values.runs, requireName(values.name));
  const recipes = positionals.map((file) => loadRecipe(file, values.set));
  const guests = guestsOf(values.with);
  requireDistinct([...recipes.map(({ name }) => name), ...guests.map(({ label }) => label)]);
  for (const recipe of recipes) await bringData(recipe, orderly);
  const surveys = await surveyOf(recipes, orderly);
  for (const guest of guests) guest.complexity = await surveyIfPossible(guest.runs[0]!.recipe, orderly);
  const systems = recipes.map((recipe, i) => ({ recipe, ...surveys[i]! }));
  const queue = queueOf(systems, seeds, folder);
  const finished = new Set<QueuedRun>();
  for (const run of queue) if ((await standingOf(run)) === 'finished') finished.add(run);
  const waiting = queue.filter((run) => !finished.has(run));

  const failures: Failure[] = [];
  const write = () => {
    const trained = systems.map(({ recipe: { name }, complexity }): System => {
      const runs = queue.filter((run) => run.label === name && finished.has(run));
      return { label: name, complexity, runs: runs.map((run) => readRun(run.folder, run.recipe.seed)) };
    });
    const compared = [...trained, ...guests].filter(({ runs }) => runs.length > 0);
    if (compared.length === 0) return null;
    const comparison = comparisonOf({ name: values.name, systems: compared, failures, best: values.best });
    return { comparison, paths: writeComparison(folder, comparison, compared) };
  };

  const done = queue.length - waiting.length;
  if (done > 0) process.stdout.write(`${done} of ${queue.length} runs are finished already\n`);
  const seen: { work: number; seconds: number }[] = [];
  for (const [i, run] of waiting.entries()) {
    const place = `run ${done + i + 1}/${queue.length}`;
    const others = waiting.slice(i + 1).map(({ work }) => work);
    const progress = new Progress(process.stdout, now, ({ imagesPerSecond, secondsLeft: left }) => {
      const here = { work: run.work, seconds: run.images / imagesPerSecond };
      return `${place}  ETA ${duration(secondsLeft([...seen, here], left, others))} for all | `;
    });
    progress.print(`\n${place}: ${run.label}, seed ${run.recipe.seed}`);
    const start = now();
    try {
      const resume = (await standingOf(run)) === 'unfinished';
      if (!resume) clear(run);
      await runHere({ recipe: run.recipe, runFolder: run.folder, resume, interrupts, progress });
      finished.add(run);
      if (!resume) seen.push({ work: run.work, seconds: now() - start });
    } catch (thrown) {
      const { message, remedy } = asBraidError(thrown);
      if (orderly.aborted) {
        write();
        throw new BraidError('CANCELLED', `${place}: ${message}`, {
          remedy: `The same command goes on from there: npx braid compare ${argv.map(quoted).join(' ')}`,
          cause: thrown,
        });
      }
      progress.print(`${place} failed: ${message}${remedy === '' ? '' : `\n  Remedy: ${remedy}`}`);
      failures.push({ system: run.label, seed: run.recipe.seed, error: message });
    }
    write();
  }

  const written = write();
  if (written !== null) {
    process.stdout.write(`\n${tableOf(tablesOf(written.comparison)[0]!)}\n\nwrote  `);
    process.stdout.write(`${written.paths.map((path) => relative(process.cwd(), path)).join('\n       ')}\n`);
  }
  if (failures.length === 0) return 0;
  process.stderr.write(`braid compare: ${failures.length} of ${queue.length} runs failed:\n`);
  for (const { system, seed, error } of failures) process.stderr.write(`  ${system}, seed ${seed}: ${error}\n`);
  process.stderr.write('  Remedy: mend what they name; the same command tries them again and keeps the others.\n');
  return 1;
}

const now = () => performance.now() / 1000;

/** The systems of --with, in the order given, their sizes not known yet. */
function guestsOf(given: string[]): System[] {
  const guests = new Map<string, System>();
  for (const each of given) {
    const [, label, folder] = /^([^=]+)=(.+)$/.exec(each) ?? [];
    if (label === undefined || folder === undefined) {
      throw wrong(`--with ${each}: expected <label>=<folder>`, 'For example: --with "PyTorch=runs/pytorch-seed1"');
    }
    const guest = guests.get(label) ?? { label, complexity: null, runs: [] };
    guest.runs.push(readRun(folder, guest.runs.length + 1));
    guests.set(label, guest);
  }
  return [...guests.values()];
}

function requireDistinct(labels: string[]): void {
  if (labels.length === 0) throw wrong('no recipes', USAGE);
  const twice = labels.find((label, i) => labels.indexOf(label) !== i);
  if (twice === undefined) return;
  throw wrong(
    `two systems are called ${twice}`,
    'Give each recipe a name of its own: `name` in its file; --set name=... would name all of them alike.',
  );
}

function requireName(name: string): string {
  if (/^[a-z0-9][a-z0-9._-]*$/i.test(name)) return name;
  throw wrong(`--name ${name}: not a folder's name`, 'Use letters, digits, dots, dashes and underscores.');
}

function wholeNumber(option: string, text: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw wrong(`${option} ${text}: expected a whole number from 1`, USAGE);
}

function wrong(message: string, remedy: string): BraidError {
  return new BraidError('INVALID_RECIPE', `compare: ${message}`, { remedy });
}

/** As a shell takes it. */
function quoted(word: string): string {
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
