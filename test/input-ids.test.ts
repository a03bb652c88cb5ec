/** Workers that read their samples themselves: the same training, bit for bit, as with the bytes sent to them, from any step. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { requireSameBad } from '../coordinator/inspect.ts';
import { planRun } from '../coordinator/plan.ts';
import { Shards } from '../coordinator/shards.ts';
import { BraidError } from '../core/errors.ts';
import { createWorkerMetrics } from '../core/metrics.ts';
import { loadRecipe, type Recipe } from '../core/recipe.ts';
import { openDataset } from '../input/dataset.ts';
import { decodeIndex } from '../input/index-file.ts';
import { parts } from '../proto/parts.ts';
import { openOwnData } from '../worker/own-data.ts';
import { PostSamples } from '../worker/post-samples.ts';
import { dataOf, FORMATS, index } from './formats.ts';
import { type Folder, readTensors, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

/** Training images of which sample 7 has changed since it was indexed, and test images that are whole. */
async function writeData(folder: Folder): Promise<void> {
  for (const split of ['train', 'test']) {
    cpSync(join(FORMATS, 'tar'), join(folder.path, split), { recursive: true });
    await index(join(folder.path, split), null);
  }
  const { offset } = decodeIndex('', readFileSync(join(folder.path, 'train/index.braid'))).columns;
  const shard = join(folder.path, 'train/shard-000001.tar');
  const bytes = readFileSync(shard);
  bytes[offset[7]! + 20]! ^= 1;
  writeFileSync(shard, bytes);
}

function recipeOf(folder: Folder, send: string, placement: string, changes: object = {}): string {
  return writeRecipe(folder, {
    name: send,
    data: {
      format: 'indexed',
      path: join(folder.path, 'train'),
      testPath: join(folder.path, 'test'),
      mean: [120, 120, 120],
      std: [60, 60, 60],
      augment: { pad: 0 },
      resizedCrop: { size: 16, evaluationResize: 20 },
      onBadSample: 'skip',
      send,
      ...changes,
    },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 2, batch: 4, learningRate: 0.02 },
    evaluation: { batch: 4 },
    cluster: { placement, replicas: placement === 'together' ? 2 : 1, threads: 1 },
  });
}

/** All that a replica's workers see of training from a step on, and of their part of the test set. */
async function seen(recipe: Recipe, replica: number, firstStep: number) {
  const plan = await planRun(recipe, openDataset);
  const shards = new Shards(plan);
  const stamp = { run: 'x', generation: 1 };
  const request = {
    ...{
      ...stamp,
      recipe: '',
      rank: replica,
      replica,
      shardSizes: plan.shardSizes,
      ...plan.image,
      classes: plan.classes,
    },
    ...{ exchangeAddresses: [], groups: [], recordBytes: plan.train.recordBytes },
    ...{ trainIndex: plan.train.indexHash!, testIndex: plan.test.indexHash! },
  };
  const samples = new PostSamples({
    ...{ request, recipe, own: await openOwnData(recipe.data, request), metrics: createWorkerMetrics(), now: () => 0 },
    async *pullShards({ split, firstStep: step }) {
      for (let at = step; at < shards.count(split, replica); at++)
        yield* parts({ ...stamp, step: at }, await shards.encoded(split, at, replica));
    },
  });
  samples.goOnFrom(firstStep);
  const found = [];
  for (let step = firstStep; step < plan.steps; step++) {
    const { images, labels, bad } = await samples.take(step);
    found.push({ images: images.slice(), labels, bad: bad.map(({ place, sampleId }) => [place, sampleId]) });
    samples.release(step);
  }
  for await (const { images, labels } of samples.testSet()) found.push({ images: images.slice(), labels, bad: [] });
  await samples.close();
  plan.train.close();
  plan.test.close();
  return found;
}

test('every pixel, label and bad sample of every step is that of bytes that are sent, from whichever step on', async (t) => {
  await using folder = temporaryFolder();
  await writeData(folder);
  const [bytes, ids] = ['bytes', 'ids'].map((send) => loadRecipe(recipeOf(folder, send, 'together')));
  for (const replica of [0, 1]) {
    const expected = await seen(bytes!, replica, 0);
    t.is(expected.length, 6 + 2 - replica); // 12 samples in batches of 4, for two replicas and twice; 12 in 3 of the test set
    t.deepEqual(await seen(ids!, replica, 0), expected);
    t.deepEqual(await seen(ids!, replica, 3), expected.slice(3));
  }
});

for (const placement of ['together', 'split']) {
  test.serial(`${placement}: weights and bad samples are those of a run whose bytes are sent`, async (t) => {
    await using folder = temporaryFolder();
    await writeData(folder);
    const runs = join(folder.path, 'runs');
    const results = [];
    for (const send of ['bytes', 'ids']) {
      const recipe = recipeOf(folder, send, placement);
      const { code, output, run } = await trainProcess([recipe, '--runs', runs]);
      t.is(code, 0, output);
      const told = readFileSync(join(run, 'bad-samples.jsonl'), 'utf8').trim().split('\n');
      const { results: scores } = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
      const last = join(run, 'checkpoints/step-00000006/model.safetensors');
      results.push({
        bad: told.map((line) => JSON.parse(line)).map(({ epoch, sample }) => [epoch, sample]),
        weights: readTensors(last),
        scores,
      });
      if (send === 'ids') t.regex(told[0]!, /found other bytes than those that were indexed/);
    }
    t.deepEqual(results[0]!.bad, [
      [0, 7],
      [1, 7],
    ]);
    t.deepEqual(results[1], results[0]);
  });
}

test.serial('without skipping, a sample that a worker cannot read ends the run by name', async (t) => {
  await using folder = temporaryFolder();
  await writeData(folder);
  const recipe = recipeOf(folder, 'ids', 'together', { onBadSample: 'fail' });
  const { code, output } = await trainProcess([recipe, '--runs', join(folder.path, 'runs')]);
  t.is(code, 1, output);
  t.regex(output, /sample 7: found .*shard-000001\.tar, byte \d+: found other bytes than those that were indexed/);
});

test('a worker whose index is another one than the coordinator’s says so', async (t) => {
  await using folder = temporaryFolder();
  await writeData(folder);
  const data = dataOf(join(folder.path, 'test'), { send: 'ids' });
  const hashes = { trainIndex: 'ab'.repeat(32), testIndex: 'ab'.repeat(32) };
  const error = await t.throwsAsync(openOwnData(data, hashes), { instanceOf: BraidError, code: 'INVALID_DATA' });
  t.regex(error!.message, /test\/index\.braid: found index \w{12}, expected the coordinator's, abababababab/);
  t.is(await openOwnData(dataOf('/nowhere'), hashes), null, 'where bytes are sent nothing is opened');
});

test('branches of a replica that do not leave the same samples out are told apart', (t) => {
  const bad = (...samples: number[]) => samples.map((sample) => ({ place: sample, sample, reason: 'nothing' }));
  t.notThrows(() => requireSameBad([0, bad(1, 2)], [1, bad(2, 1)], 5));
  const message = 'worker 1 cannot read sample 3 of step 5, and worker 0 can: found nothing';
  t.throws(() => requireSameBad([0, bad(1)], [1, bad(1, 3)], 5), { message });
  t.throws(() => requireSameBad([1, bad(1, 3)], [0, bad(1)], 5), { message });
});
