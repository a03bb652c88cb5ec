/** f32 vectors as the bytes that travel, and back, without a copy. Both ends are little-endian, as TensorFlow is. */
import { BraidError } from './errors.ts';

export function bytesOf(floats: Float32Array): Uint8Array {
  return new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
}

/** @throws BraidError PROTOCOL when they are not whole numbers of f32 */
export function floatsOf(bytes: Uint8Array): Float32Array {
  if (bytes.length % 4 !== 0) throw new BraidError('PROTOCOL', `${bytes.length} bytes are not a vector of f32`);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}
