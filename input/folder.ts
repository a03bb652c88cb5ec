/** Image files with a sub-folder a class, in a folder or in a .tar. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import type { Dataset, Split } from './dataset.ts';
import { type ImageHeader, readImageHeader } from './image-header.ts';
import { invalidData, openPositional, systemReason } from './stored-file.ts';
import { tarMembers } from './tar.ts';

const HEADER_BYTES = 4096; // enough for most headers; a JPEG with a large preview in front is read whole
const CHECKS_A_TURN = 1000; // files checked before other work of this process gets a turn
const IMAGE_NAME = /\.(jpe?g|png)$/i;

/** One image: its class's folder, and how to read it. */
interface Entry {
  className: string;
  /** Path below the tree's root. */
  name: string;
  size(): number;
  /** At most `limit` bytes from its start. */
  read(limit: number): Uint8Array;
}

interface Tree {
  root: string;
  /** Sorted; a label is an index into it. */
  classNames: string[];
  /** By class, then by name: the order of samples does not depend on the file system's or the tar's. */
  entries: Entry[];
  close(): void;
}

/**
 * Opens `data.path` (train) or `data.testPath` (test) and checks the header of every image. They are of one size, or the
 * recipe crops them to one.
 */
export async function openFolder(data: Recipe['data'], split: Split, keepsBroken: boolean): Promise<Dataset> {
  const tree = await openTree(split === 'train' ? data.path : data.testPath!);
  try {
    if (split === 'test') await requireSameClasses(data.path, tree);
    const classes = data.classes ?? tree.classNames.length;
    if (tree.classNames.length > classes) {
      throw invalidData(
        tree.root,
        `${tree.classNames.length} class folders`,
        `at most data.classes, which is ${classes}`,
        'Raise data.classes, or leave it out.',
      );
    }
    const channels = data.mean.length === 1 ? 1 : 3;
    const { first, recordBytes } = await requireImages(tree, channels, data.resizedCrop === null, keepsBroken);
    const { height, width } =
      data.resizedCrop === null ? first : { height: data.resizedCrop.size, width: data.resizedCrop.size };
    const labels = new Map(tree.classNames.map((name, label) => [name, label]));
    return {
      name: `${tree.root} (${split})`,
      length: tree.entries.length,
      classes,
      image: { height, width, channels },
      encoding: 'image-file',
      recordBytes,
      indexHash: null,
      read: async (index) => tree.entries[index]!.read(Number.POSITIVE_INFINITY),
      label: (index) => labels.get(tree.entries[index]!.className)!,
      where: (index) => join(tree.root, tree.entries[index]!.name),
      close: () => tree.close(),
    };
  } catch (error) {
    tree.close();
    throw error;
  }
}

async function openTree(root: string): Promise<Tree> {
  const remedy = 'Set data.path and data.testPath to a folder, or a .tar, that has a sub-folder a class.';
  const expected = 'a folder or a .tar with a sub-folder a class';
  const stat = statSync(root, { throwIfNoEntry: false });
  if (stat === undefined) throw invalidData(root, 'no such file', expected, remedy);
  const { classNames, entries, close } = stat.isDirectory()
    ? openDirectory(root)
    : await openTar(root, remedy, expected);
  try {
    if (classNames.size === 0) throw invalidData(root, 'no sub-folder', expected, remedy);
    const filled = new Set(entries.map(({ className }) => className));
    const sorted = [...classNames].sort();
    const empty = sorted.find((name) => !filled.has(name));
    if (empty !== undefined) {
      throw invalidData(
        join(root, empty),
        'no image',
        'at least one JPEG or PNG',
        'Fill the class folder, or remove it.',
      );
    }
    entries.sort((a, b) => compare(a.className, b.className) || compare(a.name, b.name));
    return { root, classNames: sorted, entries, close };
  } catch (error) {
    close();
    throw error;
  }
}

function openDirectory(root: string): { classNames: Set<string>; entries: Entry[]; close(): void } {
  const classNames = new Set(classFolders(root));
  const entries: Entry[] = [];
  for (const className of classNames) {
    for (const file of readdirSync(join(root, className))) {
      if (file.startsWith('.')) continue;
      const name = join(className, file);
      requireImageName(root, name);
      const path = join(root, name);
      entries.push({ className, name, size: () => sizeOf(path), read: (limit) => readFile(path, limit) });
    }
  }
  return { classNames, entries, close() {} };
}

function classFolders(root: string): string[] {
  return readdirSync(root).filter((name) => !name.startsWith('.') && statSync(join(root, name)).isDirectory());
}

