/** With real processes and TensorFlow: in `split` the method in two threads does what it does in one. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { type Folder, patterns, readTensors, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

const STEPS = 12;

function recipeIn(folder: Folder): string {
  return writeRecipe(folder, {
    name: 'patterns',
    ...patterns(folder, 250, 90),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: STEPS / 4, batch: 64 },
    evaluation: { batch: 32 },
    cluster: { threads: 1, placement: 'split', replicas: 2 },
    metrics: { logEverySteps: 1 },
  });
}

async function trained(recipe: string, runs: string, methodThreads: number) {
  const set = ['--set', `cluster.methodThreads=${methodThreads}`];
  const { code, output, run } = await trainProcess([recipe, '--runs', runs, ...set]);
  if (code !== 0) throw new Error(output);
  const [model, optimizer] = ['model', 'optimizer'].map((file) =>
    readTensors(join(run, `checkpoints/step-000000${STEPS}/${file}.safetensors`)),
  );
  const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8').trim().split('\n');
  const seen = lines.map((line) => JSON.parse(line)).map(({ losses, results }) => ({ losses, results }));
  return { model, optimizer, seen };
}

test('two replicas of two branches: two threads of the method end bit for bit as one, and each as itself', async (t) => {
  await using folder = temporaryFolder();
  const recipe = recipeIn(folder);
  const train = (name: string, threads: number) => trained(recipe, join(folder.path, name), threads);
  const one = await train('one', 1);
  const fusion = [...one.model!.keys()].filter((name) => name.startsWith('fusion.'));
  t.true(fusion.length > 0);
  const two = await train('two', 2);
  t.deepEqual(await train('two-again', 2), two);
  t.deepEqual(two, one);
});
