/** A data set's files in a folder of this machine. */
import { readdirSync, statSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Store, StoredObject } from './store.ts';
import { invalidData, systemReason } from './stored-file.ts';

/** Below any usual limit of a process. */
const OPEN_FILES = 256;

export class FolderStore implements Store {
  readonly where: string;
  /** The least recently used first. */
  private readonly handles = new Map<string, Promise<FileHandle>>();

  constructor(where: string) {
    this.where = where;
  }

  async list(): Promise<StoredObject[]> {
    let entries: string[];
    try {
      entries = readdirSync(this.where, { recursive: true, withFileTypes: true })
        .filter((entry) => !entry.isDirectory() && !entry.name.startsWith('.'))
        .map(({ parentPath, name }) => join(parentPath, name).slice(join(this.where, '/').length));
    } catch (cause) {
      throw this.unreadable(this.where, cause);
    }
    return this.stat(entries.sort());
  }

  async stat(names: string[]): Promise<StoredObject[]> {
    return names.map((name) => {
      try {
        return { name, size: statSync(join(this.where, name)).size, tag: null };
      } catch (cause) {
        throw this.unreadable(join(this.where, name), cause);
      }
    });
  }

  async read(name: string, offset: number, length: number): Promise<Uint8Array> {
    const file = join(this.where, name);
    const bytes = Buffer.allocUnsafeSlow(length);
    try {
      const handle = await this.handle(name, file);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await handle.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) throw new Error(`its end at byte ${offset + done}`);
        done += bytesRead;
      }
    } catch (cause) {
      throw this.unreadable(file, cause);
    }
    return bytes;
  }

  close(): void {
    for (const handle of this.handles.values()) closeLater(handle);
    this.handles.clear();
  }

  private handle(name: string, file: string): Promise<FileHandle> {
    const handle = this.handles.get(name) ?? open(file, 'r');
    this.handles.delete(name);
    this.handles.set(name, handle);
    handle.catch(() => this.handles.delete(name));
    for (const [oldest, old] of this.handles) {
      if (this.handles.size <= OPEN_FILES) break;
      this.handles.delete(oldest);
      closeLater(old);
    }
    return handle;
  }

  private unreadable(file: string, cause: unknown) {
    return invalidData(file, systemReason(cause), 'a file of the data set', 'Check the path and the data set.', cause);
  }
}

/** Node closes a handle after the reads that are under way. */
function closeLater(handle: Promise<FileHandle>): void {
  handle.then((opened) => opened.close()).catch(() => {});
}
