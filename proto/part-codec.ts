/**
 * Part in protobuf's wire format, by hand: its data is copied once on the way out (into the message) and not at all
 * on the way in (a view of the message). The bytes are those that any protobuf library writes and reads.
 */
import { BraidError } from '../core/errors.ts';
import type { Part } from './messages.ts';

/** Wire types: https://protobuf.dev/programming-guides/encoding */
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

/** Of a 64-bit number. */
const VARINT_BYTES = 10;

/** Of every field but what `run` and `data` hold: 11 tags, 9 varints of at most 10 bytes, a CRC, a bool. */
const HEADER_BYTES = 106;

export function encodePart(part: Part): Buffer {
  const runBytes = Buffer.byteLength(part.run);
  const message = Buffer.allocUnsafe(HEADER_BYTES + runBytes + part.data.length);
  let at = varint(message, tag(message, 0, 1, BYTES), runBytes);
  at += message.write(part.run, at);
  at = varint(message, tag(message, at, 2, VARINT), part.generation);
  at = varint(message, tag(message, at, 3, VARINT), part.step);
  at = varint(message, tag(message, at, 4, VARINT), part.total);
  at = varint(message, tag(message, at, 5, VARINT), part.offset);
  at = message.writeUInt32LE(part.crc32, tag(message, at, 7, FIXED32));
  at = varint(message, tag(message, at, 8, VARINT), part.last ? 1 : 0);
  for (const [field, value] of [
    [9, part.round] as const,
    [10, part.lossScale] as const,
    [11, part.goodUpdates] as const,
  ]) {
    if (value !== 0) at = varint(message, tag(message, at, field, VARINT), value);
  }
  at = varint(message, tag(message, at, 6, BYTES), part.data.length);
  message.set(part.data, at);
  return message.subarray(0, at + part.data.length);
}

/** @throws BraidError PROTOCOL when the bytes are not a Part */
export function decodePart(message: Buffer): Part {
  const part = {
    run: '',
    generation: 0,
    step: 0,
    total: 0,
    offset: 0,
    data: message.subarray(0, 0),
    crc32: 0,
    last: false,
    round: 0,
    lossScale: 0,
    goodUpdates: 0,
  };
  const cursor = { message, at: 0 };
  while (cursor.at < message.length) {
    const key = readVarint(cursor);
    const field = Math.floor(key / 8);
    switch (key) {
      case 1 * 8 + BYTES:
        part.run = take(cursor, readVarint(cursor)).toString();
        break;
      case 2 * 8 + VARINT:
        part.generation = readVarint(cursor);
        break;
      case 3 * 8 + VARINT:
        part.step = readVarint(cursor);
        break;
      case 4 * 8 + VARINT:
        part.total = readVarint(cursor);
        break;
      case 5 * 8 + VARINT:
        part.offset = readVarint(cursor);
        break;
      case 6 * 8 + BYTES:
        part.data = take(cursor, readVarint(cursor));
        break;
      case 7 * 8 + FIXED32:
        part.crc32 = take(cursor, 4).readUInt32LE();
        break;
      case 8 * 8 + VARINT:
        part.last = readVarint(cursor) !== 0;
        break;
      case 9 * 8 + VARINT:
        part.round = readVarint(cursor);
        break;
      case 10 * 8 + VARINT:
        part.lossScale = readVarint(cursor);
        break;
      case 11 * 8 + VARINT:
        part.goodUpdates = readVarint(cursor);
        break;
      default:
        if (field <= 11) throw malformed(`field ${field} has wire type ${key % 8}`);
        skip(cursor, key % 8);
    }
  }
  return part;
}

interface Cursor {
  readonly message: Buffer;
  at: number;
}

function tag(message: Buffer, at: number, field: number, wireType: number): number {
  message[at] = field * 8 + wireType;
  return at + 1;
}

/** Writes a whole number of at most 2^53 and returns where the next byte goes. */
function varint(message: Buffer, at: number, value: number): number {
  let rest = value;
  let next = at;
  while (rest > 0x7f) {
    message[next++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  message[next++] = rest;
  return next;
}

function readVarint(cursor: Cursor): number {
  let value = 0;
  const end = cursor.at + VARINT_BYTES;
  for (let scale = 1; ; scale *= 0x80) {
    const byte = cursor.message[cursor.at++];
    if (byte === undefined) throw malformed('it ends inside a number');
    if (cursor.at > end) throw malformed(`a number has more than ${VARINT_BYTES} bytes`);
    value += (byte & 0x7f) * scale;
    if (value > Number.MAX_SAFE_INTEGER) throw malformed('a number is above 2^53');
    if (byte < 0x80) return value;
  }
}

function take(cursor: Cursor, length: number): Buffer {
  const end = cursor.at + length;
  if (end > cursor.message.length) throw malformed(`a field of ${length} bytes runs past its end`);
  const taken = cursor.message.subarray(cursor.at, end);
  cursor.at = end;
  return taken;
}

/** A field of a later version. */
function skip(cursor: Cursor, wireType: number): void {
  if (wireType === VARINT) readVarint(cursor);
  else if (wireType === FIXED64) take(cursor, 8);
  else if (wireType === BYTES) take(cursor, readVarint(cursor));
  else if (wireType === FIXED32) take(cursor, 4);
  else throw malformed(`wire type ${wireType}`);
}

function malformed(what: string): BraidError {
  return new BraidError('PROTOCOL', `a Part that is not one: ${what}`);
}
