/**
 * Checkpoints: a folder each, `checkpoints/step-00000120`, for the state after 120 steps.
 *
 *     manifest.json            what it is, and size and SHA-256 of each other file
 *     model.safetensors        weights and running statistics, PyTorch's names and layouts
 *     optimizer.safetensors    momenta, by the name of their weight
 *
 * It is written aside, synced to disk and renamed: a checkpoint that has its name is whole, or its disk is broken.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { decodeSafetensors, encodeSafetensors } from '../nn/safetensors.ts';
import type { TensorMap } from '../nn/variables.ts';
import { VERSION } from '../proto/version.ts';
import type { NetworkState } from './group.ts';

/** Of the folder's layout. A reader refuses another one. */
const FORMAT = 1;
const MANIFEST = 'manifest.json';
const MODEL = 'model.safetensors';
const OPTIMIZER = 'optimizer.safetensors';
const NAME = /^step-(\d{8,})$/;
const UNFINISHED = /^\.step-\d+\.unfinished$/;
const STEP_DIGITS = 8; // names sort as their steps do

const manifestSchema = z.object({
  format: z.literal(FORMAT),
  /** Braid's version. */
  braid: z.string(),
  run: z.string(),
  /** Steps committed, and the epoch that the next step belongs to. */
  step: z.number().int().nonnegative(),
  epoch: z.number().int().nonnegative(),
  /** What a network must equal to take these weights, and a run to go on from this step: plan.ts. */
  network: z.record(z.string(), z.unknown()),
  sampling: z.record(z.string(), z.unknown()),
  recipe: z.unknown(),
  files: z.record(z.string(), z.object({ bytes: z.number(), sha256: z.string() })),
});

export type Manifest = z.infer<typeof manifestSchema>;
export type CheckpointFacts = Pick<Manifest, 'run' | 'step' | 'epoch' | 'network' | 'sampling' | 'recipe'>;

export interface Checkpoint extends Required<NetworkState> {
  path: string;
  manifest: Manifest;
}

/**
 * Writes one and removes the oldest beyond `keep`.
 * @param folder the run's `checkpoints` folder   @param beforeRename for tests: called when all is written aside
 * @returns its path
 */
