/** Brings a published data set into a folder: from the first source that works, verified, and resumed when it was cut off. */
import { createHash } from 'node:crypto';
import {
  createReadStream,
  createWriteStream,
  existsSync,
  mkdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { BraidError, nearest } from '../core/errors.ts';
import { unpackDebianPackage } from './debian.ts';
import { download } from './download.ts';
import { acquireLock } from './lock.ts';
import { Progress } from './progress.ts';
import { type Published, type PublishedFile, published, type Source } from './sources.ts';
import { openPositional } from './stored-file.ts';
import { type TarMember, tarMembers } from './tar.ts';

export interface FetchOptions {
  signal: AbortSignal;
  /** Receives one line of text at a time. */
  log(line: string): void;
  /** For tests: other data sets, another clock. */
  known?: Record<string, Published>;
  nowMs?: () => number;
}

/** Fetches the data set unless all of its files are in `folder` already. What is there is not verified again: that costs seconds. */
export async function ensureDataset(name: string, folder: string, options: FetchOptions): Promise<void> {
  const { files } = lookUp(name, options);
  if (!files.every((file) => existsSync(join(folder, file.name)))) await fetchDataset(name, folder, options);
}

/**
 * Verifies the files in `folder`, and fetches those that are missing or damaged. Downloads grow in `${folder}.part` and are
 * renamed into place once verified, so that a file in `folder` is always whole.
 * @throws BraidError INVALID_RECIPE on an unknown name; INVALID_DATA when no source works, with what each said;
 *   SETUP when the disk cannot be written; CANCELLED
 */
export async function fetchDataset(name: string, folder: string, options: FetchOptions): Promise<void> {
  const dataset = lookUp(name, options);
  const staging = `${resolve(folder)}.part`;
  const lock = `${resolve(folder)}.lock`; // beside both: it must outlive them
  let unlock: () => void = () => {};
  try {
    unlock = await acquireLock(lock, options.signal, (pid) =>
      options.log(`process ${pid} is fetching ${name}: waiting for it`),
    );
    await fetchMissing(name, dataset, folder, staging, options);
    rmSync(staging, { recursive: true, force: true });
  } catch (error) {
    if (options.signal.aborted) throw new BraidError('CANCELLED', `fetching ${name} was stopped`, { cause: error });
    throw asSetupError(error, folder);
  } finally {
    removeIfEmpty(staging);
    unlock();
  }
}

async function fetchMissing(
  name: string,
  dataset: Published,
  folder: string,
  staging: string,
  options: FetchOptions,
): Promise<void> {
  let missing = await filesNotWhole(dataset.files, folder);
  if (missing.length === 0) {
    options.log(`${name}: all ${dataset.files.length} files are in ${folder}, verified`);
    return;
  }
  mkdirSync(staging, { recursive: true });
  const failures: string[] = [];
  for (const source of dataset.sources) {
    options.log(`${name}: fetching ${missing.length} file(s) from ${titleOf(source)}`);
    try {
      await fetchFrom(source, missing, folder, staging, options);
    } catch (error) {
      options.signal.throwIfAborted();
      if (isDiskError(error)) throw error;
      const reason = (error as Error).message;
      failures.push(`${titleOf(source)}: ${reason}`);
      options.log(`${name}: ${titleOf(source)} does not work: ${reason}`);
    }
    missing = missing.filter((file) => !existsSync(join(folder, file.name)));
    if (missing.length === 0) {
      options.log(`${name}: ${folder} is complete and verified`);
      return;
    }
  }
  throw new BraidError('INVALID_DATA', [`cannot fetch ${name}:`, ...failures].join('\n  '), {
    remedy: `${dataset.manual}, into ${folder}.`,
    details: { name, folder, failures },
  });
}

/** Those that are absent; a damaged one is removed first, and counts. */
async function filesNotWhole(files: PublishedFile[], folder: string): Promise<PublishedFile[]> {
  const missing: PublishedFile[] = [];
  for (const file of files) {
    const path = join(folder, file.name);
    const complaint = existsSync(path) ? await complaintAbout(file, path) : 'absent';
    if (complaint === null) continue;
    rmSync(path, { force: true });
    missing.push(file);
  }
  return missing;
}

async function fetchFrom(
  source: Source,
  missing: PublishedFile[],
  folder: string,
  staging: string,
  options: FetchOptions,
): Promise<void> {
  const { signal, log, nowMs = () => performance.now() } = options;
  const transfer = (what: string) => {
    const progress = new Progress(what, log, nowMs);
    return { signal, progress: (done: number, total: number | null) => progress.at(done, total) };
  };
  switch (source.kind) {
    case 'files':
      for (const file of missing) {
        const part = join(staging, file.name);
        await download(source.url + file.name, part, transfer(file.name));
        await moveVerified(file, part, folder);
      }
      return;
    case 'archive': {
      const archive = join(staging, source.url.slice(source.url.lastIndexOf('/') + 1));
      await download(source.url, archive, transfer(source.url.slice(source.url.lastIndexOf('/') + 1)));
      await requireHash(archive, source.sha256, false);
      await unpackArchive(archive, source.folder, missing, staging);
      for (const file of missing) await moveVerified(file, join(staging, file.name), folder);
      return;
    }
    case 'debian': {
      const root = await unpackDebianPackage(source.package, staging, transfer(source.package));
      for (const file of missing) await moveVerified(file, join(root, source.folder, file.name), folder);
    }
  }
}

/** Takes the missing files out of a .tar.gz, each into `staging`. */
async function unpackArchive(
  archive: string,
  inside: string,
  missing: PublishedFile[],
  staging: string,
): Promise<void> {
  const plain = join(staging, 'archive.tar');
  await pipeline(createReadStream(archive), createGunzip(), createWriteStream(plain));
  const stored = openPositional(plain, '', 'a tar file');
  try {
    const members = new Map<string, TarMember>();
    for await (const member of tarMembers(stored)) members.set(member.name, member);
    for (const { name } of missing) {
      const member = members.get(`${inside}/${name}`);
      if (member === undefined) throw new Error(`the archive holds no ${inside}/${name}`);
      writeFileSync(join(staging, name), stored.read(member.offset, member.size));
    }
  } finally {
    stored.close();
    rmSync(plain, { force: true });
  }
}

/** Renames a file into place if it is what was published; removes it if not, so that the next try begins anew. */
async function moveVerified(file: PublishedFile, part: string, folder: string): Promise<void> {
  const complaint = existsSync(part) ? await complaintAbout(file, part) : 'the source does not have it';
  if (complaint !== null) {
    rmSync(part, { force: true });
    throw new Error(`${file.name}: ${complaint}`);
  }
  mkdirSync(folder, { recursive: true });
  renameSync(part, join(folder, file.name));
}

/** null when the file is what was published. */
async function complaintAbout(file: PublishedFile, path: string): Promise<string | null> {
  if ('bytes' in file) {
    const { size } = statSync(path);
    return size === file.bytes ? null : `found ${size} bytes, expected ${file.bytes}`;
  }
  return hashComplaint(path, file.sha256, file.name.endsWith('.gz'));
}

async function requireHash(path: string, sha256: string, inflate: boolean): Promise<void> {
  const complaint = await hashComplaint(path, sha256, inflate);
  if (complaint === null) return;
  rmSync(path, { force: true });
  throw new Error(complaint);
}

async function hashComplaint(path: string, sha256: string, inflate: boolean): Promise<string | null> {
  const hash = createHash('sha256');
  try {
    if (inflate) await pipeline(createReadStream(path), createGunzip(), hash);
    else await pipeline(createReadStream(path), hash);
  } catch (error) {
    if (isDiskError(error)) throw error;
    return `it does not inflate: ${(error as Error).message}`;
  }
  const found = hash.digest('hex');
  return found === sha256 ? null : `found sha256 ${found}, expected ${sha256}`;
}

function lookUp(name: string, { known = published }: FetchOptions): Published {
  const dataset = known[name];
  if (dataset !== undefined && Object.hasOwn(known, name)) return dataset;
  const near = nearest(name, Object.keys(known));
  throw new BraidError(
    'INVALID_RECIPE',
    `unknown data set ${name}${near === undefined ? '' : `, did you mean ${near}?`}`,
    {
      remedy: `Known are ${Object.keys(known).join(', ')}.`,
    },
  );
}

function titleOf(source: Source): string {
  return source.kind === 'debian' ? `the Debian package ${source.package}` : source.url;
}

function removeIfEmpty(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // It is gone, or holds what the next try goes on with.
  }
}

function isDiskError(error: unknown): boolean {
  return ['ENOSPC', 'EDQUOT', 'EACCES', 'EPERM', 'EROFS', 'EIO'].includes((error as NodeJS.ErrnoException).code ?? '');
}

function asSetupError(error: unknown, folder: string): unknown {
  if (!isDiskError(error)) return error;
  return new BraidError('SETUP', `cannot write ${folder}: ${(error as Error).message}`, {
    remedy: 'Free disk space, or choose a folder that you may write to.',
    cause: error,
  });
}
