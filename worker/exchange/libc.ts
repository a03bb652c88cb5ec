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
}

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
  };
  return loaded;
}
