/**
 * The safetensors format (https://github.com/huggingface/safetensors): u64 header length, JSON header, then raw
 * little-endian data. Only what Braid writes and what its users bring: F32, I32 and U8.
 */
import { BraidError } from '../core/errors.ts';

export type TensorData = Float32Array | Int32Array | Uint8Array;
export type Tensors = Map<string, { shape: number[]; data: TensorData }>;

const HEADER_LIMIT_BYTES = 100 << 20; // the format's own bound: a longer header is an attack or another file

const DTYPES = { F32: Float32Array, I32: Int32Array, U8: Uint8Array } as const;

export function encodeSafetensors(tensors: Tensors, metadata: Record<string, string> = {}): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let length = 0;
  for (const [name, { shape, data }] of tensors) {
    header[name] = { dtype: dtypeOf(data), shape, data_offsets: [length, length + data.byteLength] };
    length += data.byteLength;
  }
  // Padded with spaces, as the reference writer does, so that the data begins on a multiple of 8.
  const json = Buffer.from(JSON.stringify(header));
  const headerLength = Math.ceil(json.length / 8) * 8;
  const bytes = Buffer.alloc(8 + headerLength + length, ' ');
  bytes.writeBigUInt64LE(BigInt(headerLength), 0);
  json.copy(bytes, 8);
  let offset = 8 + headerLength;
  for (const { data } of tensors.values()) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
    offset += data.byteLength;
  }
  return bytes;
}

/**
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
  if (bytes.byteLength < 8) refuse(`${bytes.byteLength} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerLength = Number(view.getBigUint64(0, true));
  if (headerLength > HEADER_LIMIT_BYTES || 8 + headerLength > bytes.byteLength) {
    refuse(`its header claims ${headerLength} bytes, the file has ${bytes.byteLength}`);
  }
  let header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  try {
    header = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset + 8, headerLength).toString());
  } catch {
    return refuse('its header is not JSON');
  }
  const { __metadata__, ...entries } = header;
  const tensors: Tensors = new Map();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(entries)) {
    const TypedArray = DTYPES[dtype as keyof typeof DTYPES];
    if (TypedArray === undefined) refuse(`tensor ${name} has dtype ${dtype}; F32, I32 and U8 are read`);
    const [begin, end] = data_offsets;
    const size = shape.reduce((a, b) => a * b, 1) * TypedArray.BYTES_PER_ELEMENT;
    if (begin < 0 || end - begin !== size || 8 + headerLength + end > bytes.byteLength) {
      refuse(`tensor ${name} ${dtype}[${shape}] claims bytes ${begin} to ${end}`);
    }
    // Copied out: the data need not be aligned for its type.
    const copy = Uint8Array.from(bytes.subarray(8 + headerLength + begin, 8 + headerLength + end));
    tensors.set(name, { shape, data: new TypedArray(copy.buffer) });
  }
  return { tensors, metadata: (__metadata__ ?? {}) as unknown as Record<string, string> };
}

function dtypeOf(data: TensorData): keyof typeof DTYPES {
  if (data instanceof Float32Array) return 'F32';
  return data instanceof Int32Array ? 'I32' : 'U8';
}
