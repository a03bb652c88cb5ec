/** The ImageNet recipe as users run it, made small: real processes, JPEGs of different sizes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import turbo from '@julusian/jpeg-turbo';
import test from 'ava';
import { Random } from '../core/random.ts';
import { type Folder, temporaryFolder, trainProcess } from './training.ts';

const RECIPE = new URL('../recipes/imagenet-ffl-resnet34.yaml', import.meta.url).pathname;

/** Each class has its colour; sizes, kinds and noise differ. @returns the folder */
function writePhotographs(folder: Folder, split: string, count: number): string {
  for (let i = 0; i < count; i++) {
    const random = new Random(7, count, i);
    const [height, width, label] = [20 + random.int(80), 20 + random.int(80), i % 3];
    const pixels = Buffer.alloc(height * width * 3);
    pixels.forEach((_, at) => {
      pixels[at] = random.int(100) + (at % 3 === label ? 150 : 0);
    });
    const file = turbo.compressSync(pixels, {
      ...{ format: turbo.FORMAT_RGB, height, width, quality: 80 },
      subsampling: i % 2 === 0 ? turbo.SAMP_420 : turbo.SAMP_444,
    });
    folder.write(`${split}/class-${label}/${i}.jpg`, file);
  }
  return join(folder.path, split);
}

for (const placement of ['together', 'split']) {
  test.serial(`${placement}: two workers train on JPEGs of different sizes, and evaluate their middles`, async (t) => {
    await using folder = temporaryFolder();
    const changes = {
      'data.path': writePhotographs(folder, 'train', 24),
      'data.testPath': writePhotographs(folder, 'val', 9),
      'data.resizedCrop': '{ size: 64, evaluationResize: 72, jitter: { brightness: 0.2, saturation: 0.2 } }',
      'branches.0.depth': 18,
      'training.batch': 8,
      'training.learningRate': 0.01,
      'training.maxSteps': 3,
      'evaluation.batch': 4,
      'cluster.placement': placement,
      'cluster.replicas': placement === 'together' ? 2 : 1,
      'cluster.inputThreads': 2,
      ...(placement === 'split' && { trunk: 'none', shareUntil: 'null' }),
      'metrics.logEverySteps': 1,
    };
    const sets = Object.entries(changes).flatMap(([path, value]) => ['--set', `${path}=${value}`]);
    const { code, output, run } = await trainProcess([RECIPE, ...sets, '--runs', join(folder.path, 'runs')]);
    t.is(code, 0, output);
    const summary = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
    t.like(summary, { steps: 3, workers: 2, trainSamples: 24, testSamples: 9 });
    for (const { samples, classifier } of summary.results)
      t.is(samples, classifier === 'branches' ? 18 : 9, classifier);
    const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8').trim().split('\n');
    const totals = lines.map((line) => JSON.parse(line)).filter(({ kind }) => kind === 'step');
    t.is(totals.length, 3);
    for (const { losses } of totals) t.true(Number.isFinite(losses.total) && losses.total > 0, output);
  });
}
