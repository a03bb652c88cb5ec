/** Makes the index of a data set: goes through all of it once, several files at a time. */
import { availableParallelism } from 'node:os';
import { crc32 } from 'node:zlib';
import type { CompressionCodec } from 'hyparquet';
import { BraidError } from '../core/errors.ts';
import { readImageHeader } from './image-header.ts';
import type { Columns, IndexHeader } from './index-file.ts';
import { Progress } from './progress.ts';
import { classNamesOf, type Format, formatOf, type Scan, type Scanned, scannerOf } from './scan.ts';
import { openSource, type Store, type StoredObject } from './store.ts';
import { invalidData } from './stored-file.ts';
import { Turnstile } from './turnstile.ts';

/** What is on its way hides latency; more than that only takes memory. */
const FILES_AT_ONCE = Math.max(4, availableParallelism());

export interface ScanOptions {
  /** What the source calls class 0. */
  firstLabel: number;
  signal: AbortSignal;
  /** Takes a line of progress. */
  log(line: string): void;
  /** Milliseconds, monotonic. */
  nowMs(): number;
}

export interface Source {
  /** As it was given, for messages. */
  name: string;
  store: Store;
  format: Format;
  files: StoredObject[];
  classNames: string[] | null;
  scan: Scan;
}

/** @throws BraidError INVALID_DATA */
export async function openScan(source: string, firstLabel: number): Promise<Source> {
  const { store, files: all } = await openSource(source);
  try {
    const { format, files } = formatOf(source, all);
    const classNames = format === 'folder' ? classNamesOf(files) : null;
    return { name: source, store, format, files, classNames, scan: scannerOf(format, classNames, firstLabel) };
  } catch (error) {
    store.close();
    throw error;
  }
}

/**
 * Goes through all files of a source, several at a time.
 * @param visit of each file's samples, in their order
 * @param failed takes what a file cannot be read on for; absent: it is thrown
 */
export async function scanAll(
  { name, store, files, scan }: Source,
  { signal, log, nowMs }: ScanOptions,
  visit: (file: number, sample: Scanned) => void | Promise<void>,
  failed: (error: BraidError) => void = (error) => {
    throw error;
  },
): Promise<void> {
  const total = files.reduce((sum, { size }) => sum + size, 0);
  const progress = new Progress(name, log, nowMs);
  const turns = new Turnstile(FILES_AT_ONCE);
  const over = new AbortController();
  let done = 0;
  const one = async ({ name: file, size }: StoredObject, place: number) => {
    let read = 0;
    const ranged = { file: `${store.where}/${file}`, size, read: (at: number, n: number) => store.read(file, at, n) };
    try {
      for await (const sample of scan(ranged)) {
        signal.throwIfAborted();
        if (over.signal.aborted) return;
        await visit(place, sample);
        if (sample.page === null) read += sample.length;
        progress.at(done + read, total);
      }
    } catch (thrown) {
      if (!(thrown instanceof BraidError)) throw thrown;
      failed(thrown);
    }
    done += size;
    progress.at(done, total);
  };
  const work = files.map((file, place) =>
    turns.pass(async () => {
      if (over.signal.aborted) return;
      try {
        await one(file, place);
      } catch (error) {
        over.abort();
        throw error;
      }
    }),
  );
  const results = await Promise.allSettled(work);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** The samples of one file. */
interface Rows {
  offset: number[];
  length: number[];
  label: number[];
  crc32: number[];
  pages: (Scanned['page'] & { bytes: number })[];
  broken: { row: number; reason: string }[];
}

/** @throws BraidError INVALID_DATA naming the first place that cannot be read, or a sample without a label */
export async function buildIndex(
  source: Source,
  options: ScanOptions,
): Promise<{ header: Omit<IndexHeader, 'source'>; columns: Columns }> {
  const perFile: Rows[] = source.files.map(() => ({
    offset: [],
    length: [],
    label: [],
    crc32: [],
    pages: [],
    broken: [],
  }));
  const facts = new Facts();
  await scanAll(source, options, (file, sample) => {
    const rows = perFile[file]!;
    const reason = sample.damage ?? facts.see(sample.bytes);
    if (sample.label < 0) {
      throw invalidData(sample.name, `label ${sample.label}`, 'one from --first-label on', 'Check --first-label.');
    }
    if (reason !== null) rows.broken.push({ row: rows.label.length, reason });
    rows.offset.push(sample.offset);
    rows.length.push(sample.length);
    rows.label.push(sample.label);
    rows.crc32.push(crc32(sample.bytes));
    if (sample.page !== null) facts.codec(sample.name, sample.page.codec);
    rows.pages.push({ ...(sample.page ?? NO_PAGE), bytes: sample.bytes.length });
  });

  const n = perFile.reduce((sum, { label }) => sum + label.length, 0);
  if (n === 0) throw invalidData(source.name, 'no samples', 'some', 'Check the data set.');
  const inPages = facts.codecSeen === null ? 0 : n;
  const columns: Columns = {
    offset: new Float64Array(n),
    file: new Uint32Array(n),
    length: new Uint32Array(n),
    label: new Int32Array(n),
    crc32: new Uint32Array(n),
    pageSize: new Uint32Array(inPages),
    start: new Uint32Array(inPages),
    bytes: new Uint32Array(inPages),
  };
  const broken: IndexHeader['broken'] = [];
  let at = 0;
  for (const [file, rows] of perFile.entries()) {
    columns.offset.set(rows.offset, at);
    columns.length.set(rows.length, at);
    columns.label.set(rows.label, at);
    columns.crc32.set(rows.crc32, at);
    columns.file.fill(file, at, at + rows.label.length);
    if (inPages > 0) {
      for (const [row, { size, start, bytes }] of rows.pages.entries()) {
        columns.pageSize[at + row] = size;
        columns.start[at + row] = start;
        columns.bytes[at + row] = bytes;
      }
    }
    for (const { row, reason } of rows.broken) broken.push({ sample: at + row, reason });
    at += rows.label.length;
  }
  const classes = Math.max(source.classNames?.length ?? 0, columns.label.reduce((most, l) => Math.max(most, l), 0) + 1);
  const { format, files, classNames } = source;
  const { size, channels, recordBytes, codecSeen: codec } = facts;
  return { header: { format, files, classNames, classes, size, channels, recordBytes, codec, broken }, columns };
}

const NO_PAGE = { codec: 'UNCOMPRESSED', size: 0, start: 0 } as const;

/** What is to be known of all images together. */
class Facts {
  size: IndexHeader['size'] = null;
  channels: 1 | 3 = 1;
  recordBytes = 0;
  codecSeen: CompressionCodec | null = null;
  private first = true;

  /** @returns why the image has no header that can be read, or null */
  see(bytes: Uint8Array): string | null {
    this.recordBytes = Math.max(this.recordBytes, bytes.length);
    try {
      const header = readImageHeader(bytes);
      if (header === null) return 'a truncated image';
      const { height, width, channels } = header;
      if (height < 1 || width < 1) return 'an image without pixels';
      if (this.first) this.size = { height, width };
      else if (this.size?.height !== height || this.size.width !== width) this.size = null;
      if (channels === 3) this.channels = 3;
      this.first = false;
      return null;
    } catch (error) {
      return (error as Error).message;
    }
  }

  codec(where: string, codec: CompressionCodec): void {
    if (this.codecSeen !== null && this.codecSeen !== codec) {
      throw invalidData(where, `pages compressed by ${codec}`, this.codecSeen, 'Compress all files by one codec.');
    }
    this.codecSeen = codec;
  }
}
