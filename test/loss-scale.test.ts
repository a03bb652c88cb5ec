/** f16 and its loss scale: the rule, the graphs of all roles, and whole runs that overflow, resume and start again. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { firstLossScale, MAX_LOSS_SCALE, nextLossScale } from '../core/loss-scale.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram, type Role } from '../nn/program.ts';
import { fromTensors, initialWeights, type TensorMap } from '../nn/variables.ts';
import { journalSteps } from '../rig/journal.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import { play } from './faults/world.ts';
import { flatGradient, gradientsByName } from './gradients.ts';
import {
  type Folder,
  patterns,
  readTensors,
  TWO_BRANCHES,
  temporaryFolder,
  trainProcess,
  writeRecipe,
} from './training.ts';

const training = (changes: object) => smallRecipe({ training: { precision: 'f16', ...changes } }).training;

test('the scale is halved by an overflow, and doubled by so many updates without one', (t) => {
  const rule = training({ lossScale: { initial: 8, growthInterval: 3 } });
  const scales = [];
  let at = firstLossScale(rule);
  for (const overflowed of [false, true, false, false, true, false, false, false, false]) {
    at = nextLossScale(at, overflowed, rule);
    scales.push([at.lossScale, at.goodUpdates]);
  }
  t.deepEqual(scales, [
    [8, 1],
    [4, 0],
    [4, 1],
    [4, 2],
    [2, 0],
    [2, 1],
    [2, 2],
    [4, 0],
    [4, 1],
  ]);
  t.deepEqual(nextLossScale({ lossScale: MAX_LOSS_SCALE, goodUpdates: 2 }, false, rule), {
    lossScale: MAX_LOSS_SCALE,
    goodUpdates: 0,
  });
});

test('only f16 has one, whatever a checkpoint says', (t) => {
  const known = { lossScale: 512, goodUpdates: 9 };
  t.deepEqual(firstLossScale(training({}), known), known);
  t.deepEqual(firstLossScale(training({ precision: 'bf16' }), known), { lossScale: 1, goodUpdates: 0 });
});

test('a first scale that would round is refused', (t) => {
  t.throws(() => training({ lossScale: { initial: 1000 } }), {
    message: /lossScale.initial: 1000: must be a power of two/,
  });
});

// ------------------------------------------------------------------------------------------------ graphs

const image = { height: 12, width: 12, channels: 3 };
const images = Uint8Array.from({ length: 8 * 12 * 12 * 3 }, (_, i) => Math.imul(i + 1, 2654435761) >>> 24);
const labels = Int32Array.from({ length: 8 }, (_, i) => i % 5);

function recipeOf(precision: 'f32' | 'f16', cluster: object = {}): Recipe {
  return checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: 8, precision },
    evaluation: { batch: 8 },
    cluster,
  });
}

function open(recipe: Recipe, role: Role = { kind: 'replica' }) {
  const { graph, program } = buildProgram({ recipe, role, image, classes: 5, shardSizes: [8] });
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  return { session, program };
}

const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
const cosine = (a: Float32Array, b: Float32Array) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
const feeds = { images, labels, distillWeight: 0.5, shardWeight: 1 };

test('the gradient of f16 is that of f32, at any scale, until it overflows', (t) => {
  const f32 = open(recipeOf('f32'));
  const exact = f32.session.run('compute@8', feeds);
  const f16 = open(recipeOf('f16'));
  const at = (lossScale: number) => f16.session.run('compute@8', { ...feeds, lossScale });
  for (const lossScale of [1, 256, 4096]) {
    const { gradient, losses } = at(lossScale);
    t.true(cosine(gradient!, exact['gradient']!) > 0.99, `scale ${lossScale}`);
    t.true(Math.abs(losses![0]! / exact['losses']![0]! - 1) < 0.01); // not multiplied
  }
  const { gradient, losses } = at(2 ** 24);
  t.false(gradient!.every(Number.isFinite));
  t.true(losses!.every(Number.isFinite));
  for (const { session } of [f32, f16]) session.close();
});

for (const featureWire of ['f32', 'bf16'] as const) {
  test(`its parts in split are the whole, cotangents at scale, features in ${featureWire}`, (t) => {
    const recipe = recipeOf('f16', { featureWire });
    const replica = open(recipe);
    const whole = replica.session.run('compute@8', { ...feeds, lossScale: 1024 });
    const method = open(recipe, { kind: 'method' });
    const branches = [0, 1].map((branch) => open(recipe, { kind: 'branch', branch }));
    const outputs = branches.map(({ session }) => session.run('forward@8', { images })['outputs']!);
    const fuse = (lossScale: number) =>
      method.session.run('fuse@8', {
        ...{ 'outputs.0': outputs[0]!, 'outputs.1': outputs[1]! },
        ...{ labels, distillWeight: 0.5, shardWeight: 1, lossScale },
      });
    const fused = fuse(1024);
    const unscaled = fuse(1)['cotangents.0']!.subarray(0, 40); // of the logits, in f32
    t.deepEqual(
      fused['cotangents.0']!.subarray(0, 40)
        .map((x) => x / 1024)
        .every((x, i) => Math.abs(x - unscaled[i]!) < 1e-6),
      true,
    );
    const gradients = branches.map(
      ({ session }, k) =>
        session.run('backward@8', { cotangents: fused[`cotangents.${k}`]!, shardWeight: 1, lossScale: 1024 })[
          'gradient'
        ]!,
    );
    const byName = new Map<string, Float32Array>();
    [...branches, method].forEach(({ program }, part) => {
      const gradient = part < 2 ? gradients[part]! : fused['gradient']!;
      for (const [name, own] of gradientsByName(program, gradient)) {
        const known = byName.get(name);
        byName.set(name, known === undefined ? own : own.map((x, i) => x + known[i]!));
      }
    });
    const sum = flatGradient(replica.program, byName);
    t.true(cosine(sum, whole['gradient']!) > 0.999, `${cosine(sum, whole['gradient']!)}`);
    t.true(Math.abs(Math.sqrt(dot(sum, sum) / dot(whole['gradient']!, whole['gradient']!)) - 1) < 0.02);
    for (const { session } of [replica, method, ...branches]) session.close();
  });
}

// ------------------------------------------------------------------------------------------------ runs

for (const placement of ['together', 'split'] as const) {
  test.serial(`${placement}: an overflow leaves its update out, halves the scale, and is no error`, async (t) => {
    const recipe = smallRecipe({
      training: { precision: 'f16', lossScale: { initial: 4, growthInterval: 3 } },
      cluster: { placement },
    });
    const fault = { rank: 0, rpc: 'reduce', step: 2, what: 'not a number' } as const;
    const { running, events, folder, workers } = startCluster({ recipe, fault });
    t.is((await running).steps, 6);
    const scales = events.flatMap((event) => (event.kind === 'step' ? [event.progress.lossScale] : []));
    t.deepEqual(scales, [4, 4, 4, 2, 2, 2]);
    t.false(events.some(({ kind }) => kind === 'skipped' || kind === 'disturbed'));
    const manifest = JSON.parse(readFileSync(join(folder, 'checkpoints/step-00000006/manifest.json'), 'utf8'));
    t.deepEqual(manifest.lossScale, { lossScale: 4, goodUpdates: 0 }); // three good ones
    for (const { position } of workers) t.deepEqual(position, { step: 6, round: 0, lossScale: 4, goodUpdates: 0 });
  });
}

test.serial('what is not finite at a scale of 1 falls under training.nonFinite', async (t) => {
  const changes = { precision: 'f16', lossScale: { initial: 1 } };
  const fault = { rank: 0, rpc: 'reduce', step: 2, what: 'not a number' } as const;
  const stopped = startCluster({ recipe: smallRecipe({ training: changes }), fault });
  await t.throwsAsync(stopped.running, {
    code: 'NON_FINITE',
    message: /gradient norm is NaN, by the gradient of rank 0/,
  });
  const skipping = startCluster({ recipe: smallRecipe({ training: { ...changes, nonFinite: 'skip' } }), fault });
  await skipping.running;
  t.true(skipping.events.some((event) => event.kind === 'skipped' && event.step === 2));
});

/** From a first scale that overflows. */
const HIGH = { precision: 'f16', lossScale: { initial: 2 ** 24, growthInterval: 2 } };

