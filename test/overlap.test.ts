/** The sum of gradients behind the trunks' backward (cluster.overlap): the same bits, sooner. */
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { checkRecipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram } from '../nn/program.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import type { Segment } from '../worker/exchange/exchange.ts';
import { expectedSum, gradientOf, never, sameBits, world } from './exchange-world.ts';
import { gradientsByName } from './gradients.ts';
import { patterns, readTensors, TWO_BRANCHES, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

const image = { height: 16, width: 16, channels: 3 };
const n = 6;
const classes = 5;

const fed = {
  images: Uint8Array.from({ length: n * 16 * 16 * 3 }, (_, i) => Math.abs(Math.imul(i, 2654435761)) >>> 24),
  labels: Int32Array.from({ length: n }, (_, i) => i % classes),
  ...{ distillWeight: 0.5, shardWeight: 0.5, lossScale: 8 },
};

/** Gradients by variable, and the losses. */
function computed(overlap: boolean, changes: object, training: object) {
  const recipe = checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: n, ...training },
    evaluation: { batch: n },
    cluster: { overlap },
    ...changes,
  });
  const { graph, program } = buildProgram({ recipe, role: { kind: 'replica' }, image, classes, shardSizes: [n] });
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  const { losses, gradient } = session.run(`compute@${n}`, fed);
  const below = overlap ? session.run(`trunkBackward@${n}`, {})['gradient']! : [];
  session.close();
  const { segments, gradientLength } = program.rounds[0]!;
  const byName = gradientsByName(program, Float32Array.of(...gradient!, ...below));
  return { losses: losses!, segments, gradientLength, upper: gradient!.length, byName };
}

const different = [
  { network: 'mobilenetv2', multiplier: 0.1 },
  { network: 'densenet', depth: 10, growth: 4 },
];

const cases: Record<string, [changes: object, training?: object]> = {
  'a shared trunk': [{}],
  'trunks of their own': [{ trunk: 'none' }],
  bf16: [{}, { precision: 'bf16' }],
  f16: [{}, { precision: 'f16' }],
  'a gate on the trunk': [{ method: { name: 'one' } }],
  'different networks that teach one another': [{ branches: different, trunk: 'none', method: { name: 'dml' } }],
};

for (const [name, [changes, training = {}]] of Object.entries(cases)) {
  test(`${name}: in two runs gradients, statistics and losses have the bits of one`, (t) => {
    const whole = computed(false, changes, training);
    const parts = computed(true, changes, training);
    requireCutAtTrunks(t, parts, whole);
    for (const [variable, gradient] of whole.byName) t.deepEqual(parts.byName.get(variable), gradient, variable);
  });
}

type Computed = ReturnType<typeof computed>;

/** The same losses and variables, and trunks' gradients last. */
function requireCutAtTrunks(t: ExecutionContext, parts: Computed, whole: Computed): void {
  t.deepEqual(parts.losses, whole.losses);
  t.deepEqual([...parts.byName.keys()].sort(), [...whole.byName.keys()].sort());
  t.deepEqual(
    parts.segments.map((segment) => segment.name),
    ['upper', 'trunk'],
  );
  t.is(parts.upper, parts.segments[0]!.length);
  t.is(parts.gradientLength, whole.gradientLength);
  const names = [...parts.byName.keys()];
  const first = names.findIndex((variable) => variable.startsWith('trunk.'));
  t.true(names.slice(first).every((variable) => variable.startsWith('trunk.')));
}

test('a trunk that is recomputed has, in two runs, the gradients of one: TensorFlow fuses what it sees in a run', (t) => {
  const [whole, parts] = [false, true].map((overlap) => computed(overlap, {}, { recompute: true })) as [
    Computed,
    Computed,
  ];
  requireCutAtTrunks(t, parts, whole);
  let [difference, all] = [0, 0];
  for (const [variable, gradient] of whole.byName) {
    const found = parts.byName.get(variable)!;
    gradient.forEach((g, i) => {
      difference += (found[i]! - g) ** 2;
      all += g * g;
    });
  }
  t.true(difference < 1e-12 * all, `${Math.sqrt(difference / all)}`);
});

