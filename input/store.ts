/** Where the files of a data set lie: a folder of this machine, an HTTP server, or S3-compatible storage. All are read by ranges. */
import { statSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { FolderStore } from './store-folder.ts';
import { HttpStore } from './store-http.ts';

export interface StoredObject {
  /** Below the store's `where`. */
  name: string;
  /** Bytes. */
  size: number;
  /** Changes with the content; null where nobody says. */
  tag: string | null;
}

export interface Store {
  /** A path, or a URL without a slash at its end. */
  readonly where: string;
  /** All that lies below, at any depth, in the order of names. @throws BraidError where that cannot be told */
  list(): Promise<StoredObject[]>;
  /** In the order of `names`. @throws BraidError INVALID_DATA naming the first that is not there */
  stat(names: string[]): Promise<StoredObject[]>;
  /**
   * offset + length must not pass the object's size.
   * @throws BraidError INVALID_DATA naming the object, when it is not there, shorter, or out of reach after some attempts
   */
  read(name: string, offset: number, length: number): Promise<Uint8Array>;
  close(): void;
}

/** @param where a folder, http(s)://host/path or s3://bucket/prefix */
export async function openStore(where: string): Promise<Store> {
  if (isHttp(where)) return new HttpStore(where);
  if (!where.startsWith('s3://')) return new FolderStore(where);
  const { S3ObjectStore } = await import('./store-s3.ts'); // Amazon's client takes a while to load
  return new S3ObjectStore(where);
}

export function isRemote(where: string): boolean {
  return isHttp(where) || where.startsWith('s3://');
}

function isHttp(where: string): boolean {
  return /^https?:\/\//.test(where);
}

/** What a name of a file in a store looks like; others are folders or prefixes. */
const FILE = /\.(tar|parquet|tfrecords?|braid)$|-\d{5}-of-\d{5}$/;

/**
 * Opens a source as people write it: a folder, prefix or file, or a pattern: shard-{000..146}.tar, train-*.parquet.
 * @returns the store, and its files that are meant
 * @throws BraidError INVALID_DATA when there are none
 */
export async function openSource(source: string): Promise<{ store: Store; files: StoredObject[] }> {
  const trimmed = source.replace(/(?<=[^/])\/+$/, '');
  const last = basename(trimmed);
  const isFile = /[{*]/.test(last) || FILE.test(last) || (!isRemote(trimmed) && isPlainFile(trimmed));
  if (/[{*]/.test(dirname(trimmed))) {
    throw wrongSource(source, 'a pattern in the name of a folder', 'one in the last part alone');
  }
  const store = await openStore(isFile ? dirname(trimmed) : trimmed);
  try {
    const files = isFile ? await filesLike(store, last) : await store.list();
    if (files.length === 0) throw wrongSource(source, 'no files', 'some');
    return { store, files };
  } catch (error) {
    store.close();
    throw error;
  }
}

async function filesLike(store: Store, pattern: string): Promise<StoredObject[]> {
  const names = unrolled(pattern);
  if (!names.some((name) => name.includes('*'))) return store.stat(names);
  const escaped = names.map((name) => name.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '[^/]*'));
  const wanted = new RegExp(`^(${escaped.join('|')})$`);
  return (await store.list()).filter(({ name }) => wanted.test(name));
}

/** "{000..146}" and "{a,b}" written out, as shells do. */
export function unrolled(pattern: string): string[] {
  const found = /^(.*?)\{([^{}]*)\}(.*)$/.exec(pattern);
  if (found === null) return [pattern];
  const [, before, inside, after] = found as unknown as [string, string, string, string];
  const range = /^(\d+)\.\.(\d+)$/.exec(inside);
  const choices =
    range === null
      ? inside.split(',')
      : Array.from({ length: Number(range[2]) - Number(range[1]) + 1 }, (_, i) =>
          String(Number(range[1]) + i).padStart(range[1]!.length, '0'),
        );
  return choices.flatMap((choice) => unrolled(`${before}${choice}${after}`));
}

function isPlainFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}

function wrongSource(source: string, found: string, expected: string): BraidError {
  return new BraidError('INVALID_DATA', `${source}: found ${found}, expected ${expected}`, {
    remedy: 'Name a folder, s3://bucket/prefix, or files: s3://bucket/train-*.tar, https://host/train-{000..146}.tar.',
  });
}
