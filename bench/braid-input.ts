/**
 * Times Braid's input: a folder's JPEGs to batches of random crops, as a worker has them prepared.
 *
 *     node bench/braid-input.ts --data photographs --threads 2
 *     node bench/braid-input.ts --packed folder --threads 2
 *
 * The second reads what `braid data pack` made of them. A step is a batch of 64: files read, encoded and decoded as a shard, images decoded, cropped and resized by the pool. It
 * is timed from when the batch before was taken. Speaks the protocol of stepper.ts.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { loadRecipe } from '../core/recipe.ts';
import { batchOf } from '../core/sampler.ts';
import { openSamples, readIndex } from '../input/indexed.ts';
import { decodeShard, encodeShard } from '../input/shard.ts';
import { InputPool, type ReadyShard } from '../worker/input/pool.ts';
import { BATCH, jpegsIn } from './input.ts';
import type { Answer } from './stepper.ts';

const { values } = parseArgs({
  options: { data: { type: 'string' }, packed: { type: 'string' }, threads: { type: 'string', default: '1' } },
});
const threads = Number(values.threads);
const prefetch = 2 * threads; // batches ahead of need: as many as a DataLoader's
const drained = 2 * prefetch; // batches before the timed ones: what was prepared while nobody asked is not counted
const { data, seed } = loadRecipe(join(import.meta.dirname, '../recipes/imagenet-vanilla-resnet34.yaml'));
const { count, read } = values.packed === undefined ? filesOf(values.data!) : await packedOf(values.packed);
const { augment, resizedCrop } = data;
const pool = new InputPool({ onBadSample: 'fail', threads, seed, augment, resizedCrop, buffers: prefetch + 1 });

let step = 0;
const coming: Promise<ReadyShard>[] = [];
for (let n = 0; n < prefetch; n++) coming.push(prepare());
for (let n = 0; n < drained; n++) await take();
process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
for await (const line of createInterface(process.stdin)) {
  for (let n = 0; n < drained; n++) await take();
  const answer: Answer = { seconds: [] };
  for (let n = Number(line.split(' ')[1]); n > 0; n--) {
    const start = performance.now();
    await take();
    answer.seconds.push((performance.now() - start) / 1000);
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await pool.close();

async function take(): Promise<void> {
  const shard = await coming.shift()!;
  coming.push(prepare());
  shard.release();
}

/** What the coordinator and the worker do for a shard, but for the network between them. */
async function prepare(): Promise<ReadyShard> {
  // As many samples as make whole batches.
  const samples = count * BATCH;
  const { epoch, sampleIds } = batchOf(step, { samples, batch: BATCH, seed, shuffle: true });
  const side = resizedCrop!.size;
  const encoded = encodeShard({
    step: step++,
    epoch,
    encoding: 'image-file',
    image: { height: side, width: side, channels: 3 },
    sampleIds,
    labels: new Int32Array(sampleIds.length),
    records: await Promise.all(Array.from(sampleIds, (id) => read(id % count))),
  });
  return pool.prepare(decodeShard(encoded));
}

interface Images {
  count: number;
  read(image: number): Promise<Uint8Array>;
}

function filesOf(folder: string): Images {
  const files = jpegsIn(folder);
  return { count: files.length, read: async (image) => readFileSync(files[image]!) };
}

async function packedOf(folder: string): Promise<Images> {
  const { index, where } = await readIndex(folder);
  const samples = await openSamples(index, where);
  return { count: samples.length, read: (image) => samples.read(image) };
}
