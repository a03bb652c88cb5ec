/** Where an exchange listens: `unix:/path` or `host:port`. */
import { BraidError } from '../../core/errors.ts';

/** sun_path holds 108 bytes, the last one zero; a longer path would be cut without a word. */
const UNIX_PATH_BYTES = 107;

/**
 * An address as node:net takes it, to listen on and to connect to.
 * @throws BraidError PROTOCOL
 */
export function parseAddress(address: string): { path: string } | { host: string; port: number } {
  if (address.startsWith('unix:')) {
    const path = address.slice('unix:'.length);
    if (path !== '' && Buffer.byteLength(path) <= UNIX_PATH_BYTES) return { path };
    throw new BraidError('PROTOCOL', `${address}: a unix socket's path has 1 to ${UNIX_PATH_BYTES} bytes`, {
      remedy: 'Set TMPDIR to a shorter path.',
    });
  }
  const colon = address.lastIndexOf(':');
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
  const port = Number(address.slice(colon + 1));
  if (colon > 0 && host !== '' && address.length > colon + 1 && Number.isInteger(port) && port >= 0 && port <= 65535) {
    return { host, port };
  }
  throw new BraidError('PROTOCOL', `${address}: expected unix:/path or host:port`);
}

export function formatAddress(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
