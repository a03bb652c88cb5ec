/**
 * The index of a data set: where each sample is, in one file for all formats. Little-endian:
 *
 *     "BRDINDX1"   u32 bytes of the header   u32 samples n   header (JSON, padded with spaces to a multiple of 8)
 *     f64 offset[n]   u32 file[n]   u32 length[n]   i32 label[n]   u32 crc32[n]
 *     where samples lie in compressed pages, also: u32 pageSize[n]   u32 start[n]   u32 bytes[n]
 *     SHA-256 of all that
 */
import { createHash } from 'node:crypto';
import type { CompressionCodec } from 'hyparquet';
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import type { StoredObject } from './store.ts';

export interface SampleIndex extends IndexHeader {
  columns: Columns;
  /** SHA-256 of the whole, hex: equal where the same samples are at the same places. */
  hash: string;
}

/** One value a sample. A sample is bytes [offset, offset + length) of a file, or part of what they inflate to. */
export interface Columns {
  offset: Float64Array;
  /** Place in `files`. */
  file: Uint32Array;
  length: Uint32Array;
  label: Int32Array;
  /** zlib's, of the image's bytes. */
  crc32: Uint32Array;
  /** Bytes that the page inflates to; 0: the bytes in the file are the sample. Empty where no sample is in a page. */
  pageSize: Uint32Array;
  /** Of the sample in its page. */
  start: Uint32Array;
  bytes: Uint32Array;
}

const headerSchema = z.object({
  format: z.enum(['folder', 'tar', 'parquet', 'tfrecord']),
  /** Where the files are: a URL, or a path from the index's own folder. */
  source: z.string(),
  files: z.array(z.object({ name: z.string(), size: z.number(), tag: z.string().nullable() })),
  /** By label; null: the source has no names. */
  classNames: z.array(z.string()).nullable(),
  /** How many there are, at least. */
  classes: z.number(),
  /** Of every image; null: they differ. */
  size: z.object({ height: z.number(), width: z.number() }).nullable(),
  /** 1: all are grey. */
  channels: z.union([z.literal(1), z.literal(3)]),
  /** Of the largest sample. */
  recordBytes: z.number(),
  /** What the pages are compressed by; null: no sample is in one. */
  codec: z.string().nullable(),
  /** Samples that cannot be decoded, as far as that is known without decoding. */
  broken: z.array(z.object({ sample: z.number(), reason: z.string() })),
});

export type IndexHeader = Omit<z.infer<typeof headerSchema>, 'files' | 'codec'> & {
  files: StoredObject[];
  codec: CompressionCodec | null;
};

export const INDEX_NAME = 'index.braid';
const MAGIC = 'BRDINDX1';
const PREFIX_BYTES = 16;
const HASH_BYTES = 32;

export function encodeIndex(header: IndexHeader, columns: Columns): Uint8Array {
  const json = Buffer.from(JSON.stringify(header));
  const padded = Math.ceil(json.length / 8) * 8;
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.write(MAGIC, 'latin1');
  prefix.writeUInt32LE(padded, 8);
  prefix.writeUInt32LE(columns.label.length, 12);
  const parts = [prefix, json, Buffer.alloc(padded - json.length, ' ')];
  for (const { buffer, byteOffset, byteLength } of inOrder(columns)) {
    parts.push(Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength));
  }
  const body = Buffer.concat(parts);
  return Buffer.concat([body, createHash('sha256').update(body).digest()]);
}

/** @param where for messages   @throws BraidError INVALID_DATA */
export function decodeIndex(where: string, bytes: Uint8Array): SampleIndex {
  const damaged = (found: string) =>
    new BraidError('INVALID_DATA', `${where}: found ${found}, expected an index that \`braid data index\` wrote`, {
      remedy: 'Make it anew: braid data index <source>.',
    });
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (whole.toString('latin1', 0, MAGIC.length) !== MAGIC) throw damaged('something else');
  const body = whole.subarray(0, -HASH_BYTES);
  const hash = createHash('sha256').update(body).digest('hex');
  if (hash !== whole.toString('hex', body.length)) throw damaged('one that is damaged');
  const headerBytes = whole.readUInt32LE(8);
  const n = whole.readUInt32LE(12);
  const parsed = headerSchema.safeParse(JSON.parse(whole.toString('utf8', PREFIX_BYTES, PREFIX_BYTES + headerBytes)));
  if (!parsed.success) throw damaged(`a header of another version (${parsed.error.issues[0]!.path.join('.')})`);
  const header = parsed.data as IndexHeader;
  let at = PREFIX_BYTES + headerBytes;
  const copy = new Uint8Array(body).buffer; // aligned
  const take = <T>(
    Type: new (buffer: ArrayBuffer, offset: number, length: number) => T,
    size: number,
    length = n,
  ): T => {
    const column = new Type(copy, at, length);
    at += size * length;
    return column;
  };
  const inPages = header.codec === null ? 0 : n;
  const columns: Columns = {
    offset: take(Float64Array, 8),
    file: take(Uint32Array, 4),
    length: take(Uint32Array, 4),
    label: take(Int32Array, 4),
    crc32: take(Uint32Array, 4),
    pageSize: take(Uint32Array, 4, inPages),
    start: take(Uint32Array, 4, inPages),
    bytes: take(Uint32Array, 4, inPages),
  };
  return { ...header, columns, hash };
}

function inOrder({ offset, file, length, label, crc32, pageSize, start, bytes }: Columns) {
  return [offset, file, length, label, crc32, pageSize, start, bytes];
}
