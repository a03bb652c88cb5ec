/** Where checkpoints are kept: a folder of this machine, or S3-compatible storage. The rest of Braid does not tell them apart. */
import type { Recipe } from '../core/recipe.ts';
import { FolderStore } from './checkpoints-folder.ts';
import type { RunFolder } from './run-folder.ts';

export interface CheckpointStore {
  /** For people: a folder, or s3://bucket/prefix. */
  readonly where: string;
  /** Those that were written to their end, oldest first. */
  list(): Promise<StoredCheckpoint[]>;
  /**
   * Writes a checkpoint's files in the order given, the manifest last: it is listed when all of them are there to stay, and
   * not before. One of the same name is replaced, and what earlier writers left unfinished is removed.
   * @throws BraidError SETUP naming the file; what was written by then is removed
   */
  write(name: string, files: Iterable<[file: string, bytes: Uint8Array]>): Promise<void>;
  /** @throws BraidError INVALID_CHECKPOINT when it is not there or is longer than `limitBytes` */
  read(name: string, file: string, limitBytes: number): Promise<Uint8Array>;
  remove(name: string): Promise<void>;
}

export interface StoredCheckpoint {
  name: string;
  step: number;
  /** Below the store's `where`. */
  path: string;
  /** Their sizes in bytes, by name. */
  files: Record<string, number>;
  writtenAt: Date;
}

/** A store, as plain data: what a thread can be given. */
export type Place = { kind: 'folder'; path: string } | ({ kind: 's3'; url: string } & Recipe['checkpoint']['s3']);

export function placeOf({ checkpoint }: Pick<Recipe, 'checkpoint'>, folder: RunFolder): Place {
  if (checkpoint.store === null) return { kind: 'folder', path: folder.checkpoints };
  return { kind: 's3', url: checkpoint.store, ...checkpoint.s3 };
}

/** @param attempts how often one request is tried, over the network */
export async function openStore(place: Place, attempts?: number): Promise<CheckpointStore> {
  if (place.kind === 'folder') return new FolderStore(place.path);
  const { S3Store } = await import('./checkpoints-s3.ts'); // Amazon's client takes a while to load
  return new S3Store(place, attempts);
}
