/**
 * braid data pack: a data set once more, its images no larger than training needs them, as tar shards with an index. Shards are
 * renamed into place when they are whole, so that one that was interrupted goes on where it was.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { buildIndex, openScan, type ScanOptions } from '../input/build-index.ts';
import { decodeIndex, encodeIndex, INDEX_NAME, type SampleIndex } from '../input/index-file.ts';
import { openSamples, readIndex, type Samples } from '../input/indexed.ts';
import { Progress } from '../input/progress.ts';
import { tarOf } from '../input/write-tar.ts';
import { ImagePool } from '../worker/input/image-pool.ts';
import { writeIndex } from './data-index.ts';

export interface Packing {
  /** Pixels of the short side; smaller images stay as they are. */
  shortSide: number;
  /** Of JPEG, 1 to 100. */
  quality: number;
}

const SAMPLES_A_SHARD = 1000; // of about 30 kB each
/** Says what a folder was packed from, and how: what goes on there must be the same. */
const FACTS_NAME = 'pack.json';

/** @returns the index, and bytes of images before and after */
export async function pack(
  source: string,
  target: string,
  packing: Packing,
  options: ScanOptions,
  print: (line: string) => void,
): Promise<{ path: string; samples: number; before: number; after: number }> {
  const { index, where } = await indexOf(source, options);
  claim(target, { from: index.hash, ...packing });
  const samples = await openSamples(index, where);
  const pool = new ImagePool();
  try {
    const { log, nowMs, signal } = options;
    const progress = new Progress(target, log, nowMs);
    const before = bytesOf(index, 0, samples.length);
    for (let shard = 0; shard * SAMPLES_A_SHARD < samples.length; shard++) {
      const [first, end] = [shard * SAMPLES_A_SHARD, Math.min(samples.length, (shard + 1) * SAMPLES_A_SHARD)];
      const path = join(target, `shard-${String(shard).padStart(6, '0')}.tar`);
      if (!existsSync(path)) {
        const members = await packedSamples(samples, [first, end], pool, packing, signal, print);
        writeFileSync(`${path}.part`, tarOf(members));
        renameSync(`${path}.part`, path);
      }
      progress.at(bytesOf(index, 0, end), before);
    }
    const { classNames, classes } = index;
    const written = await writeIndex(target, null, { ...options, firstLabel: 0 }, { classNames, classes });
    const after = written.header.files.reduce((sum, { name }) => sum + statSync(join(target, name)).size, 0);
    return { path: written.path, samples: samples.length, before, after };
  } finally {
    samples.close();
    await pool.close();
  }
}

/** The source's own index, where it has one; else one that is made now. */
async function indexOf(source: string, options: ScanOptions): Promise<{ index: SampleIndex; where: string }> {
  if (source.endsWith('.braid') || existsSync(join(source, INDEX_NAME))) return readIndex(source);
  const scan = await openScan(source, options.firstLabel);
  try {
    const { header, columns } = await buildIndex(scan, options);
    // It is read where it would have been written: in the folder that the command runs in.
    return {
      index: decodeIndex(source, encodeIndex({ ...header, source: scan.store.where }, columns)),
      where: INDEX_NAME,
    };
  } finally {
    scan.store.close();
  }
}

function claim(target: string, facts: Packing & { from: string }): void {
  const file = join(target, FACTS_NAME);
  const text = `${JSON.stringify(facts)}\n`;
  mkdirSync(target, { recursive: true });
  if (!existsSync(file)) {
    writeFileSync(file, text);
    return;
  }
  const found = readFileSync(file, 'utf8');
  if (found === text) return;
  throw new BraidError('INVALID_DATA', `${target}: found ${found.trim()}, expected ${text.trim()}, to go on with`, {
    remedy: 'Pack into another folder, or remove this one.',
  });
}

/** WebDataset's members of samples [first, end). */
async function packedSamples(
  samples: Samples,
  [first, end]: [number, number],
  pool: ImagePool,
  packing: Packing,
  signal: AbortSignal,
  print: (line: string) => void,
): Promise<[string, Uint8Array][]> {
  const broken = new Map(samples.index.broken.map(({ sample, reason }) => [sample, reason]));
  const packed = await Promise.all(
    Array.from({ length: end - first }, async (_, i): Promise<[string, Uint8Array][]> => {
      const sample = first + i;
      const key = String(sample).padStart(8, '0');
      const label: [string, Uint8Array] = [`${key}.cls`, Buffer.from(`${samples.index.columns.label[sample]}`)];
      const reason = broken.get(sample);
      if (reason !== undefined) {
        print(`${samples.where(sample)}: ${reason}: stays a broken sample, as number ${sample}`);
        return [[`${key}.jpg`, new Uint8Array(0)], label];
      }
      const read = () => {
        signal.throwIfAborted();
        return samples.read(sample);
      };
      const { file, suffix, problem } = await pool.shrink(read, packing);
      if (problem !== null) print(`${samples.where(sample)}: ${problem}: stays as it is, as number ${sample}`);
      return [[`${key}.${suffix}`, file], label];
    }),
  );
  return packed.flat();
}

/** Of the images [first, end). */
function bytesOf({ columns: { length, pageSize, bytes } }: SampleIndex, first: number, end: number): number {
  let sum = 0;
  for (let i = first; i < end; i++) sum += (pageSize[i] ?? 0) > 0 ? bytes[i]! : length[i]!;
  return sum;
}
