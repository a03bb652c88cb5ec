/** A temporary folder that removes itself. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

export interface Folder extends AsyncDisposable {
  path: string;
  /** @returns the file's path */
  write(name: string, bytes: Uint8Array | string): string;
}

export function temporaryFolder(prefix = 'braid-test-'): Folder {
  const path = mkdtempSync(join(tmpdir(), prefix));
  return {
    path,
    write(name, bytes) {
      const file = join(path, name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, bytes);
      return file;
    },
    async [Symbol.asyncDispose]() {
      rmSync(path, { recursive: true, force: true });
    },
  };
}
