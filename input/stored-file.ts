/** Bytes on disk that the readers index into, and the one form that their complaints take. */
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { BraidError } from '../core/errors.ts';

/** Files up to here are read whole, so that a sample is a view: MNIST has 47 MB, all of CIFAR-10 154 MB. */
const WHOLE_FILE_BYTES = 512 << 20;
/** What a .gz may inflate to: nothing that a reader takes is larger, and a damaged one must not fill the memory. */
const MAX_INFLATED_BYTES = 2 ** 31 - 1;

export interface StoredFile {
  readonly file: string;
  /** Bytes, after inflating a .gz. */
  readonly size: number;
  /** A view where the file is in memory, else a copy. offset + length must not pass `size`. */
  read(offset: number, length: number): Uint8Array;
  close(): void;
}

/** `file`: found this, expected that. */
export function invalidData(
  file: string,
  found: string,
  expected: string,
  remedy: string,
  cause?: unknown,
): BraidError {
  return new BraidError('INVALID_DATA', `${file}: found ${found}, expected ${expected}`, {
    remedy,
    details: { file, found, expected },
    ...(cause === undefined ? {} : { cause }),
  });
}

/**
 * @param file read as it is; where it does not exist but `${file}.gz` does, that one is inflated
 * @param remedy what to do when it is missing or damaged
 */
export async function openStored(file: string, remedy: string, expected: string): Promise<StoredFile> {
  const zipped = `${file}.gz`;
  if (!existsSync(file) && existsSync(zipped)) return inflated(zipped, remedy);
  try {
    const { size } = statSync(file);
    return size <= WHOLE_FILE_BYTES ? inMemory(file, readFileSync(file)) : positional(file, size);
  } catch (cause) {
    throw invalidData(file, systemReason(cause), expected, remedy, cause);
  }
}

/** Reads by offset, for what is too large for memory, or read here and there. */
export function openPositional(file: string, remedy: string, expected: string): StoredFile {
  try {
    return positional(file, statSync(file).size);
  } catch (cause) {
    throw invalidData(file, systemReason(cause), expected, remedy, cause);
  }
}

/** "no such file" rather than "ENOENT: no such file or directory, open '...'". */
export function systemReason(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException;
  switch (code) {
    case 'ENOENT':
      return 'no such file';
    case 'ENOTDIR':
      return 'a file where a folder should be';
    case 'EISDIR':
      return 'a folder';
    case 'EACCES':
    case 'EPERM':
      return 'no permission to read it';
    default:
      return message;
  }
}

async function inflated(file: string, remedy: string): Promise<StoredFile> {
  try {
    const bytes = await promisify(gunzip)(readFileSync(file), { maxOutputLength: MAX_INFLATED_BYTES });
    return inMemory(file, bytes);
  } catch (cause) {
    const { size } = statSync(file);
    throw invalidData(
      file,
      `${size} bytes that do not inflate: ${systemReason(cause)}`,
      'a whole gzip file',
      remedy,
      cause,
    );
  }
}

function inMemory(file: string, bytes: Uint8Array): StoredFile {
  return {
    file,
    size: bytes.length,
    read: (offset, length) => bytes.subarray(offset, offset + length),
    close() {},
  };
}

function positional(file: string, size: number): StoredFile {
  const handle = openSync(file, 'r');
  let open = true;
  return {
    file,
    size,
    read(offset, length) {
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const count = readSync(handle, bytes, done, length - done, offset + done);
        if (count === 0) {
          throw invalidData(
            file,
            `its end at byte ${offset + done}`,
            `${size} bytes, as when it was opened`,
            'Do not change the data set while Braid uses it; start again.',
          );
        }
        done += count;
      }
      return bytes;
    },
    close() {
      if (open) closeSync(handle);
      open = false;
    },
  };
}
