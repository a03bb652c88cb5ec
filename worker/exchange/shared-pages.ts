/**
 * A worker's gradient where the other workers of its machine can read it: pages of a memfd, which each of them maps into its
 * own wasm memory, read-only, where the kernels add them without their having travelled.
 *
 * A memfd has no name in a file system, so nothing is left behind by a worker that dies; who maps it keeps it; and it is
 * sealed against shrinking, so that no peer can pull pages away from under a sum. Linux only: elsewhere, between containers
 * that do not see one another's processes, and between machines, gradients travel through sockets.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fstatSync, ftruncateSync, openSync, readlinkSync } from 'node:fs';
import { libc, READ_WRITE } from '../../core/libc.ts';

/** Where a worker's pages are found, by who sees its process. */
export interface Offer {
  pid: number;
  fd: number;
  /** Drawn at random: another machine or container may have a process of that number, but not with these pages. */
  name: string;
}

export const PAGE_BYTES = 4096;

/** Of Linux's headers. */
const MFD_CLOEXEC_ALLOW_SEALING = 3;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const SEAL_SHRINK_AND_GROW = 6;
const READ = 1;
const SHARED_FIXED = 0x11;

export class SharedPages {
  readonly offer: Offer;
  private open = true;

  private constructor(fd: number, name: string) {
    this.offer = { pid: process.pid, fd, name };
  }

  /**
   * Puts shared pages, zeros, where `room` is: whole pages of a wasm memory.
   * @returns null where there is no such thing
   */
  static create(room: Uint8Array): SharedPages | null {
    if (process.platform !== 'linux') return null;
    const name = `braid-${randomBytes(12).toString('hex')}`;
    const fd = libc().memfd_create(name, MFD_CLOEXEC_ALLOW_SEALING);
    if (fd < 0) return null;
    const pages = new SharedPages(fd, name);
    try {
      ftruncateSync(fd, room.length);
      if (libc().fcntl(fd, F_ADD_SEALS, SEAL_SHRINK_AND_GROW) === 0 && map(fd, room, READ_WRITE)) return pages;
    } catch {} // no memory, or not allowed
    pages.close();
    return null;
  }

  /** Nobody finds them any more; who has them keeps them. */
  close(): void {
    if (this.open) closeSync(this.offer.fd);
    this.open = false;
  }
}

/** Puts a peer's pages, read-only, where `room` is. @returns whether they are the peer's, and as many, and safe to read */
export function mapOffered({ pid, fd, name }: Offer, room: Uint8Array): boolean {
  const path = `/proc/${pid}/fd/${fd}`;
  let own: number | undefined;
  try {
    if (readlinkSync(path) !== `/memfd:${name} (deleted)`) return false;
    own = openSync(path, 'r');
    const sealed = (libc().fcntl(own, F_GET_SEALS, 0) & SEAL_SHRINK_AND_GROW) === SEAL_SHRINK_AND_GROW;
    return sealed && fstatSync(own).size === room.length && map(own, room, READ);
  } catch {
    return false; // not of this machine, or not to be seen from here
  } finally {
    if (own !== undefined) closeSync(own);
  }
}

function map(fd: number, room: Uint8Array, protection: number): boolean {
  return BigInt(libc().mmap(room, room.length, protection, SHARED_FIXED, fd, 0)) !== -1n;
}
