/** A data set that is read through its index, wherever it lies. */
import { basename, dirname, isAbsolute, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { decompressPage } from 'hyparquet/src/datapage.js';
import { compressors } from 'hyparquet-compressors';
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import type { Dataset, Split } from './dataset.ts';
import { decodeIndex, INDEX_NAME, type SampleIndex } from './index-file.ts';
import { isRemote, openStore, type Store } from './store.ts';
import { invalidData } from './stored-file.ts';

const KEPT_PAGES_BYTES = 64 << 20; // inflated: samples that are read together may share one

/** @throws BraidError INVALID_DATA, also when the files are no longer those that were indexed */
export async function openIndexed(data: Recipe['data'], split: Split, keepsBroken: boolean): Promise<Dataset> {
  const path = split === 'train' ? data.path : data.testPath!;
  const { index, where } = await readIndex(path);
  if (!keepsBroken) requireSound(where, index, split);
  const train = split === 'train' ? index : (await readIndex(data.path)).index;
  requireSameClasses(where, index, train);
  const classes = data.classes ?? train.classes;
  if (index.classes > classes) {
    const remedy =
      data.classes === null
        ? 'Index training and test images that belong together.'
        : 'Raise data.classes, or leave it out.';
    throw invalidData(where, `${index.classes} classes`, `at most ${classes}`, remedy);
  }
  const channels = data.mean.length === 1 ? 1 : 3;
  if (index.channels > channels) {
    throw invalidData(
      where,
      'colour images',
      'grey ones, because data.mean has one value',
      'Give data.mean three values.',
    );
  }
  const size = data.resizedCrop === null ? index.size : { height: data.resizedCrop.size, width: data.resizedCrop.size };
  if (size === null) {
    throw invalidData(
      where,
      'images of different sizes',
      'images of one size',
      'Set data.resizedCrop to train on images of any size.',
    );
  }
  const samples = await openSamples(index, where);
  return {
    name: `${path} (${split})`,
    length: samples.length,
    classes,
    image: { ...size, channels },
    encoding: 'image-file',
    recordBytes: index.recordBytes,
    indexHash: index.hash,
    read: (sample) => samples.read(sample),
    label: (sample) => index.columns.label[sample]!,
    where: (sample) => samples.where(sample),
    close: () => samples.close(),
  };
}

/** @param path an index, or the folder or prefix that holds it */
export async function readIndex(path: string): Promise<{ index: SampleIndex; where: string }> {
  const where = path.endsWith('.braid') ? path : `${path.replace(/\/+$/, '')}/${INDEX_NAME}`;
  const store = await openStore(dirname(where));
  try {
    const name = basename(where);
    const [found] = await store.stat([name]).catch((cause) => {
      const remedy = 'Make the index: braid data index <source>, and name it in data.path and data.testPath.';
      throw new BraidError('INVALID_DATA', (cause as Error).message, { remedy, cause });
    });
    return { index: decodeIndex(where, await store.read(name, 0, found!.size)), where };
  } finally {
    store.close();
  }
}

/** @param where the index is */
export async function openSamples(index: SampleIndex, where: string): Promise<Samples> {
  const { source } = index;
  const local = isRemote(source) || isAbsolute(source);
  const root = local ? source : isRemote(where) ? new URL(source, where).href : join(dirname(where), source);
  const store = await openStore(root.replace(/(?<=[^/])\/+$/, ''));
  try {
    const found = await store.stat(index.files.map(({ name }) => name));
    for (const [i, { name, size, tag }] of index.files.entries()) {
      const now = found[i]!;
      const says = (object: { size: number; tag: string | null }) =>
        now.size !== size ? `${object.size} bytes` : `tag ${object.tag}`;
      if (now.size === size && (tag === null || now.tag === tag)) continue;
      const remedy = `Make the index anew: braid data index ${root}.`;
      throw invalidData(
        `${store.where}/${name}`,
        says(now),
        `${says({ size, tag })}, as in the index ${where}`,
        remedy,
      );
    }
    return new Samples(index, store);
  } catch (error) {
    store.close();
    throw error;
  }
}

export class Samples {
  readonly index: SampleIndex;
  private readonly store: Store;
  private readonly broken: Map<number, string>;
  /** By file and offset, the oldest first: inflated, or about to be. */
  private readonly pages = new Map<string, { page: Promise<Uint8Array>; bytes: number }>();
  private pagesBytes = 0;

  constructor(index: SampleIndex, store: Store) {
    this.index = index;
    this.store = store;
    this.broken = new Map(index.broken.map(({ sample, reason }) => [sample, reason]));
  }

  get length(): number {
    return this.index.columns.label.length;
  }

  /** @throws BraidError INVALID_DATA when it cannot be read, or is not what was indexed */
  async read(sample: number): Promise<Uint8Array> {
    const { columns, files } = this.index;
    const reason = this.broken.get(sample);
    if (reason !== undefined) throw this.unusable(sample, reason);
    const name = files[columns.file[sample]!]!.name;
    const [offset, length] = [columns.offset[sample]!, columns.length[sample]!];
    const pageSize = columns.pageSize[sample] ?? 0;
    let bytes: Uint8Array;
    if (pageSize === 0) bytes = await this.store.read(name, offset, length);
    else {
      const page = await this.page(name, offset, length, pageSize);
      const start = columns.start[sample]!;
      bytes = page.subarray(start, start + columns.bytes[sample]!);
    }
    if (crc32(bytes) !== columns.crc32[sample]) throw this.unusable(sample, 'other bytes than those that were indexed');
    return bytes;
  }

  where(sample: number): string {
    const { columns, files } = this.index;
    const file = `${this.store.where}/${files[columns.file[sample]!]!.name}`;
    return this.index.format === 'folder' ? file : `${file}, byte ${columns.offset[sample]}`;
  }

  close(): void {
    this.store.close();
  }

  private page(name: string, offset: number, length: number, size: number): Promise<Uint8Array> {
    const key = `${name} ${offset}`;
    const kept = this.pages.get(key);
    if (kept !== undefined) return kept.page;
    const page = this.store
      .read(name, offset, length)
      .then((stored) => decompressPage(stored, size, this.index.codec!, compressors));
    page.catch(() => this.forget(key));
    this.pages.set(key, { page, bytes: size });
    this.pagesBytes += size;
    for (const oldest of this.pages.keys()) {
      if (this.pagesBytes <= KEPT_PAGES_BYTES || oldest === key) break;
      this.forget(oldest);
    }
    return page;
  }

  private forget(key: string): void {
    this.pagesBytes -= this.pages.get(key)?.bytes ?? 0;
    this.pages.delete(key);
  }

  private unusable(sample: number, found: string): BraidError {
    const remedy = 'Mend the data set and index it again; `braid data check` lists all that is broken.';
    return invalidData(this.where(sample), found, 'an image', remedy);
  }
}

/** Damage that the index knows of is refused at once. */
function requireSound(where: string, { broken }: SampleIndex, split: Split): void {
  const [first] = broken;
  if (first === undefined) return;
  const more = broken.length === 1 ? '' : ` (and ${broken.length - 1} more)`;
  throw invalidData(
    where,
    `${first.reason} as sample ${first.sample}${more}`,
    'images that decode',
    split === 'train'
      ? 'Mend the data set and index it again, or set data.onBadSample to skip.'
      : 'Mend the data set and index it again: evaluation leaves no sample out.',
  );
}

function requireSameClasses(where: string, { classNames }: SampleIndex, train: SampleIndex): void {
  if (JSON.stringify(classNames) === JSON.stringify(train.classNames)) return;
  const named = (names: string[] | null) => (names === null ? 'no class names' : `${names.length} class folders`);
  throw invalidData(
    where,
    `${named(classNames)} other than the training images'`,
    `${named(train.classNames)}, the same`,
    'Give the training and the test images the same class folders: a label is a place in their sorted list.',
  );
}
