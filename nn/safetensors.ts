/**
 * The safetensors format (https://github.com/huggingface/safetensors): u64 header length, JSON header, then raw
 * little-endian data, one tensor after another without gaps. Only what Braid writes and what its users bring: F32, I32 and
 * U8; the batches that PyTorch counts in I64 are passed over.
 */
import { inspect } from 'node:util';
import { BraidError } from '../core/errors.ts';

export type TensorData = Float32Array | Int32Array | Uint8Array;
export type Tensors = Map<string, { shape: number[]; data: TensorData }>;

const LENGTH_BYTES = 8;
const HEADER_LIMIT_BYTES = 100 << 20; // the format's own bound: a longer header is an attack or another file
const METADATA = '__metadata__';
const SHALLOW = { depth: 1, maxArrayLength: 8, maxStringLength: 80, breakLength: Number.POSITIVE_INFINITY };

const DTYPES = { F32: Float32Array, I32: Int32Array, U8: Uint8Array, I64: BigInt64Array } as const;
type Dtype = keyof typeof DTYPES;

export function encodeSafetensors(tensors: Tensors, metadata: Record<string, string> = {}): Uint8Array {
  const header: [string, unknown][] = [[METADATA, metadata]];
  let length = 0;
  for (const [name, { shape, data }] of tensors) {
    header.push([name, { dtype: dtypeOf(data), shape, data_offsets: [length, length + data.byteLength] }]);
    length += data.byteLength;
  }
  // Padded with spaces, as the reference writer does, so that the data begins on a multiple of 8.
  const json = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const headerLength = Math.ceil(json.length / 8) * 8;
  const bytes = Buffer.allocUnsafe(LENGTH_BYTES + headerLength + length);
  bytes.writeBigUInt64LE(BigInt(headerLength), 0);
  json.copy(bytes, LENGTH_BYTES);
  let offset = LENGTH_BYTES + headerLength;
  bytes.fill(' ', LENGTH_BYTES + json.length, offset);
  for (const { data } of tensors.values()) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
    offset += data.byteLength;
  }
  return bytes;
}

/**
 * The bytes are checked as a whole before any is copied, so that what comes out is no larger than the file.
 * @param source the file's name, for errors
 * @throws BraidError INVALID_CHECKPOINT when the bytes are not a whole safetensors file
 */
export function decodeSafetensors(
  bytes: Uint8Array,
  source: string,
): { tensors: Tensors; metadata: Record<string, string> } {
  const refuse = (why: string): never => {
    throw new BraidError('INVALID_CHECKPOINT', `${source} is not a whole safetensors file: ${why}`, {
      remedy: 'Copy the file again, or name another one.',
    });
  };
  if (bytes.byteLength < LENGTH_BYTES) refuse(`${bytes.byteLength} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerLength = view.getBigUint64(0, true);
  if (headerLength > HEADER_LIMIT_BYTES || LENGTH_BYTES + Number(headerLength) > bytes.byteLength) {
    refuse(`its header claims ${headerLength} bytes, the file has ${bytes.byteLength}`);
  }
  const data = bytes.subarray(LENGTH_BYTES + Number(headerLength));
  const { [METADATA]: metadata = {}, ...entries } =
    headerOf(bytes.subarray(LENGTH_BYTES, data.byteOffset - bytes.byteOffset)) ??
    refuse('its header is not a JSON object');
  if (!isRecord(metadata) || Object.values(metadata).some((value) => typeof value !== 'string')) {
    refuse(`${METADATA} is not an object of strings`);
  }
  const claims = Object.entries(entries).map(([name, entry]) => ({
    name,
    ...(claimOf(entry) ?? refuse(wrong(name, entry))),
  }));
  requireGapless(claims, data.byteLength, refuse);
  const tensors: Tensors = new Map();
  for (const { name, dtype, shape, begin, end } of claims) {
    if (dtype === 'I64') continue;
    // Copied out: the data need not be aligned for its type.
    tensors.set(name, { shape, data: new DTYPES[dtype](new Uint8Array(data.subarray(begin, end)).buffer) });
  }
  return { tensors, metadata: metadata as Record<string, string> };
}

/** What a header says of one tensor. */
interface Claim {
  dtype: Dtype;
  shape: number[];
  /** In the data. */
  begin: number;
  end: number;
}

/** @returns null when it is not a JSON object in UTF-8 */
function headerOf(bytes: Uint8Array): Record<string, unknown> | null {
  try {
    const header: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    return isRecord(header) ? header : null;
  } catch {
    return null;
  }
}

/** @returns null when the entry is of another dtype, or its shape and bytes do not agree */
function claimOf(entry: unknown): Claim | null {
  if (!isRecord(entry)) return null;
  const { dtype, shape, data_offsets: offsets } = entry;
  if (!isDtype(dtype) || !areCounts(shape) || !areCounts(offsets)) return null;
  const [begin, end] = offsets;
  const size = shape.reduce((a, b) => a * b, 1) * DTYPES[dtype].BYTES_PER_ELEMENT;
  if (offsets.length !== 2 || end! - begin! !== size) return null;
  return { dtype, shape, begin: begin!, end: end! };
}

/** Every byte belongs to exactly one tensor. */
function requireGapless(claims: (Claim & { name: string })[], length: number, refuse: (why: string) => never): void {
  let at = 0;
  for (const { name, begin, end } of claims.toSorted((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== at) refuse(`tensor ${shown(name)} begins at byte ${begin} of the data, where ${at} is expected`);
    at = end;
  }
  if (at !== length) refuse(`its tensors have ${at} bytes of data, the file has ${length}`);
}

function wrong(name: string, entry: unknown): string {
  if (isRecord(entry) && typeof entry.dtype === 'string' && !isDtype(entry.dtype)) {
    return `tensor ${shown(name)} has dtype ${shown(entry.dtype)}; ${Object.keys(DTYPES).join(', ')} are read`;
  }
  return `tensor ${shown(name)} claims ${shown(inspect(entry, SHALLOW))}`;
}

/** As much of foreign text as a message takes. */
function shown(text: string): string {
  const limit = 120;
  return text.length > limit ? `${text.slice(0, limit)}...` : text;
}

function isDtype(value: unknown): value is Dtype {
  return typeof value === 'string' && Object.hasOwn(DTYPES, value);
}

function areCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((count) => Number.isSafeInteger(count) && count >= 0);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function dtypeOf(data: TensorData): Dtype {
  if (data instanceof Float32Array) return 'F32';
  return data instanceof Int32Array ? 'I32' : 'U8';
}