test.serial('a coordinator that is killed goes on with the scale that its workers hold', async (t) => {
  const row = { what: 'SIGKILL', who: 'coordinator', moment: 'reduce', step: 5 } as const;
  await using folder = temporaryFolder();
  await using other = temporaryFolder();
  const calm = await play(folder, 'together', null, HIGH);
  const killed = await play(other, 'together', row, HIGH);
  t.is(killed.code, 0, killed.output);
  t.regex(killed.output, /going on from what the workers hold: step 5/);
  t.deepEqual(killed.tensors, calm.tensors);
});

function recipeIn(folder: Folder, training: object, cluster: object): string {
  return writeRecipe(folder, {
    name: 'half',
    ...patterns(folder, 250, 40),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 2, maxSteps: 6, batch: 64, learningRate: 0.02, ...training },
    evaluation: { batch: 40, everyEpochs: 2 },
    cluster: { threads: 1, ...cluster },
    metrics: { logEverySteps: 1 },
  });
}

const files = ['model', 'optimizer'] as const;
const stateOf = (run: string) =>
  files.map((file) => readTensors(join(run, `checkpoints/step-00000006/${file}.safetensors`)));
const scalesOf = (run: string) => journalSteps(run).map(({ lossScale }) => lossScale);

/** Relative L2 of the weights that differ most. */
function distance([a]: TensorMap[], [b]: TensorMap[]): number {
  const of = ([name, { data }]: [string, TensorMap extends Map<string, infer V> ? V : never]) => {
    const other = b!.get(name)!.data;
    return Math.hypot(...data.map((x, i) => x - other[i]!)) / (Math.hypot(...data) + 0.1);
  };
  return Math.max(...[...a!].map(of));
}

