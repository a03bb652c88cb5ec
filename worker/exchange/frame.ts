/**
 * What travels on a socket of the exchange: a header of 60 bytes, little-endian, and its payload.
 *
 *      0 magic u32    4 version u8   5 phase u8   6 dtype u8   7 zero u8
 *      8 generation u64             16 step u64
 *     24 bucket u32                 28 rank of the sender u32
 *     32 offset u64, elements into the segment
 *     40 squares f64, of gather: the sum of the payload's squared elements
 *     48 length u32, bytes of payload: 0 also of what the receiver reads in place
 *     52 checksum of the payload u32, 56 CRC-32 of the 56 bytes before
 *
 * The checksum of a gradient is GradientMemory.checksum, that of a handshake's payload CRC-32.
 */
import { crc32 } from 'node:zlib';
import { BraidError } from '../../core/errors.ts';

export const HEADER_BYTES = 60;
const CHECKED_BYTES = HEADER_BYTES - 4;
const MAGIC = 0x58445242; // 'BRDX'
const VERSION = 3;

/** In the order of their numbers. */
const DTYPES = ['f32', 'bf16'] as const;
export type Dtype = (typeof DTYPES)[number];

/**
 * hello: who wants to receive (JSON).   welcome: it may (a byte, handshake.ts).   refuse: it may not (JSON).
 * scatter: part of a sum, towards the slice's owner.   gather: the owner's sum, to everybody.
 */
const PHASES = ['hello', 'welcome', 'refuse', 'scatter', 'gather'] as const;
export type Phase = (typeof PHASES)[number];

export interface Header {
  phase: Phase;
  dtype: Dtype;
  generation: number;
  step: number;
  /** Which segment of the gradient. */
  bucket: number;
  source: number;
  /** Elements from the segment's beginning. */
  offset: number;
  /** Of gather; else 0. Whoever made the sum measures it, once for all ranks. */
  squares: number;
  /** Bytes of payload. */
  length: number;
}

/** @param checksum of the payload */
export function encodeHeader(header: Header, checksum: number): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, VERSION);
  view.setUint8(5, PHASES.indexOf(header.phase));
  view.setUint8(6, DTYPES.indexOf(header.dtype));
  view.setBigUint64(8, BigInt(header.generation), true);
  view.setBigUint64(16, BigInt(header.step), true);
  view.setUint32(24, header.bucket, true);
  view.setUint32(28, header.source, true);
  view.setBigUint64(32, BigInt(header.offset), true);
  view.setFloat64(40, header.squares, true);
  view.setUint32(48, header.length, true);
  view.setUint32(52, checksum, true);
  view.setUint32(56, crc32(bytes.subarray(0, CHECKED_BYTES)), true);
  return bytes;
}

/** @throws BraidError PROTOCOL when these are not the bytes of a header, or damaged ones */
export function decodeHeader(bytes: Uint8Array): { header: Header; checksum: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  const magic = view.getUint32(0, true);
  if (magic !== MAGIC) throw refused(`it begins with 0x${magic.toString(16)}, not with the exchange's magic`);
  const version = view.getUint8(4);
  if (version !== VERSION) throw refused(`it has version ${version}, here is ${VERSION}`);
  if (view.getUint32(56, true) !== crc32(bytes.subarray(0, CHECKED_BYTES))) throw refused('its header is damaged');
  const phase = PHASES[view.getUint8(5)];
  if (phase === undefined) throw refused(`it has an unknown phase, ${view.getUint8(5)}`);
  const dtype = DTYPES[view.getUint8(6)];
  if (dtype === undefined) throw refused(`it has an unknown data type, ${view.getUint8(6)}`);
  return {
    header: {
      phase,
      dtype,
      generation: Number(view.getBigUint64(8, true)),
      step: Number(view.getBigUint64(16, true)),
      bucket: view.getUint32(24, true),
      source: view.getUint32(28, true),
      offset: Number(view.getBigUint64(32, true)),
      squares: view.getFloat64(40, true),
      length: view.getUint32(48, true),
    },
    checksum: view.getUint32(52, true),
  };
}

/** What is known of a frame before it comes. */
export type Announced = Omit<Header, 'squares'>;

/** @throws BraidError unless `found` is, field by field, the frame that has to come next */
export function requireSame(found: Header, expected: Announced): void {
  for (const field of ['generation', 'step', 'bucket', 'phase', 'source', 'dtype', 'offset', 'length'] as const) {
    if (found[field] === expected[field]) continue;
    throw refused(
      `its ${field} is ${found[field]}, expected ${expected[field]}`,
      field === 'generation' ? 'STALE_GENERATION' : 'PROTOCOL',
    );
  }
}

function refused(why: string, code: 'PROTOCOL' | 'STALE_GENERATION' = 'PROTOCOL'): BraidError {
  return new BraidError(code, `a gradient frame is refused: ${why}`);
}
