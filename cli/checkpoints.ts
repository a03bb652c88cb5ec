/** braid checkpoints: what a run has kept, whether it is whole, and how to keep less. */

import { readCheckpoint, readManifest, sizeProblem, superfluous } from '../coordinator/checkpoints.ts';
import type { Manifest } from '../coordinator/checkpoints-manifest.ts';
import {
  type CheckpointStore,
  openStore,
  type Place,
  placeOf,
  type StoredCheckpoint,
} from '../coordinator/checkpoints-store.ts';
import { runFolderAt } from '../coordinator/run-folder.ts';
import { asBraidError, BraidError } from '../core/errors.ts';
import { loadRecipe } from '../core/recipe.ts';
import { parse } from './options.ts';

const USAGE = `braid checkpoints list <run folder | s3://bucket/prefix>
braid checkpoints verify <run folder | s3://bucket/prefix>   read every byte
braid checkpoints prune <run folder | s3://bucket/prefix> [--keep <n>] [--keep-every <steps>] [--dry-run]   default: as its recipe says`;

const PRUNE_OPTIONS = {
  /** The newest so many stay. Of a run's folder its recipe says it otherwise, and what follows too. */
  keep: { type: 'string' },
  /** Those after a multiple of so many steps stay, too. */
  'keep-every': { type: 'string' },
  /** Say what would be removed, and remove nothing. */
  'dry-run': { type: 'boolean', default: false },
} as const;

/** @returns the exit code: 1 where verify finds one that is not whole */
export async function checkpoints([command, ...argv]: string[]): Promise<number> {
  switch (command) {
    case 'list':
      return list(await storeOf(command, parse('checkpoints list', argv, {}, USAGE).positionals));
    case 'verify':
      return verify(await storeOf(command, parse('checkpoints verify', argv, {}, USAGE).positionals));
    case 'prune': {
      const { values, positionals } = parse('checkpoints prune', argv, PRUNE_OPTIONS, USAGE);
      const store = await storeOf(command, positionals);
      return prune(store, keepingOf(positionals[0]!, values.keep, values['keep-every']), values['dry-run']);
    }
    default:
      throw wrong(command === undefined ? 'checkpoints: no command' : `checkpoints: unknown command ${command}`);
  }
}

async function list(store: CheckpointStore): Promise<number> {
  const rows = [['checkpoint', 'epoch', 'size', 'written', 'state']];
  for (const stored of await listed(store)) {
    const { manifest, problem } = await lookAt(store, stored);
    const bytes = Object.values(stored.files).reduce((sum, size) => sum + size, 0);
    rows.push([
      stored.name,
      manifest === null ? '?' : String(manifest.epoch),
      megabytes(bytes),
      stored.writtenAt.toLocaleString('sv'), // 2026-01-31 12:34:56
      problem === null ? 'whole' : within(stored, problem),
    ]);
  }
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  for (const row of rows)
    print(
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join('  ')
        .trimEnd(),
    );
  return 0;
}

async function verify(store: CheckpointStore): Promise<number> {
  let broken = 0;
  for (const stored of await listed(store)) {
    try {
      await readCheckpoint(store, stored.name);
      print(`${stored.name}  whole`);
    } catch (thrown) {
      const error = asBraidError(thrown);
      if (error.code !== 'INVALID_CHECKPOINT') throw error;
      broken++;
      print(`${stored.name}  ${within(stored, error)}`);
    }
  }
  return broken === 0 ? 0 : 1;
}

interface Keeping {
  keep: number;
  keepEverySteps: number;
}

/** What the command says comes before what the recipe of a run's folder says. */
function keepingOf(where: string, keep: string | undefined, keepEvery: string | undefined): Keeping {
  const planned = isUrl(where) ? null : loadRecipe(runFolderAt(where).recipe).checkpoint;
  const kept = keep === undefined ? planned?.keep : count('--keep', keep, 1);
  if (kept === undefined) throw wrong('checkpoints prune: --keep is missing, and a URL has no recipe that says it');
  const keptEvery = keepEvery === undefined ? planned?.keepEverySteps : count('--keep-every', keepEvery, 0);
  return { keep: kept, keepEverySteps: keptEvery ?? 0 };
}

/** One that is not whole is left alone: it does not count as one that is kept. */
async function prune(store: CheckpointStore, keeping: Keeping, dryRun: boolean): Promise<number> {
  const whole: StoredCheckpoint[] = [];
  for (const stored of await listed(store)) {
    const { problem } = await lookAt(store, stored);
    if (problem === null) whole.push(stored);
    else print(`left alone     ${stored.name}  ${within(stored, problem)}`);
  }
  const going = superfluous(whole, keeping);
  for (const { name } of going) {
    if (!dryRun) await store.remove(name);
    print(`${dryRun ? 'would remove' : 'removed     '}   ${name}`);
  }
  print(`${whole.length - going.length} of ${whole.length} stay in ${store.where}`);
  return 0;
}

/** As far as its manifest and its files' sizes tell. */
async function lookAt(
  store: CheckpointStore,
  stored: StoredCheckpoint,
): Promise<{ manifest: Manifest | null; problem: BraidError | null }> {
  try {
    const manifest = await readManifest(store, stored.name);
    return { manifest, problem: sizeProblem(stored, manifest) };
  } catch (thrown) {
    const error = asBraidError(thrown);
    if (error.code !== 'INVALID_CHECKPOINT') throw error;
    return { manifest: null, problem: error };
  }
}

async function listed(store: CheckpointStore): Promise<StoredCheckpoint[]> {
  const found = await store.list();
  if (found.length > 0) return found;
  throw new BraidError('INVALID_CHECKPOINT', `${store.where} has no checkpoints`, {
    remedy: 'Name a run folder, or the s3://bucket/prefix of its checkpoint.store.',
  });
}

async function storeOf(command: string, positionals: string[]): Promise<CheckpointStore> {
  const [where, ...more] = positionals;
  if (where === undefined || more.length > 0) {
    throw wrong(`checkpoints ${command}: ${positionals.length} places, expected one`);
  }
  return openStore(placeAt(where));
}

/** A run's recipe knows where its checkpoints are; of a bare URL the environment tells the rest. */
function placeAt(where: string): Place {
  if (isUrl(where)) return { kind: 's3', url: where, endpoint: null, region: null, pathStyle: null };
  const folder = runFolderAt(where);
  return placeOf(loadRecipe(folder.recipe), folder);
}

function isUrl(where: string): boolean {
  return where.startsWith('s3://');
}

function within({ path }: StoredCheckpoint, { message }: BraidError): string {
  return message.replace(`${path}/`, '');
}

function count(option: string, text: string, least: number): number {
  const number = Number(text);
  if (/^\d+$/.test(text) && number >= least) return number;
  throw wrong(`checkpoints prune: ${option} ${text} is not a whole number from ${least}`);
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function wrong(message: string): BraidError {
  return new BraidError('INVALID_RECIPE', message, { remedy: USAGE });
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