export async function writeCheckpoint(
  folder: string,
  facts: CheckpointFacts,
  { weights, momenta }: Required<NetworkState>,
  { keep, beforeRename }: { keep: number; beforeRename?: () => void },
): Promise<string> {
  const name = `step-${String(facts.step).padStart(STEP_DIGITS, '0')}`;
  const aside = join(folder, `.${name}.unfinished`);
  const path = join(folder, name);
  const metadata = { format: 'pt', braid: VERSION, run: facts.run, step: String(facts.step) };
  const contents = { [MODEL]: encodeSafetensors(weights, metadata), [OPTIMIZER]: encodeSafetensors(momenta, metadata) };
  try {
    await removeUnfinished(folder);
    await mkdir(aside, { recursive: true });
    const files: Manifest['files'] = {};
    for (const [file, bytes] of Object.entries(contents)) {
      files[file] = { bytes: bytes.length, sha256: sha256(bytes) };
      await writeSynced(join(aside, file), bytes);
    }
    const manifest: Manifest = { format: FORMAT, braid: VERSION, ...facts, files };
    await writeSynced(join(aside, MANIFEST), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
    await syncFolder(aside);
    beforeRename?.();
    await rm(path, { recursive: true, force: true }); // the same step, written by an earlier attempt
    await rename(aside, path);
    await syncFolder(folder);
  } catch (cause) {
    if (cause instanceof BraidError) throw cause;
    throw new BraidError('SETUP', `cannot write the checkpoint ${path}: ${(cause as Error).message}`, {
      remedy: 'Make room on the disk, or give the folder write permission; then go on with --resume.',
      cause,
    });
  }
  for (const old of listCheckpoints(folder).slice(0, -keep)) await rm(old, { recursive: true });
  return path;
}

/** Paths of the checkpoints of a run, oldest first. */
export function listCheckpoints(folder: string): string[] {
  if (!existsSync(folder)) return [];
  const names = readdirSync(folder).filter((name) => NAME.test(name));
  return names.sort((a, b) => stepOf(a) - stepOf(b)).map((name) => join(folder, name));
}

/**
 * Reads one whole and checks every byte.
 * @throws BraidError INVALID_CHECKPOINT naming the file that is missing, damaged or of another version
 */
export async function readCheckpoint(path: string): Promise<Checkpoint> {
  const manifest = await readManifest(path);
  const read = async (file: string): Promise<TensorMap> => {
    const full = join(path, file);
    const expected = manifest.files[file];
    if (expected === undefined) throw damaged(join(path, MANIFEST), `it does not list ${file}`);
    const bytes = await readWhole(full);
    if (bytes.length !== expected.bytes)
      throw damaged(full, `${bytes.length} bytes, its manifest says ${expected.bytes}`);
    const found = sha256(bytes);
    if (found !== expected.sha256) throw damaged(full, `SHA-256 ${found}, its manifest says ${expected.sha256}`);
    return floatTensors(bytes, full);
  };
  return { path, manifest, weights: await read(MODEL), momenta: await read(OPTIMIZER) };
}

/** Weights of any .safetensors file. @throws BraidError INVALID_CHECKPOINT naming it */
export async function readWeights(file: string): Promise<TensorMap> {
  return floatTensors(await readWhole(file), file);
}

/** @throws BraidError INVALID_CHECKPOINT naming every difference: "branches.0.depth is 32 there and 20 here" */
export function requireEqual(
  there: Record<string, unknown>,
  here: Record<string, unknown>,
  what: string,
  remedy: string,
): void {
  const differences = differencesOf(there, here, '');
  if (differences.length === 0) return;
  throw new BraidError('INVALID_CHECKPOINT', `${what}: ${differences.join('; ')}`, { remedy });
}

async function readManifest(path: string): Promise<Manifest> {
  const file = join(path, MANIFEST);
  const text = (await readWhole(file)).toString();
  let json: { format?: unknown } | null;
  try {
    json = JSON.parse(text);
  } catch {
    throw damaged(file, 'not JSON');
  }
  if (typeof json?.format === 'number' && json.format !== FORMAT) {
    throw new BraidError('INVALID_CHECKPOINT', `${file} has format ${json.format}, this version reads ${FORMAT}`, {
      remedy: 'Use the version of Braid that wrote it.',
    });
  }
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) throw damaged(file, z.prettifyError(parsed.error));
  return parsed.data;
}

function floatTensors(bytes: Uint8Array, file: string): TensorMap {
  const floats: TensorMap = new Map();
  for (const [name, { shape, data }] of decodeSafetensors(bytes, file).tensors) {
    if (data instanceof Float32Array) floats.set(name, { shape, data });
  }
  return floats;
}

async function readWhole(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (cause) {
    throw new BraidError('INVALID_CHECKPOINT', `cannot read ${file}: ${(cause as Error).message}`, {
      remedy: 'Name a whole checkpoint.',
      cause,
    });
  }
}

function damaged(file: string, what: string): BraidError {
  return new BraidError('INVALID_CHECKPOINT', `${file} is damaged: ${what}`, {
    remedy: 'Remove this checkpoint to go on from the one before, or bring an undamaged copy.',
  });
}

async function writeSynced(file: string, bytes: Uint8Array): Promise<void> {
  await using handle = await open(file, 'w');
  await handle.writeFile(bytes);
  await handle.sync();
}

async function syncFolder(folder: string): Promise<void> {
  await using handle = await open(folder, 'r');
  await handle.sync();
}

async function removeUnfinished(folder: string): Promise<void> {
  if (!existsSync(folder)) return;
  for (const name of readdirSync(folder)) {
    if (UNFINISHED.test(name)) await rm(join(folder, name), { recursive: true });
  }
}

function stepOf(name: string): number {
  return Number(NAME.exec(name)![1]);
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function differencesOf(there: unknown, here: unknown, path: string): string[] {
  if (typeof there === 'object' && typeof here === 'object' && there !== null && here !== null) {
    const keys = new Set([...Object.keys(there), ...Object.keys(here)]);
    return [...keys].flatMap((key) =>
      differencesOf(
        (there as Record<string, unknown>)[key],
        (here as Record<string, unknown>)[key],
        path === '' ? key : `${path}.${key}`,
      ),
    );
  }
  if (there === here) return [];
  return [`${path} is ${JSON.stringify(there) ?? 'absent'} there and ${JSON.stringify(here) ?? 'absent'} here`];
}
