/**
 * A replica's slice of a batch, as bytes on the wire. Little-endian:
 *
 *     u32 magic   u32 encoding   u32 samples n   u32 height   u32 width   u32 channels
 *     u32 step (low)   u32 step (high)   u32 epoch   u32 zero
 *     i32 sampleIds[n]   i32 labels[n]   u32 recordBytes[n]   records, back to back
 */
import { BraidError } from '../core/errors.ts';
import type { Encoding, ImageShape } from './dataset.ts';

export interface EncodedShard {
  step: number;
  epoch: number;
  /** by-id: records are empty, and read by whoever gets the shard. */
  encoding: Encoding | 'by-id';
  /** Of every image, once decoded. */
  image: ImageShape;
  sampleIds: Int32Array;
  labels: Int32Array;
  /** One a sample, as the data set stores it. */
  records: Uint8Array[];
}

const MAGIC = 0x31485342; // "BSH1"
const HEADER_WORDS = 10;
const HEADER_BYTES = 4 * HEADER_WORDS;
export const BYTES_A_SAMPLE = 12; // id, label, length
const MAX_SAMPLES = 1 << 20; // far beyond any batch: a larger count is damage
const MAX_SIDE = 1 << 14; // pixels
const MAX_CHANNELS = 4;
const TWO_32 = 2 ** 32;
const ENCODINGS: readonly EncodedShard['encoding'][] = ['raw-hwc', 'raw-chw', 'image-file', 'by-id'];
const LITTLE_ENDIAN_HOST = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

export function encodeShard(shard: EncodedShard): Uint8Array {
  const { step, epoch, encoding, image, sampleIds, labels, records } = shard;
  const n = records.length;
  const tableEnd = HEADER_BYTES + n * BYTES_A_SAMPLE;
  const bytes = new Uint8Array(records.reduce((sum, record) => sum + record.length, tableEnd));
  const words = new Uint32Array(bytes.buffer, 0, tableEnd / 4);
  words.set([MAGIC, ENCODINGS.indexOf(encoding), n, image.height, image.width, image.channels]);
  words.set([step % TWO_32, Math.floor(step / TWO_32), epoch, 0], 6);
  words.set(sampleIds, HEADER_WORDS);
  words.set(labels, HEADER_WORDS + n);
  let at = tableEnd;
  records.forEach((record, i) => {
    words[HEADER_WORDS + 2 * n + i] = record.length;
    bytes.set(record, at);
    at += record.length;
  });
  if (!LITTLE_ENDIAN_HOST) swapWords(bytes.subarray(0, tableEnd));
  return bytes;
}

/** The most bytes that a shard of so many samples has, when none is larger than `recordBytes`. */
export function shardBytes(samples: number, recordBytes: number): number {
  return HEADER_BYTES + samples * (BYTES_A_SAMPLE + recordBytes);
}

/**
 * Reads a shard; ids, labels and records are views of `bytes`, the former two where it is aligned.
 * @throws BraidError PROTOCOL on anything that encodeShard would not write
 */
export function decodeShard(bytes: Uint8Array): EncodedShard {
  if (bytes.length < HEADER_BYTES) throw damaged(`${bytes.length} bytes are less than its header`);
  const [magic, code, n, height, width, channels, stepLow, stepHigh, epoch, zero] = wordsOf(
    bytes,
    0,
    HEADER_WORDS,
  ) as unknown as [number, number, number, number, number, number, number, number, number, number];
  if (magic !== MAGIC) throw damaged(`it begins with 0x${magic.toString(16)}`);
  const encoding = ENCODINGS[code];
  if (encoding === undefined) throw damaged(`encoding ${code} is unknown`);
  if (n < 1 || n > MAX_SAMPLES) throw damaged(`it claims ${n} samples`);
  if ([height, width].some((side) => side < 1 || side > MAX_SIDE) || channels < 1 || channels > MAX_CHANNELS) {
    throw damaged(`it claims images of ${height}x${width}x${channels}`);
  }
  const step = stepHigh * TWO_32 + stepLow;
  if (!Number.isSafeInteger(step) || zero !== 0) throw damaged(`it claims step ${step}`);
  const tableEnd = HEADER_BYTES + n * BYTES_A_SAMPLE;
  if (tableEnd > bytes.length) throw damaged(`${bytes.length} bytes are less than the table of its ${n} samples`);

  const table = wordsOf(bytes, HEADER_BYTES, 3 * n);
  const sampleIds = new Int32Array(table.buffer, table.byteOffset, n);
  const labels = new Int32Array(table.buffer, table.byteOffset + 4 * n, n);
  const imageBytes = height * width * channels;
  const records: Uint8Array[] = [];
  let at = tableEnd;
  for (let i = 0; i < n; i++) {
    const length = table[2 * n + i]!;
    if (sampleIds[i]! < 0) throw damaged(`sample ${i} has the id ${sampleIds[i]}`);
    if (labels[i]! < 0) throw damaged(`sample ${i} has the label ${labels[i]}`);
    if (encoding === 'by-id' && length !== 0) throw damaged(`sample ${i} has ${length} bytes, where it has none`);
    if (encoding.startsWith('raw-') && length !== imageBytes) {
      throw damaged(`sample ${i} has ${length} bytes, and its image ${imageBytes}`);
    }
    if (length > bytes.length - at) throw damaged(`sample ${i} of ${n} goes beyond its ${bytes.length} bytes`);
    records.push(bytes.subarray(at, at + length));
    at += length;
  }
  if (at !== bytes.length) throw damaged(`${bytes.length - at} bytes follow its last sample`);
  return { step, epoch, encoding, image: { height, width, channels }, sampleIds, labels, records };
}

function damaged(what: string): BraidError {
  return new BraidError('PROTOCOL', `not a shard: ${what}`, {
    remedy: 'Coordinator and worker must be of one Braid version; if they are, please report this.',
  });
}

/** `count` little-endian u32 from `offset` on: a view where alignment and byte order allow, else a copy. */
function wordsOf(bytes: Uint8Array, offset: number, count: number): Uint32Array {
  const start = bytes.byteOffset + offset;
  if (start % 4 === 0 && LITTLE_ENDIAN_HOST) return new Uint32Array(bytes.buffer, start, count);
  const copy = new Uint8Array(bytes.subarray(offset, offset + 4 * count)); // slice() of a Buffer would be a view
  if (!LITTLE_ENDIAN_HOST) swapWords(copy);
  return new Uint32Array(copy.buffer, 0, count);
}

function swapWords(bytes: Uint8Array): void {
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).swap32();
}