const LENGTHS = [5_003, 2_001];
const two = (ranks: number): Segment[] => {
  const common = { ranks: Array.from({ length: ranks }, (_, i) => i), topology: 'mesh' as const };
  return [
    { name: 'upper', offset: 0, length: LENGTHS[0]!, ...common },
    { name: 'trunk', offset: LENGTHS[0]!, length: LENGTHS[1]!, ...common },
  ];
};

for (const inPlace of [false, true]) {
  test(`what is begun is summed while the rest is written, and is part of the reduction (${inPlace ? 'in place' : 'over sockets'})`, async (t) => {
    await using w = await world(3, { inPlace: () => inPlace });
    await w.connect(() => two(3), { chunkElements: 100 });
    for (let step = 0; step < 3; step++) {
      const gradients = w.exchanges.map((_, rank) => gradientOf(rank + step, LENGTHS[0]! + LENGTHS[1]!));
      const answers = await Promise.all(
        w.exchanges.map(async (x, rank) => {
          await x.idle();
          await setTimeout(5 * rank); // not all at once
          x.gradient.set(gradients[rank]!.subarray(0, LENGTHS[0]!));
          x.begin(step, 0);
          await setTimeout(20);
          x.gradient.set(gradients[rank]!.subarray(LENGTHS[0]!), LENGTHS[0]!);
          if (step === 1) return null; // left out: nobody reduces it
          return await x.reduce(step, 0, never);
        }),
      );
      if (step === 1) continue;
      const parts = [0, LENGTHS[0]!].map((from, i) =>
        expectedSum(
          gradients.map((gradient) => gradient.subarray(from, from + LENGTHS[i]!)),
          'mesh',
          'f32',
        ),
      );
      for (const x of w.exchanges) t.true(sameBits(x.reduced, Float32Array.of(...parts[0]!, ...parts[1]!)));
      const total = (key: 'sentBytes' | 'receivedBytes') => answers.reduce((sum, answer) => sum + answer![key], 0);
      t.is(total('sentBytes'), total('receivedBytes'));
      if (!inPlace) t.true(total('sentBytes') > 2 * 2 * 4 * (LENGTHS[0]! + LENGTHS[1]!));
    }
  });
}

test('who has begun hears of a peer that is gone', async (t) => {
  await using w = await world(2);
  await w.connect(() => two(2));
  w.exchanges[0]!.begin(0, 0);
  await w.exchanges[1]!.close();
  const gone = { message: /rank 1 .*closed its gradient exchange/ };
  await t.throwsAsync(w.exchanges[0]!.idle(), gone);
  await t.throwsAsync(w.exchanges[0]!.reduce(0, 0, never), gone);
});

test.serial('a run of two workers has the weights that it has without, bit for bit', async (t) => {
  await using folder = temporaryFolder();
  const weights = [];
  for (const overlap of [false, true]) {
    const recipe = writeRecipe(folder, {
      name: 'overlap',
      ...patterns(folder, 96, 32),
      method: { name: 'ffl' },
      training: { epochs: 1, batch: 24 },
      cluster: { placement: 'together', replicas: 2, overlap },
    });
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, `${overlap}`)]);
    t.is(code, 0, output);
    weights.push(readTensors(join(run, 'checkpoints', 'step-00000004', 'model.safetensors')));
  }
  t.deepEqual(weights[1], weights[0]);
});

test('it is refused where it cannot be', (t) => {
  const recipe = (changes: object, training = {}) => ({
    ...TWO_BRANCHES,
    training,
    cluster: { overlap: true, ...changes },
  });
  t.throws(() => checkRecipe(recipe({ placement: 'split' })), {
    message: /cluster\.overlap: only with placement together/,
  });
  t.throws(() => checkRecipe(recipe({}, { microBatches: 2 })), {
    message: /cluster\.overlap: not with training\.microBatches/,
  });
});
