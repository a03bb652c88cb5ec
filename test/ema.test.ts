/** Averaged weights (training.ema): by hand, in what is evaluated, and by real processes in both placements. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { checkRecipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram, type Program } from '../nn/program.ts';
import { readScores } from '../nn/scores.ts';
import { fromTensors, initialWeights, type TensorMap, toTensors } from '../nn/variables.ts';
import { patterns, readTensors, TWO_BRANCHES, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

const DECAY = 0.8;
const image = { height: 12, width: 12, channels: 3 };
const n = 6;

function open(training: object): { program: Program; session: Session } {
  const recipe = checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: n, ...training },
    evaluation: { batch: n },
  });
  const { graph, program } = buildProgram({ recipe, role: { kind: 'replica' }, image, classes: 5, shardSizes: [n] });
  return { program, session: new Session(graph) };
}

const fed = {
  images: Uint8Array.from({ length: n * 12 * 12 * 3 }, (_, i) => (i * 7919) % 256),
  labels: Int32Array.from({ length: n }, (_, i) => i % 5),
};

/** The largest relative difference between averages and what they should be after one more update. */
function furthest(before: TensorMap, weights: TensorMap, after: TensorMap): number {
  let most = 0;
  for (const [name, { data }] of after) {
    const [e, w] = [before.get(name)!.data, weights.get(name)!.data];
    data.forEach((x, i) => {
      const wanted = DECAY * e[i]! + (1 - DECAY) * w[i]!;
      most = Math.max(most, Math.abs(x - wanted) / (Math.abs(wanted) + 1e-3));
    });
  }
  return most;
}

test('averages of weights and running statistics start from the first weights and follow every update', (t) => {
  const { program, session } = open({ ema: { decay: DECAY } });
  const plain = open({});
  const first = initialWeights(program.variables, 3);
  for (const each of [{ program, session }, plain])
    each.session.run('write', { state: fromTensors(each.program.variables, first) });
  let averages = first;
  for (let step = 0; step < 3; step++) {
    for (const each of [session, plain.session]) {
      const { gradient } = each.run(`compute@${n}`, { ...fed, distillWeight: 0.5, shardWeight: 1 });
      each.run('apply', { gradient: gradient!, learningRate: 0.1 });
    }
    const state = toTensors(program.variables, session.run('read', {})['state']!);
    t.is(state.averages.size, program.variables.length);
    t.true(furthest(averages, state.weights, state.averages) < 1e-5);
    averages = state.averages;
    const { weights, momenta } = toTensors(plain.program.variables, plain.session.run('read', {})['state']!);
    t.deepEqual([state.weights, state.momenta], [weights, momenta]); // training itself is what it was
  }
  // What is evaluated: both, as a program without averages does with either.
  const { scores } = session.run('evaluate', fed);
  const found = readScores(program.classifiers, scores!, n);
  t.is(found.length, 2 * plain.program.classifiers.length);
  for (const prefix of ['', 'ema.']) {
    if (prefix === 'ema.') plain.session.run('write', { state: fromTensors(plain.program.variables, averages) });
    const wanted = readScores(plain.program.classifiers, plain.session.run('evaluate', fed)['scores']!, n);
    for (const score of wanted) {
      const mine = found.find(({ classifier }) => classifier === `${prefix}${score.classifier}`)!;
      t.true(Math.abs(mine.lossSum - score.lossSum) < 1e-5, `${mine.classifier} ${mine.lossSum} ${score.lossSum}`);
    }
  }
  const instead = open({ ema: { decay: DECAY, evaluate: 'instead' } });
  t.deepEqual(instead.program.classifiers, plain.program.classifiers);
  const whole = fromTensors(instead.program.variables, first, undefined, averages);
  instead.session.run('write', { state: whole });
  t.deepEqual(instead.session.run('evaluate', fed)['scores'], plain.session.run('evaluate', fed)['scores']);
  for (const each of [session, plain.session, instead.session]) each.close();
});

test.serial('real processes keep the same averages in both placements, and evaluate them', async (t) => {
  await using folder = temporaryFolder();
  const found: TensorMap[] = [];
  for (const [placement, replicas] of [
    ['together', 2],
    ['split', 1],
  ]) {
    const recipe = writeRecipe(folder, {
      name: 'averaged',
      ...patterns(folder, 128, 40),
      method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
      training: { epochs: 1, maxSteps: 3, batch: 32, learningRate: 0.02, ema: { decay: DECAY } },
      evaluation: { batch: 16 },
      checkpoint: { everySteps: 1, keep: 3 },
      cluster: { placement, replicas, threads: 1 },
    });
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, String(placement))]);
    t.is(code, 0, output);
    const at = (step: number, file: string) =>
      readTensors(join(run, `checkpoints/step-0000000${step}/${file}.safetensors`));
    for (const step of [2, 3]) t.true(furthest(at(step - 1, 'ema'), at(step, 'model'), at(step, 'ema')) < 1e-5);
    found.push(at(3, 'ema'));
    const { results } = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
    const names = results.map(({ classifier }: { classifier: string }) => classifier);
    const plain = ['branch.0', 'branch.1', 'branches', 'ensemble', 'ensemble.probabilities', 'fused'];
    t.deepEqual(names, [...plain, ...plain.map((name) => `ema.${name}`)]);
    t.regex(output, /fused classifier, averaged weights/);
  }
  const [together, split] = found as [TensorMap, TensorMap];
  t.deepEqual([...split.keys()].sort(), [...together.keys()].sort());
});
