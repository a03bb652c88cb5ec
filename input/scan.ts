/** Goes through the files of a data set from beginning to end, in whichever format: every sample, and where its bytes are. */
import type { CompressionCodec } from 'hyparquet';
import { BraidError } from '../core/errors.ts';
import type { RangedFile } from './ranges.ts';
import { scanParquet } from './scan-parquet.ts';
import { scanTar } from './scan-tar.ts';
import { scanTfrecord } from './scan-tfrecord.ts';
import type { StoredObject } from './store.ts';
import { invalidData } from './stored-file.ts';

export interface Scanned {
  /** For messages: its place in the file. */
  name: string;
  /** As stored, a JPEG or PNG: a view that stays as it is. */
  bytes: Uint8Array;
  label: number;
  /** In the file: of its bytes or, of one in a compressed page, of that page. */
  offset: number;
  length: number;
  page: Page | null;
  /** Why its bytes are not what was written; null: nothing says so. */
  damage: string | null;
}

/** A compressed stretch of a parquet file that holds several samples. */
export interface Page {
  codec: CompressionCodec;
  /** Bytes, once decompressed. */
  size: number;
  /** Where in that the sample begins. */
  start: number;
}

export type Format = 'folder' | 'tar' | 'parquet' | 'tfrecord';

/** @throws BraidError INVALID_DATA naming the file and the place from which on it cannot be read */
export type Scan = (file: RangedFile) => AsyncGenerator<Scanned>;

/** Bytes of a file that are read at a time where it is gone through: few requests, and no more than 16 such at once. */
export const SCAN_BYTES = 8 << 20;

const SUFFIXES: Record<Format, RegExp> = {
  folder: /^[^/]+\/[^/]+\.(jpe?g|png)$/i,
  tar: /\.tar$/,
  parquet: /\.parquet$/,
  tfrecord: /\.tfrecords?(-\d+-of-\d+)?$|-\d{5}-of-\d{5}$/,
};

/**
 * @param source for messages
 * @returns the format that the files' names show, and those files
 */
export function formatOf(source: string, files: StoredObject[]): { format: Format; files: StoredObject[] } {
  const found = (Object.keys(SUFFIXES) as Format[])
    .map((format) => ({ format, files: files.filter(({ name }) => SUFFIXES[format].test(name)) }))
    .filter(({ files }) => files.length > 0);
  if (found.length === 1) return found[0]!;
  const expected = '.tar, .parquet or TFRecord files, or a sub-folder of JPEG and PNG files a class';
  const remedy = 'Name the files that are meant: data/train-*.parquet, shard-{000..146}.tar.';
  const kinds = found.map(({ format, files }) => `${files.length} of ${format}`).join(', ');
  throw invalidData(
    source,
    found.length === 0 ? `none of ${files.length} files to be a sample` : kinds,
    expected,
    remedy,
  );
}

/**
 * @param classNames of format folder: a label is a place in them
 * @param firstLabel what the source calls class 0
 */
export function scannerOf(format: Format, classNames: string[] | null, firstLabel: number): Scan {
  const scan = { folder: scanImage(classNames ?? []), tar: scanTar, parquet: scanParquet, tfrecord: scanTfrecord }[
    format
  ];
  if (firstLabel === 0) return scan;
  return async function* shifted(file) {
    for await (const sample of scan(file)) yield { ...sample, label: sample.label - firstLabel };
  };
}

/** The classes of a folder with one sub-folder each, sorted. */
export function classNamesOf(files: StoredObject[]): string[] {
  return [...new Set(files.map(({ name }) => classOf(name)))].sort();
}

function classOf(name: string): string {
  return name.split('/', 1)[0]!;
}

/** A file that is one image. */
function scanImage(classNames: string[]): Scan {
  const labels = new Map(classNames.map((name, label) => [name, label]));
  return async function* scanFile(file) {
    const className = file.file.split('/').at(-2)!;
    const bytes = await file.read(0, file.size);
    yield {
      name: file.file,
      bytes,
      label: labels.get(className)!,
      offset: 0,
      length: file.size,
      page: null,
      damage: null,
    };
  };
}

/** A label as text or number, checked. @param where for messages */
export function soundLabel(where: string, given: unknown): number {
  const label = typeof given === 'string' && /^\s*\d+\s*$/.test(given) ? Number(given) : Number(given ?? Number.NaN);
  if (Number.isInteger(label) && label >= 0 && label <= 0x7fffffff) return label;
  const remedy = 'Every sample needs the number of its class, from 0 on.';
  throw new BraidError('INVALID_DATA', `${where}: found ${JSON.stringify(given) ?? 'no label'}, expected a label`, {
    remedy,
  });
}
