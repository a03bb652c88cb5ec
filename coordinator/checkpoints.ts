/**
 * Checkpoints: `step-00000120` is the state after 120 steps.
 *
 *     model.safetensors        weights and running statistics, PyTorch's names and layouts
 *     optimizer.safetensors    momenta, by the name of their weight
 *     ema.safetensors          averages of all that model.safetensors holds, where the recipe keeps them
 *     manifest.json            what it is, and size and SHA-256 of each other file
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { BraidError } from '../core/errors.ts';
import { decodeSafetensors, encodeSafetensors } from '../nn/safetensors.ts';
import type { StateTensors, TensorMap } from '../nn/variables.ts';
import { VERSION } from '../proto/version.ts';
import {
  AVERAGES,
  type CheckpointFacts,
  checkpointName,
  damaged,
  decodeManifest,
  encodeManifest,
  MANIFEST,
  MANIFEST_LIMIT_BYTES,
  type Manifest,
  MODEL,
  OPTIMIZER,
} from './checkpoints-manifest.ts';
import type { CheckpointStore, StoredCheckpoint } from './checkpoints-store.ts';

export interface Checkpoint extends StateTensors {
  path: string;
  manifest: Manifest;
}

export interface Written {
  step: number;
  path: string;
  /** Of all its files. */
  bytes: number;
}

/** How many stay. */
export interface Keeping {
  /** The newest, at least 1. */
  keep: number;
  /** And for good those after a multiple of so many steps; 0: none. */
  keepEverySteps: number;
}

/**
 * Writes one and removes those that need not stay: the older ones that `keeping` spares not, and those of later steps. A run
 * that has gone back has given the latter up.
 */
export async function writeCheckpoint(
  store: CheckpointStore,
  facts: CheckpointFacts,
  state: StateTensors,
  keeping: Keeping,
): Promise<Written> {
  const name = checkpointName(facts.step);
  await store.write(name, filesOf(facts, state));
  const all = await store.list();
  const later = all.filter(({ step }) => step > facts.step);
  const others = all.filter(({ step }) => step <= facts.step);
  for (const old of [...later, ...superfluous(others, keeping)]) await store.remove(old.name);
  const written = others.at(-1)!;
  const bytes = Object.values(written.files).reduce((sum, size) => sum + size, 0);
  return { step: facts.step, path: written.path, bytes };
}

/** Those that need not stay. @param checkpoints oldest first */
export function superfluous<T extends { step: number }>(checkpoints: T[], { keep, keepEverySteps }: Keeping): T[] {
  return checkpoints.slice(0, -keep).filter(({ step }) => keepEverySteps === 0 || step % keepEverySteps !== 0);
}

/**
 * Reads one whole and checks every byte.
 * @throws BraidError INVALID_CHECKPOINT naming the file that is missing, damaged or of another version
 */
export async function readCheckpoint(store: CheckpointStore, name: string): Promise<Checkpoint> {
  const manifest = await readManifest(store, name);
  const path = `${store.where}/${name}`;
  const tensorsOf = async (file: string): Promise<TensorMap> => {
    if (manifest.files[file] === undefined) throw damaged(`${path}/${MANIFEST}`, `it does not list ${file}`);
    return floatTensors(await readListed(store, name, file, manifest), `${path}/${file}`);
  };
  const averages = manifest.files[AVERAGES] === undefined ? new Map() : await tensorsOf(AVERAGES);
  return { path, manifest, weights: await tensorsOf(MODEL), momenta: await tensorsOf(OPTIMIZER), averages };
}

/** @throws BraidError INVALID_CHECKPOINT when it is missing, damaged or of another version */
export async function readManifest(store: CheckpointStore, name: string): Promise<Manifest> {
  const bytes = await store.read(name, MANIFEST, MANIFEST_LIMIT_BYTES);
  return decodeManifest(bytes, `${store.where}/${name}/${MANIFEST}`, name);
}

/** What is wrong with a checkpoint, as far as names and sizes tell; null: nothing. */
export function sizeProblem({ path, files }: StoredCheckpoint, manifest: Manifest): BraidError | null {
  for (const [file, { bytes }] of Object.entries(manifest.files)) {
    const found = files[file];
    if (found === undefined) return damaged(`${path}/${file}`, 'it is not there');
    if (found !== bytes) return damaged(`${path}/${file}`, `${found} bytes, its manifest says ${bytes}`);
  }
  return null;
}

/** Weights of any .safetensors file. @throws BraidError INVALID_CHECKPOINT naming it */
export async function readWeights(file: string): Promise<TensorMap> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(file);
  } catch (cause) {
    throw new BraidError('INVALID_CHECKPOINT', `cannot read ${file}: ${(cause as Error).message}`, {
      remedy: 'Name a .safetensors file.',
      cause,
    });
  }
  return floatTensors(bytes, file);
}

/** One after another, so that one copy of the state is in memory at a time; the manifest last. */
function* filesOf(
  facts: CheckpointFacts,
  { weights, momenta, averages }: StateTensors,
): Generator<[string, Uint8Array]> {
  const metadata = { format: 'pt', braid: VERSION, run: facts.run, step: String(facts.step) };
  const files: Manifest['files'] = {};
  const kept = averages.size === 0 ? [] : [[AVERAGES, averages] as const];
  for (const [file, tensors] of [[MODEL, weights] as const, [OPTIMIZER, momenta] as const, ...kept]) {
    const bytes = encodeSafetensors(tensors, metadata);
    files[file] = { bytes: bytes.length, sha256: sha256(bytes) };
    yield [file, bytes];
  }
  yield [MANIFEST, encodeManifest(VERSION, facts, files)];
}

async function readListed(
  store: CheckpointStore,
  name: string,
  file: string,
  { files }: Manifest,
): Promise<Uint8Array> {
  const path = `${store.where}/${name}/${file}`;
  const expected = files[file]!;
  const bytes = await store.read(name, file, expected.bytes);
  if (bytes.length !== expected.bytes)
    throw damaged(path, `${bytes.length} bytes, its manifest says ${expected.bytes}`);
  const found = sha256(bytes);
  if (found !== expected.sha256) throw damaged(path, `SHA-256 ${found}, its manifest says ${expected.sha256}`);
  return bytes;
}

function floatTensors(bytes: Uint8Array, file: string): TensorMap {
  const floats: TensorMap = new Map();
  for (const [name, { shape, data }] of decodeSafetensors(bytes, file).tensors) {
    if (data instanceof Float32Array) floats.set(name, { shape, data });
  }
  return floats;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
