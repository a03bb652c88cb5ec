import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';

const SLICE_BYTES = 1 << 20;

/**
 * SHA-256 of what may be shared memory, which WebCrypto refuses. In slices: hundreds of megabytes at once would keep the thread
 * from serving.
 */
export async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  const hash = createHash('sha256');
  for (let at = 0; at < bytes.length; at += SLICE_BYTES) {
    hash.update(bytes.subarray(at, at + SLICE_BYTES));
    await setImmediate();
  }
  return new Uint8Array(hash.digest());
}
