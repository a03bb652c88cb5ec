/** The calls of Linux's libc that Node has no word for. */
import { createRequire } from 'node:module';
import type Koffi from 'koffi';

interface Libc {
  memfd_create(name: string, flags: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  /** @returns 0n and more: the address; -1n on failure */
  mmap(at: Uint8Array, length: number, protection: number, flags: number, fd: number, offset: number): bigint;
  /** @returns 0, or -1 on failure */
  setsockopt(fd: number, level: number, name: number, value: Int32Array, bytes: number): number;
  malloc_trim(pad: number): number;
}

/** Of Linux's headers. */
export const READ_WRITE = 3;
const PRIVATE_FIXED_ANONYMOUS = 0x32;

let loaded: Libc | undefined;

/** @throws where there is no glibc */
export function libc(): Libc {
  if (loaded !== undefined) return loaded;
  const koffi: typeof Koffi = createRequire(import.meta.url)('koffi');
  const library = koffi.load('libc.so.6');
  const fcntl = library.func('int fcntl(int fd, int command, ...)');
  loaded = {
    memfd_create: library.func('int memfd_create(const char *name, unsigned int flags)'),
    fcntl: (fd, command, argument) => fcntl(fd, command, 'int', argument),
    mmap: library.func('intptr_t mmap(void *at, size_t length, int protection, int flags, int fd, int64_t offset)'),
    setsockopt: library.func('int setsockopt(int fd, int level, int name, const void *value, unsigned int bytes)'),
    malloc_trim: library.func('int malloc_trim(size_t pad)'),
  };
  return loaded;
}

/** Gives all that is free in glibc's heaps back to the system; where there is no glibc, nothing. */
export function trimHeaps(): void {
  try {
    libc().malloc_trim(0);
  } catch {}
}

/**
 * Gives back what lies behind whole pages of a wasm memory, shared or not: from here on they are zeros, which take memory only
 * when they are written. V8 would free it with the memory object, and does not count it when it decides how soon that is.
 */
export function discardPages(room: Uint8Array): void {
  if (process.platform !== 'linux') return;
  libc().mmap(room, room.length, READ_WRITE, PRIVATE_FIXED_ANONYMOUS, -1, 0);
}
