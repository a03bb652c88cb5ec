/** Gradient accumulation (training.microBatches): the pieces of a shard add up to what it is, in one process and in clusters. */
import { join } from 'node:path';
import test from 'ava';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { microSizes } from '../core/sampler.ts';
import { Session } from '../nn/graph/session.ts';
import { memoryOf } from '../nn/memory.ts';
import { buildProgram, type Role } from '../nn/program.ts';
import { fromTensors, initialWeights, type TensorMap } from '../nn/variables.ts';
import { gradientsByName } from './gradients.ts';
import {
  type Folder,
  patterns,
  readTensors,
  TWO_BRANCHES,
  temporaryFolder,
  trainProcess,
  writeRecipe,
} from './training.ts';

const image = { height: 12, width: 12, channels: 3 };
const pixels = 12 * 12 * 3;

function recipeOf(microBatches: number): Recipe {
  return checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: 8, microBatches },
    evaluation: { batch: 4 },
  });
}

function open(microBatches: number, samples: number, role: Role = { kind: 'replica' }) {
  const options = { recipe: recipeOf(microBatches), role, image, classes: 5, shardSizes: [samples] };
  const { graph, program } = buildProgram(options);
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  return { session, program };
}

const images = (samples: number, seed: number) =>
  Uint8Array.from({ length: samples * pixels }, (_, i) => Math.abs(Math.imul(i + seed, 2654435761)) >>> 24);
const labels = (samples: number, seed: number) => Int32Array.from({ length: samples }, (_, i) => (i + seed) % 5);

test('a shard is cut into pieces that differ by at most one sample, and none is empty', (t) => {
  t.deepEqual(microSizes(10, 4), [3, 3, 2, 2]);
  t.deepEqual(microSizes(3, 8), [1, 1, 1]);
  t.deepEqual(microSizes(64, 1), [64]);
});

test("pieces with one and the same statistics have the whole batch's gradient", (t) => {
  const [a, y] = [images(4, 1), labels(4, 1)];
  const whole = open(1, 8);
  const feeds = { images: Uint8Array.of(...a, ...a), labels: Int32Array.of(...y, ...y), distillWeight: 0.5 };
  const { gradient } = whole.session.run('compute@8', { ...feeds, shardWeight: 1 });

  const pieces = open(2, 8);
  const run = () => {
    pieces.session.run('clear', {});
    for (let i = 0; i < 2; i++)
      pieces.session.run('compute@4', { images: a, labels: y, distillWeight: 0.5, shardWeight: 0.5 });
    return pieces.session.run('gradient', {})['gradient']!;
  };
  const first = run();
  t.deepEqual(run(), first); // nothing is left of a step before
  const kinds = new Map(whole.program.variables.map(({ name, kind }) => [name, kind]));
  const all = gradientsByName(whole.program, gradient!);
  for (const [name, found] of gradientsByName(pieces.program, first)) {
    const [kind, wanted] = [kinds.get(name), all.get(name)!];
    if (kind === 'running_var') continue; // unbiased: n / (n - 1) of other numbers of samples
    const difference = Math.hypot(...found.map((x, i) => x - wanted[i]!));
    t.true(difference < 1e-4 * Math.hypot(...wanted) + 1e-5, `${name} ${difference}`);
  }
  for (const { session } of [whole, pieces]) session.close();
});

test('different pieces add up: two of them are two replicas', (t) => {
  const parts = [0, 1].map((i) => ({
    images: images(4, 9 * i),
    labels: labels(4, i),
    distillWeight: 0.5,
    shardWeight: 0.5,
  }));
  const replica = open(1, 4);
  const [one, other] = parts.map((feeds) => replica.session.run('compute@4', feeds)['gradient']!);
  const pieces = open(2, 8);
  pieces.session.run('clear', {});
  for (const feeds of parts) pieces.session.run('compute@4', feeds);
  t.deepEqual(
    pieces.session.run('gradient', {})['gradient'],
    one!.map((x, i) => x + other![i]!),
  );
  for (const { session } of [replica, pieces]) session.close();
});

test('a branch may be forward with a second piece before the first is backward', (t) => {
  const role: Role = { kind: 'branch', branch: 0 };
  const parts = [0, 1].map((i) => ({ images: images(4, 9 * i) }));
  const branch = open(2, 8, role);
  const length = branch.program.outputLengths['train@4']!;
  const cotangents = [1, 2].map((scale) => new Float32Array(length).map((_, i) => scale * Math.sin(i)));
  const run = (order: ('forward' | 'backward')[], pieces: number[]) => {
    branch.session.run('clear', {});
    order.forEach((phase, i) => {
      const piece = pieces[i]!;
      const name = piece === 0 ? `${phase}@4` : `${phase}@4+1`;
      branch.session.run(
        name,
        phase === 'forward' ? parts[piece]! : { cotangents: cotangents[piece]!, shardWeight: 0.5 },
      );
    });
    return branch.session.run('gradient', {})['gradient'];
  };
  t.deepEqual(
    run(['forward', 'forward', 'backward', 'backward'], [0, 1, 0, 1]),
    run(['forward', 'backward', 'forward', 'backward'], [0, 0, 1, 1]),
  );
  branch.session.close();
});

test('four pieces take a quarter of the activations', (t) => {
  const of = (microBatches: number, role: Role) =>
    memoryOf({ recipe: recipeOf(microBatches), role, image: { ...image, height: 64, width: 64 }, classes: 5 }, 64);
  const [whole, quarter] = [1, 4].map((m) => of(m, { kind: 'replica' }));
  t.true(quarter!.activations < 0.27 * whole!.activations);
  const [branch, piece] = [1, 4].map((m) => of(m, { kind: 'branch', branch: 0 }));
  t.true(piece!.stash < 0.27 * branch!.stash);
});

function recipeIn(folder: Folder, training: object, cluster: object): string {
  return writeRecipe(folder, {
    name: 'pieces',
    ...patterns(folder, 250, 40),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 1, batch: 64, learningRate: 0.02, ...training },
    evaluation: { batch: 40 },
    cluster: { threads: 1, ...cluster },
  });
}

test.serial('two pieces of one replica train as two replicas do, bit for bit; split as together', async (t) => {
  await using folder = temporaryFolder();
  const trained = async (name: string, training: object, cluster: object): Promise<TensorMap> => {
    const recipe = recipeIn(folder, training, cluster);
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, name)]);
    t.is(code, 0, output);
    return readTensors(join(run, 'checkpoints/step-00000004/model.safetensors')); // the last batch has 58 samples
  };
  const pieces = await trained('pieces', { microBatches: 2 }, { replicas: 1 });
  t.deepEqual(pieces, await trained('replicas', {}, { replicas: 2 }));
  const split = await trained('split', { microBatches: 2 }, { replicas: 1, placement: 'split' });
  for (const [name, { data }] of pieces) {
    const other = split.get(name)!.data;
    const difference = Math.hypot(...data.map((x, i) => x - other[i]!));
    t.true(difference <= 1e-2 * Math.hypot(...data) + 1e-3, `${name}: ${difference}`);
  }
});
