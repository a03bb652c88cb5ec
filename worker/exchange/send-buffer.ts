/** How much of a gradient the kernel holds for one peer. */
import type { Socket } from 'node:net';
import { libc } from '../../core/libc.ts';

/**
 * Linux doubles it, for its own bookkeeping, and takes no more than net.core.wmem_max. Left to itself a TCP socket's buffer
 * grows to megabytes, which have left the processor's cache before the peer reads them: 87 MB between two processes take a
 * third longer. A round trip of 50 us at 100 Gb/s has 0.6 MB on its way.
 */
const SEND_BUFFER_BYTES = 1 << 19;

/** Of Linux's headers. */
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;

/** Linux only; elsewhere, and where it fails, the buffer is the system's. */
export function limitSendBuffer(socket: Socket): void {
  if (process.platform !== 'linux') return;
  const { _handle: handle } = socket as unknown as { _handle: { fd: number } | null };
  if (handle === null) return;
  const value = new Int32Array([SEND_BUFFER_BYTES]);
  libc().setsockopt(handle.fd, SOL_SOCKET, SO_SNDBUF, value, value.byteLength);
}
