/**
 * Checkpoints in a folder of this machine. Each is written aside, synced to the disk and renamed: one that has its name is
 * whole, or the disk is broken.
 */
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { damaged, MANIFEST, stepOf } from './checkpoints-manifest.ts';
import type { CheckpointStore, StoredCheckpoint } from './checkpoints-store.ts';

/** On its way in or out. */
const ASIDE = /^\.step-\d+\.(unfinished|removed)$/;

export class FolderStore implements CheckpointStore {
  readonly where: string;

  constructor(path: string) {
    this.where = path;
  }

  async list(): Promise<StoredCheckpoint[]> {
    const found: StoredCheckpoint[] = [];
    for (const name of await this.folders()) {
      const step = stepOf(name);
      if (step === null) continue;
      const path = join(this.where, name);
      const files: Record<string, number> = {};
      for (const file of await readdir(path)) files[file] = (await stat(join(path, file))).size;
      const { mtime } = await stat(MANIFEST in files ? join(path, MANIFEST) : path);
      found.push({ name, step, path, files, writtenAt: mtime });
    }
    return found.sort((a, b) => a.step - b.step);
  }

  async write(name: string, files: Iterable<[string, Uint8Array]>): Promise<void> {
    const path = join(this.where, name);
    const aside = join(this.where, `.${name}.unfinished`);
    let writing = path;
    try {
      await mkdir(this.where, { recursive: true });
      await this.removeAsides();
      await mkdir(aside);
      for (const [file, bytes] of files) {
        writing = join(path, file);
        await writeSynced(join(aside, file), bytes);
      }
      writing = path;
      await syncFolder(aside);
      await this.remove(name); // the same step, written by an earlier attempt
      await rename(aside, path);
      await syncFolder(this.where);
    } catch (cause) {
      await rm(aside, { recursive: true, force: true }).catch(() => {}); // the first error is the one to tell
      throw new BraidError('SETUP', `cannot write the checkpoint ${writing}: ${(cause as Error).message}`, {
        remedy: 'Make room on the disk, or give the folder write permission; then go on with --resume.',
        cause,
      });
    }
  }

  async read(name: string, file: string, limitBytes: number): Promise<Uint8Array> {
    const path = join(this.where, name, file);
    try {
      await using handle = await open(path, 'r');
      const { size } = await handle.stat();
      if (size > limitBytes) throw damaged(path, `${size} bytes, not more than ${limitBytes} are expected`);
      return await handle.readFile();
    } catch (cause) {
      if (cause instanceof BraidError) throw cause;
      throw new BraidError('INVALID_CHECKPOINT', `cannot read ${path}: ${(cause as Error).message}`, {
        remedy: 'Name a whole checkpoint.',
        cause,
      });
    }
  }

  /** Renamed first: one that has its name is whole even if this is cut short. */
  async remove(name: string): Promise<void> {
    const aside = join(this.where, `.${name}.removed`);
    await rm(aside, { recursive: true, force: true });
    try {
      await rename(join(this.where, name), aside);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    await rm(aside, { recursive: true });
  }

  private async removeAsides(): Promise<void> {
    for (const name of await this.folders()) {
      if (ASIDE.test(name)) await rm(join(this.where, name), { recursive: true });
    }
  }

  private async folders(): Promise<string[]> {
    try {
      const entries = await readdir(this.where, { withFileTypes: true });
      return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw new BraidError('SETUP', `cannot list ${this.where}: ${(cause as Error).message}`, { cause });
    }
  }
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