const CLUSTERS = {
  together: [{}, { replicas: 2 }],
  'together, in pieces and with recomputation': [{ microBatches: 2, recompute: true }, {}],
  split: [{ microBatches: 2 }, { placement: 'split', featureWire: 'bf16' }],
} as const;

for (const [name, [changes, cluster]] of Object.entries(CLUSTERS)) {
  test.serial(`${name}: f16 from a scale that overflows is resumed bit for bit`, async (t) => {
    await using folder = temporaryFolder();
    const recipe = recipeIn(folder, { ...HIGH, ...changes }, cluster);
    const train = async (runs: string, ...more: string[]) => {
      const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, runs), ...more]);
      t.is(code, 0, output);
      return run;
    };
    const whole = await train('whole');
    const scales = scalesOf(whole);
    t.is(scales[0], 2 ** 24);
    t.true(scales.at(-1)! < 2 ** 24);
    await train('halves', '--set', 'training.maxSteps=3');
    const halves = await train('halves', '--resume');
    t.deepEqual(scalesOf(halves), scales);
    t.deepEqual(stateOf(halves), stateOf(whole));
  });
}

test.serial('f16 trains as f32 does, in both placements', async (t) => {
  await using folder = temporaryFolder();
  const trained = async (name: string, training: object, cluster: object) => {
    const recipe = recipeIn(folder, training, cluster);
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, name)]);
    t.is(code, 0, output);
    return run;
  };
  const half = { precision: 'f16', lossScale: { initial: 1024 } };
  const f32 = await trained('f32', {}, {});
  const f16 = await trained('f16', half, {});
  t.deepEqual(scalesOf(f16), Array(6).fill(1024));
  const apart = distance(stateOf(f16), stateOf(f32));
  t.true(apart > 0 && apart < 0.05, `${apart}`);
  const split = await trained('split', half, { placement: 'split' });
  const aside = distance(stateOf(split), stateOf(f16));
  t.true(aside < 0.05, `${aside}`);
});
