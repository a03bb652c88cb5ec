/** Recomputation of stages (training.recompute): the same gradients and statistics, with less kept for backward. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { type Feed, Session } from '../nn/graph/session.ts';
import { memoryOf } from '../nn/memory.ts';
import { buildProgram, type Role } from '../nn/program.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import { TWO_BRANCHES } from './training.ts';

const image = { height: 16, width: 16, channels: 3 };
const n = 6;
const classes = 5;

function recipeOf(recompute: boolean | string[], change: object = {}, training: object = {}): Recipe {
  return checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: n, recompute, ...training },
    evaluation: { batch: 4 },
    ...change,
  });
}

const fed = {
  images: Uint8Array.from({ length: n * 16 * 16 * 3 }, (_, i) => Math.abs(Math.imul(i, 2654435761)) >>> 24),
  labels: Int32Array.from({ length: n }, (_, i) => i % classes),
};

function open(recipe: Recipe, role: Role) {
  const { graph, program } = buildProgram({ recipe, role, image, classes, shardSizes: [n] });
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  return { session, program };
}

function gradientOf(recipe: Recipe, role: Role): Float32Array {
  const { session, program } = open(recipe, role);
  const run = (phase: string, feeds: Record<string, Feed>) => session.run(phase, { ...feeds, shardWeight: 1 });
  let gradient: Float32Array;
  if (role.kind === 'branch') {
    run(`forward@${n}`, fed);
    const length = program.outputLengths[`train@${n}`]!;
    gradient = run(`backward@${n}`, { cotangents: new Float32Array(length).map((_, i) => Math.sin(i)) })['gradient']!;
  } else gradient = run(`compute@${n}`, { ...fed, distillWeight: 0.5 })['gradient']!;
  session.close();
  return gradient;
}

const BF16_ROUNDING = 2 ** -9; // TensorFlow does not fuse both alike

const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));

const cases: Record<string, [change: object, training: object, stages: boolean | string[]]> = {
  'all stages': [{}, {}, true],
  'one of the trunk, one of the branches': [{}, {}, ['layer1', 'layer3']],
  bf16: [{}, { precision: 'bf16' }, true],
  'no shared trunk': [{ trunk: 'none' }, {}, true],
  'different networks': [
    {
      branches: [
        { network: 'mobilenetv2', multiplier: 0.1 },
        { network: 'densenet', depth: 10, growth: 4 },
      ],
      trunk: 'none',
      method: { name: 'dml' },
    },
    {},
    true,
  ],
};

for (const [name, [change, training, stages]] of Object.entries(cases)) {
  test(`${name}: gradients and statistics are those of what is kept, in one run and in two`, (t) => {
    for (const role of [{ kind: 'replica' }, { kind: 'branch', branch: 1 }] as const) {
      const kept = gradientOf(recipeOf(false, change, training), role);
      const anew = gradientOf(recipeOf(stages, change, training), role);
      const difference = norm(anew.map((x, i) => x - kept[i]!)) / norm(kept);
      t.true(difference < (name === 'bf16' ? BF16_ROUNDING : 1e-6), `${role.kind} ${difference}`);
    }
  });
}

test('much less is kept: in two runs between them, in one run at its peak', (t) => {
  const of = (recompute: boolean | string[], role: Role) =>
    memoryOf(
      {
        recipe: recipeOf(recompute, { branches: [{ network: 'resnet', depth: 32, count: 2 }] }),
        role,
        image: { ...image, height: 32, width: 32 },
        classes,
      },
      64,
    );
  const [kept, anew] = [false, true].map((recompute) => of(recompute, { kind: 'branch', branch: 0 }));
  t.true(anew!.stash < 0.1 * kept!.stash, `${anew!.stash} of ${kept!.stash}`);
  const [whole, less] = [false, true].map((recompute) => of(recompute, { kind: 'replica' }));
  t.true(less!.activations < 0.6 * whole!.activations, `${less!.activations} of ${whole!.activations}`);
  t.is(less!.weights, whole!.weights);
});

test('a process that recomputes really has less', async (t) => {
  const peak = async (recompute: boolean) => {
    const script = join(import.meta.dirname, 'peak-memory.ts');
    const { stdout } = await promisify(execFile)(process.execPath, [script, String(recompute)]);
    return Number(stdout);
  };
  const [kept, anew] = [await peak(false), await peak(true)];
  t.true(anew < kept - 100e6, `${anew} of ${kept} bytes`);
});

test('a stage that no network has is refused with those that there are', (t) => {
  t.throws(() => recipeOf(['layer9']), { message: /training\.recompute: there is no stage layer9: stem, layer1/ });
});
