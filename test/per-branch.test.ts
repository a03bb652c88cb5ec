/** Branches that have their own crops and flips of an image: the same training in both placements, and when resumed. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { TensorMap } from '../nn/variables.ts';
import { FORMATS, index } from './formats.ts';
import { type Folder, readTensors, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

function recipeOf(
  folder: Folder,
  placement: string,
  perBranch: boolean,
  { replicas = 1, microBatches = 1 }: { replicas?: number; microBatches?: number } = {},
): string {
  return writeRecipe(folder, {
    name: `${placement}-${perBranch}`,
    data: {
      format: 'indexed',
      ...{ path: join(folder.path, 'x.braid'), testPath: join(folder.path, 'x.braid') },
      ...{ mean: [120, 120, 120], std: [60, 60, 60], augment: { pad: 0 }, perBranch },
      resizedCrop: { size: 16, evaluationResize: 20 },
    },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    trunk: 'none',
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 1, batch: 4, learningRate: 0.02, microBatches },
    evaluation: { batch: 4 },
    checkpoint: { everySteps: 2 },
    cluster: { placement, replicas, threads: 1 },
  });
}

test.serial('each branch has its own pixels, in both placements and after a resume alike', async (t) => {
  await using folder = temporaryFolder();
  await index(join(FORMATS, 'tar'), join(folder.path, 'x.braid'));
  const runs = join(folder.path, 'runs');
  const trained = async (placement: string, perBranch: boolean) => {
    const argv = [recipeOf(folder, placement, perBranch), '--runs', runs];
    const { code, output } = await trainProcess(argv);
    t.is(code, 0, output);
    return { argv, last: join(runs, `${placement}-${perBranch}`, 'checkpoints/step-00000003') };
  };
  const weightsIn = (checkpoint: string) => readTensors(join(checkpoint, 'model.safetensors'));
  const together = await trained('together', true);
  const weights = weightsIn(together.last);
  rmSync(together.last, { recursive: true });
  const { code, output } = await trainProcess([...together.argv, '--resume']);
  t.is(code, 0, output);
  t.deepEqual(weightsIn(together.last), weights, 'resumed');

  const split = weightsIn((await trained('split', true)).last);
  const same = weightsIn((await trained('together', false)).last);
  t.true(distance(weights, split) < 1e-3, `${distance(weights, split)}`);
  t.true(distance(weights, same) > 1e-2, `${distance(weights, same)}`);
  t.regex(readFileSync(join(runs, 'split-true/recipe.yaml'), 'utf8'), /perBranch: true/);
});

test.serial('in pieces, a replica trains as two replicas do, bit for bit; split as together', async (t) => {
  await using folder = temporaryFolder();
  await index(join(FORMATS, 'tar'), join(folder.path, 'x.braid'));
  const trained = async (name: string, placement: string, changes: object) => {
    const recipe = recipeOf(folder, placement, true, changes);
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, name)]);
    t.is(code, 0, output);
    return readTensors(join(run, 'checkpoints/step-00000003/model.safetensors'));
  };
  const pieces = await trained('pieces', 'together', { microBatches: 2 });
  t.deepEqual(pieces, await trained('replicas', 'together', { replicas: 2 }));
  const split = await trained('split', 'split', { microBatches: 2 });
  t.true(distance(pieces, split) < 1e-3, `${distance(pieces, split)}`);
});

/** Relative, over all tensors. */
function distance(a: TensorMap, b: TensorMap): number {
  let [difference, whole] = [0, 0];
  for (const [name, { data }] of a) {
    data.forEach((x, i) => {
      difference += (x - b.get(name)!.data[i]!) ** 2;
      whole += x ** 2;
    });
  }
  return Math.sqrt(difference / whole);
}