async function openTar(
  root: string,
  remedy: string,
  expected: string,
): Promise<{ classNames: Set<string>; entries: Entry[]; close(): void }> {
  const stored = openPositional(root, remedy, expected);
  try {
    const classNames = new Set<string>();
    const entries: Entry[] = [];
    for await (const { name, folder, offset, size } of tarMembers(stored)) {
      const [className, ...rest] = name.split('/') as [string, ...string[]];
      if (className === '' || className === '.' || name.split('/').some((part) => part !== '.' && part.startsWith('.')))
        continue;
      if (folder ? rest.length === 0 : rest.length > 0) classNames.add(className);
      if (folder || rest.length === 0) continue;
      if (rest.length > 1) throw invalidData(join(root, name), 'an image two folders deep', 'class/image', remedy);
      requireImageName(root, name);
      entries.push({
        className,
        name,
        size: () => size,
        read: (limit) => stored.read(offset, Math.min(size, limit)),
      });
    }
    return { classNames, entries, close: () => stored.close() };
  } catch (error) {
    stored.close();
    throw error;
  }
}

function requireImageName(root: string, name: string): void {
  if (IMAGE_NAME.test(name)) return;
  throw invalidData(join(root, name), 'neither .jpg, .jpeg nor .png', 'only images in a class folder', 'Move it away.');
}

function readFile(file: string, limit: number): Uint8Array {
  const remedy = 'Check the data set.';
  if (limit === Number.POSITIVE_INFINITY) {
    try {
      return readFileSync(file);
    } catch (cause) {
      throw invalidData(file, systemReason(cause), 'a JPEG or PNG', remedy, cause);
    }
  }
  const stored = openPositional(file, remedy, 'a JPEG or PNG');
  try {
    return stored.read(0, Math.min(stored.size, limit));
  } finally {
    stored.close();
  }
}

function sizeOf(file: string): number {
  try {
    return statSync(file).size;
  } catch (cause) {
    throw invalidData(file, systemReason(cause), 'a JPEG or PNG', 'Check the data set.', cause);
  }
}

async function requireSameClasses(trainRoot: string, test: Tree): Promise<void> {
  const train = await openTree(trainRoot);
  train.close();
  const missing = train.classNames.find((name) => !test.classNames.includes(name));
  const extra = test.classNames.find((name) => !train.classNames.includes(name));
  if (missing === undefined && extra === undefined) return;
  throw invalidData(
    test.root,
    missing === undefined ? `class folder ${extra}` : `no class folder ${missing}`,
    `the class folders of ${trainRoot}`,
    'Give the training and the test images the same class folders: a label is a place in their sorted list.',
  );
}

/**
 * Reads every header.
 * @param oneSize whether all must have the size of the first
 * @param keepsBroken whether one that cannot be read is left for the decoder to complain about
 */
async function requireImages(
  tree: Tree,
  channels: 1 | 3,
  oneSize: boolean,
  keepsBroken: boolean,
): Promise<{ first: ImageHeader; recordBytes: number }> {
  let first: (ImageHeader & { name: string }) | null = null;
  let unreadable: BraidError | null = null;
  let recordBytes = 0;
  for (const [index, entry] of tree.entries.entries()) {
    if (index % CHECKS_A_TURN === CHECKS_A_TURN - 1) await setImmediate();
    const file = join(tree.root, entry.name);
    let header: ImageHeader;
    try {
      recordBytes = Math.max(recordBytes, entry.size());
      header = headerOf(entry, file);
    } catch (error) {
      if (!keepsBroken || !(error instanceof BraidError)) throw error;
      unreadable ??= error;
      continue;
    }
    first ??= { ...header, name: entry.name };
    if (oneSize && (header.height !== first.height || header.width !== first.width)) {
      throw invalidData(
        file,
        `${header.height}x${header.width} pixels`,
        `${first.height}x${first.width}, the size of ${first.name}`,
        'Set data.resizedCrop to train on images of any size, or resize the images of both splits to one size first.',
      );
    }
    if (header.channels > channels) {
      throw invalidData(
        file,
        'a colour image',
        'a grey one, because data.mean has one value',
        'Give data.mean three values.',
      );
    }
  }
  if (first === null) throw unreadable!;
  return { first, recordBytes };
}

function headerOf(entry: Entry, file: string): ImageHeader {
  const expected = 'a JPEG or PNG';
  const remedy = 'Replace the file, or remove it.';
  let header: ImageHeader | null;
  try {
    header = readImageHeader(entry.read(HEADER_BYTES)) ?? readImageHeader(entry.read(Number.POSITIVE_INFINITY));
  } catch (cause) {
    if (cause instanceof BraidError) throw cause;
    throw invalidData(file, (cause as Error).message, expected, remedy, cause);
  }
  if (header === null) throw invalidData(file, 'a truncated image', expected, remedy);
  if (header.height < 1 || header.width < 1) throw invalidData(file, 'an image without pixels', expected, remedy);
  return header;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
