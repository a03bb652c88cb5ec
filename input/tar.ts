/** The index of a tar file: where each member's bytes are, from its headers alone. */
import { type RangedFile, Window } from './ranges.ts';
import { invalidData } from './stored-file.ts';

export interface TarMember {
  /** As stored, without a leading "./" and a trailing "/". */
  name: string;
  folder: boolean;
  /** Of its first byte in the tar file. */
  offset: number;
  /** Bytes. */
  size: number;
}

const BLOCK = 512;
const MAX_LONG_NAME_BYTES = 1 << 20; // a pax or GNU name record; real ones have some hundred bytes

const REMEDY = 'Make it again with `tar -cf` (not compressed), a sub-folder a class.';

/** Scans ustar, GNU and pax tar files. Members that are neither files nor folders (links, devices) are refused. */
export async function* tarMembers(stored: RangedFile, window = new Window(stored)): AsyncGenerator<TarMember> {
  let longName: string | null = null;
  let longSize: number | null = null;
  for (let at = 0; ; ) {
    if (at + BLOCK > stored.size) {
      throw invalidData(
        stored.file,
        `its end at byte ${stored.size}`,
        'an end-of-archive block (it is truncated)',
        REMEDY,
      );
    }
    const block = await window.read(at, BLOCK);
    if (block.every((byte) => byte === 0)) return;
    requireChecksum(stored, block, at);
    const type = String.fromCharCode(block[156]!);
    const isRecord = type === 'x' || type === 'g' || type === 'L' || type === 'K';
    const size: number = isRecord ? number(block, 124, 12) : (longSize ?? number(block, 124, 12));
    const offset = at + BLOCK;
    if (!Number.isSafeInteger(size) || size < 0 || offset + size > stored.size) {
      const name = longName ?? headerName(block);
      throw invalidData(
        stored.file,
        `its end at byte ${stored.size}`,
        `${size} bytes of ${name} from byte ${offset} (it is truncated)`,
        REMEDY,
      );
    }
    at = offset + Math.ceil(size / BLOCK) * BLOCK;
    if (isRecord) {
      if (size > MAX_LONG_NAME_BYTES) {
        throw invalidData(stored.file, `a header record of ${size} bytes`, `at most ${MAX_LONG_NAME_BYTES}`, REMEDY);
      }
      const record = await window.read(offset, size);
      if (type === 'L') longName = text(record, 0, size);
      if (type === 'x') {
        const pax = paxRecords(record);
        longName = pax.get('path') ?? longName;
        longSize = pax.has('size') ? Number(pax.get('size')) : longSize;
      }
      continue;
    }
    const name = (longName ?? headerName(block)).replace(/^(\.\/)+/, '').replace(/\/+$/, '');
    const folder = type === '5';
    if (!folder && type !== '0' && type !== '\0' && type !== '7') {
      throw invalidData(stored.file, `${name} of tar type "${type}"`, 'only files and folders', REMEDY);
    }
    yield { name, folder, offset, size: folder ? 0 : size };
    longName = null;
    longSize = null;
  }
}

/** The header's bytes must add up to the number it states, counting the number's own place as spaces. */
function requireChecksum(stored: RangedFile, block: Uint8Array, at: number): void {
  let sum = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += block[i]!;
  if (sum === number(block, 148, 8)) return;
  const found = block[0] === 0x1f && block[1] === 0x8b ? 'a gzip file' : `no tar header at byte ${at}`;
  throw invalidData(stored.file, found, 'a tar file that is not compressed', REMEDY);
}

function headerName(block: Uint8Array): string {
  const prefix = text(block, 257, 5) === 'ustar' ? text(block, 345, 155) : '';
  const name = text(block, 0, 100);
  return prefix === '' ? name : `${prefix}/${name}`;
}

function text(bytes: Uint8Array, start: number, length: number): string {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end));
}

/** Octal digits, or, with the first bit set, a big-endian binary number (GNU). */
function number(block: Uint8Array, start: number, length: number): number {
  if (block[start]! & 0x80) {
    let value = block[start]! & 0x7f;
    for (let i = start + 1; i < start + length; i++) value = value * 256 + block[i]!;
    return value;
  }
  const digits = text(block, start, length).trim();
  return digits === '' ? 0 : /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN;
}

/** "<length> <key>=<value>\n" each, the length counting the whole record. */
function paxRecords(bytes: Uint8Array): Map<string, string> {
  const records = new Map<string, string>();
  const decoder = new TextDecoder();
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? 0 : Number(decoder.decode(bytes.subarray(at, space)));
    if (!Number.isInteger(length) || length < 5 || at + length > bytes.length) break;
    const record = decoder.decode(bytes.subarray(space + 1, at + length - 1));
    const equals = record.indexOf('=');
    records.set(record.slice(0, equals), record.slice(equals + 1));
    at += length;
  }
  return records;
}
