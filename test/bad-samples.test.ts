/** Samples that cannot be decoded: named, or left out alike on every branch, counted and written down. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { PNG } from 'pngjs';
import { standIns } from '../core/stand-ins.ts';
import type { TensorMap } from '../nn/variables.ts';
import { type Folder, readTensors, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

/** Two classes of 8x8 images, 16 each; two of them are cut short. @param at bytes that are left of the first */
function dataWithBadSamples(folder: Folder, at: number): void {
  for (const split of ['train', 'test']) {
    for (const [label, name] of ['dark', 'light'].entries()) {
      for (let i = 0; i < 16; i++) {
        const png = new PNG({ width: 8, height: 8 });
        png.data.forEach((_, k) => {
          png.data[k] = k % 4 === 3 ? 255 : 60 + 120 * label + ((i * 31 + k) % 60);
        });
        const bytes = PNG.sync.write(png);
        const bad =
          split === 'train' && label === 1 ? { 3: bytes.subarray(0, at), 9: bytes.subarray(0, 100) }[i] : undefined;
        folder.write(`${split}/${name}/${String(i).padStart(2, '0')}.png`, bad ?? bytes);
      }
    }
  }
}

function recipeIn(folder: Folder, onBadSample: string, placement: string): string {
  dataWithBadSamples(folder, onBadSample === 'skip' ? 20 : 70); // 20: not even its header is whole
  return writeRecipe(folder, {
    name: 'bad',
    data: {
      format: 'folder',
      path: join(folder.path, 'train'),
      testPath: join(folder.path, 'test'),
      mean: [120, 120, 120],
      std: [60, 60, 60],
      augment: { pad: 1, flip: false },
      onBadSample,
    },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 2, batch: 8, learningRate: 0.02 },
    evaluation: { batch: 8 },
    cluster: { placement, threads: 1 },
  });
}

test.serial('by default a bad sample ends the run, by name', async (t) => {
  await using folder = temporaryFolder();
  const recipe = recipeIn(folder, 'fail', 'together');
  const { code, output } = await trainProcess([recipe, '--runs', join(folder.path, 'runs')]);
  t.is(code, 1, output);
  t.regex(output, /sample \d+: found/);
});

test.serial('skipped, bad samples are the same in both placements, once an epoch, with their files', async (t) => {
  const weights: TensorMap[] = [];
  for (const placement of ['together', 'split']) {
    await using folder = temporaryFolder();
    const recipe = recipeIn(folder, 'skip', placement);
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, 'runs')]);
    t.is(code, 0, output);
    const lines = readFileSync(join(run, 'bad-samples.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    const found = lines.map(({ epoch, where }) => `${epoch} ${/light.\d+/.exec(where)?.[0]}`).sort();
    t.deepEqual(found, ['0 light/03', '0 light/09', '1 light/03', '1 light/09'], JSON.stringify(lines));
    weights.push(readTensors(join(run, 'checkpoints/step-00000008/model.safetensors')));
  }
  const [together, split] = weights as [TensorMap, TensorMap];
  for (const [name, { data }] of together) {
    const other = split.get(name)!.data;
    const difference = Math.hypot(...data.map((x, i) => x - other[i]!)) / (Math.hypot(...data) + 1e-3);
    t.true(difference < 1e-2, `${name} ${difference}`); // a wrong label on one side would show
  }
});

test('whoever stands in can be used, and is the next one going round', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.array(fc.nat(39)), (samples, places) => {
      const bad = [...new Set(places.filter((place) => place < samples))];
      const found = standIns(bad, samples);
      if (bad.length === samples) return found.size === 0;
      return bad.every((place) => {
        const other = found.get(place)!;
        const between = Array.from({ length: (other - place + samples) % samples }, (_, i) => (place + i) % samples);
        return !bad.includes(other) && between.every((each) => bad.includes(each));
      });
    }),
  );
  t.pass();
});
