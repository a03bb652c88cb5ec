/**
 * Reference numbers: every *.safetensors in the folder BRAID_REFERENCE (default: test/fixtures/reference) is replayed in
 * one process, and by `braid train` with real workers in both placements. A file holds a small network, its batches, and
 * what a float64 implementation makes of them; its metadata say which network and method.
 *
 * Tolerances: losses 1e-4 relative or 1e-6 absolute; gradients and weights 1e-4 of each tensor's norm (+ 1e-6).
 *
 * A ReLU whose input is zero to within rounding goes either way, and takes gradients with it by far more than the
 * tolerance: with 300,000 of them a step, and f32 features that are right to 1e-6, some always do (PyTorch's channels-last
 * kernels round just as these do). The stored weights are rounded themselves. So replays start from weights moved by no
 * more than that rounding, until one agrees in everything: a wrong implementation never does. What agrees in one process
 * is then what the cluster must reproduce.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { Random } from '../core/random.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram } from '../nn/program.ts';
import { decodeSafetensors, encodeSafetensors, type Tensors } from '../nn/safetensors.ts';
import { readScores } from '../nn/scores.ts';
import { weightDecayOf } from '../nn/state.ts';
import { fromTensors, type TensorMap, toTensors } from '../nn/variables.ts';
import { cifarRows, readTensors, temporaryFolder, trainProcess, writeRecipe } from './training.ts';

const FOLDER = process.env['BRAID_REFERENCE'] ?? new URL('./fixtures/reference', import.meta.url).pathname;
const TOLERANCE = 1e-4;
const ATTEMPTS = 100; // in one process
const STARTS = 3; // for the cluster, which sums in another order: seconds each
const ROUNDING = 2 ** -24; // of float32, relative

/** What a replay yields, in the file's own names and layouts. */
interface Replay {
  /** By step. */
  losses: Record<string, number>[];
  gradient: TensorMap;
  weights: TensorMap;
  /** Mean cross-entropy of each classifier on batch 0, with the final weights. */
  evaluation: Record<string, number>;
}

interface Case {
  name: string;
  tensors: Tensors;
  steps: number;
  batch: number;
  classes: number;
  raw: Record<string, unknown>;
  recipe: Recipe;
}

const files = readdirSync(FOLDER)
  .filter((file) => file.endsWith('.safetensors'))
  .sort();

test('there are reference files', (t) => {
  t.true(files.length > 0, FOLDER);
});

for (const file of files) {
  test(`${file} in one process`, (t) => {
    const { starts, closest } = agreeingStarts(caseOf(file), 1);
    t.is(starts.length, 1, closest.join('\n'));
  });
  for (const placement of ['together', 'split'] as const) {
    test.serial(`${file} by real processes, ${placement}`, async (t) => {
      const c = caseOf(file);
      let found = ['no start agrees in one process'];
      for (const start of agreeingStarts(c, STARTS).starts) {
        found = disagreements(c, await byProcesses(c, start, placement));
        if (found.length === 0) break;
      }
      t.deepEqual(found, []);
    });
  }
}

/** Starts from which the replay in one process agrees, at most `wanted`; and the fewest disagreements of any other. */
function agreeingStarts(c: Case, wanted: number): { starts: TensorMap[]; closest: string[] } {
  const replay = inOneProcess(c);
  const starts: TensorMap[] = [];
  let closest: string[] | undefined;
  for (let attempt = 0; attempt < ATTEMPTS && starts.length < wanted; attempt++) {
    const start = startOf(c, attempt);
    const found = disagreements(c, replay.from(start));
    if (found.length === 0) starts.push(start);
    else if (closest === undefined || found.length < closest.length) closest = found;
  }
  replay.close();
  return { starts, closest: closest ?? [] };
}

function caseOf(file: string): Case {
  const path = join(FOLDER, file);
  const { tensors, metadata } = decodeSafetensors(readFileSync(path), path);
  const { method, w, lr, blocks, width, branches } = metadata as Record<string, string>;
  const [steps, batch] = tensors.get('labels')!.shape as [number, number];
  const classes = Number(metadata['classes']);
  const distilled = { teacherEpsilon: 0, rampUp: { kind: 'constant', value: Number(w) } };
  const raw = {
    name: 'golden',
    data: {
      format: classes > 10 ? 'cifar100' : 'cifar10',
      path: 'data',
      classes,
      shuffle: false,
      mean: [129.3, 124.1, 112.4],
      std: [68.2, 65.4, 70.4],
      augment: { pad: 0, flip: false },
    },
    branches: [{ network: 'resnet', depth: 6 * Number(blocks) + 2, width: Number(width), count: Number(branches) }],
    trunk: metadata['shared_trunk'] === 'True' ? 'shared' : 'none',
    method: { name: method, ...(['ffl', 'one', 'dml'].includes(method!) && distilled) },
    training: { epochs: 1, batch, learningRate: Number(lr) },
    evaluation: { batch },
    checkpoint: { everySteps: 1, keep: steps + 1 },
    metrics: { logEverySteps: 1 },
  };
  return { name: file, tensors, steps, batch, classes, raw, recipe: checkRecipe(raw, file) };
}

/** The weights before step 0: as stored, and from the second attempt on within their rounding. */
function startOf({ tensors }: Case, attempt: number): TensorMap {
  const random = new Random(attempt);
  const weights: TensorMap = new Map();
  for (const [name, { shape, data }] of tensors) {
    if (!name.startsWith('before.')) continue;
    const moved = Float32Array.from(data, (x) => (attempt === 0 ? x : x * (1 + ROUNDING * (2 * random.next() - 1))));
    weights.set(name.slice('before.'.length), { shape, data: moved });
  }
  return weights;
}

function inOneProcess(c: Case): { from(weights: TensorMap): Replay; close(): void } {
  const { graph, program } = buildProgram({
    recipe: c.recipe,
    role: { kind: 'replica' },
    image: { height: 32, width: 32, channels: 3 },
    classes: c.classes,
    shardSizes: [c.batch],
  });
  const session = new Session(graph);
  const { rampUp } = c.recipe.method as { rampUp?: { value?: number } };
  const { learningRate } = c.recipe.training;
  const state = () => toTensors(program.variables, session.run('read', {})['state']!);

  const from = (weights: TensorMap): Replay => {
    session.run('write', { state: fromTensors(program.variables, weights) });
    const losses: Replay['losses'] = [];
    let gradient: TensorMap = new Map();
    for (let step = 0; step < c.steps; step++) {
      const feeds = { ...batchOf(c, step), distillWeight: rampUp?.value ?? 1, shardWeight: 1 };
      const run = session.run(`compute@${c.batch}`, feeds);
      losses.push(Object.fromEntries(program.rounds[0]!.losses.map((name, i) => [name, run['losses']![i]!])));
      session.run('apply', { gradient: run['gradient']!, learningRate });
      if (step === 0) gradient = gradientOf(weights, state().momenta, c.recipe);
    }
    const scores = readScores(program.classifiers, session.run('evaluate', batchOf(c, 0))['scores']!, c.batch);
    const evaluation = Object.fromEntries(program.classifiers.map((name, i) => [name, scores[i]!.lossSum / c.batch]));
    return { losses, gradient, weights: state().weights, evaluation };
  };
  return { from, close: () => session.close() };
}

async function byProcesses(c: Case, weights: TensorMap, placement: 'together' | 'split'): Promise<Replay> {
  await using folder = temporaryFolder();
  const hundred = c.classes > 10;
  const rows = (steps: number[]) => Buffer.concat(steps.map((step) => cifarRows(batchOf(c, step), hundred)));
  const all = Array.from({ length: c.steps }, (_, step) => step);
  folder.write(hundred ? 'data/train.bin' : 'data/data_batch_1.bin', rows(all));
  folder.write(hundred ? 'data/test.bin' : 'data/test_batch.bin', rows([0]));
  const initialWeights = folder.write('before.safetensors', encodeSafetensors(weights));
  const { data, training } = c.raw as { data: object; training: object };
  const recipe = writeRecipe(folder, {
    ...c.raw,
    data: { ...data, path: join(folder.path, 'data') },
    training: { ...training, initialWeights },
    cluster: { placement, threads: availableParallelism() }, // as in this process: threads change the rounding
  });
  const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, 'runs')]);
  if (code !== 0) throw new Error(output);
  const momenta = readTensors(join(run, 'checkpoints/step-00000001/optimizer.safetensors'));
  const last = join(run, `checkpoints/step-${String(c.steps).padStart(8, '0')}/model.safetensors`);
  const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const { results } = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
  return {
    losses: lines.filter(({ kind }) => kind === 'step').map((line) => line.losses),
    gradient: gradientOf(weights, momenta, c.recipe),
    weights: readTensors(last),
    evaluation: Object.fromEntries(results.map((r: { classifier: string; loss: number }) => [r.classifier, r.loss])),
  };
}

/** After one step the momentum is the gradient and its weight decay. */
function gradientOf(before: TensorMap, momenta: TensorMap, { training }: Recipe): TensorMap {
  const gradient: TensorMap = new Map();
  for (const [raw, { shape, data }] of momenta) {
    const name = raw.replace(/^momentum\./, '');
    const decay = weightDecayOf({ name, kind: 'conv' }, training);
    const weights = before.get(name)!.data;
    gradient.set(name, { shape, data: data.map((v, i) => v - decay * weights[i]!) });
  }
  return gradient;
}

function batchOf({ tensors, steps, batch }: Case, step: number): { images: Uint8Array; labels: Int32Array } {
  const images = tensors.get('images')!.data as Uint8Array;
  const size = images.length / steps;
  const labels = tensors.get('labels')!.data as Int32Array;
  return {
    images: images.slice(step * size, (step + 1) * size),
    labels: labels.slice(step * batch, (step + 1) * batch),
  };
}

function disagreements({ tensors, steps, batch, classes }: Case, replay: Replay): string[] {
  const found: string[] = [];
  const compareTensors = (prefix: string, ours: TensorMap) => {
    for (const [key, reference] of tensors) {
      if (!key.startsWith(prefix)) continue;
      const mine = ours.get(key.slice(prefix.length));
      if (mine === undefined) {
        found.push(`${key} is missing`);
        continue;
      }
      const norm = Math.hypot(...reference.data);
      const difference = Math.hypot(...mine.data.map((x, i) => x - reference.data[i]!));
      if (!(difference <= TOLERANCE * norm + 1e-6)) found.push(`${key} differs by ${difference / norm} of its norm`);
    }
  };
  for (let step = 0; step < steps; step++) {
    const prefix = `step${step}.loss.`;
    for (const [key, { data }] of tensors) {
      if (!key.startsWith(prefix)) continue;
      const mine = replay.losses[step]?.[key.slice(prefix.length)] ?? Number.NaN;
      const expected = data[0]!;
      if (!(Math.abs(mine - expected) <= Math.max(TOLERANCE * Math.abs(expected), 1e-6)))
        found.push(`${key} is ${mine}, not ${expected}`);
    }
  }
  compareTensors('step0.grad.', replay.gradient);
  compareTensors('after.', replay.weights);
  const { labels } = batchOf({ tensors, steps, batch } as Case, 0);
  for (const [key, { data }] of tensors) {
    const match = /^eval\.(logits\.(\d+)|fused|ensemble|gated)$/.exec(key);
    if (match === null) continue;
    const classifier = match[2] === undefined ? match[1]! : `branch.${match[2]}`;
    const expected = meanCrossEntropy(data as Float32Array, labels, classes);
    const mine = replay.evaluation[classifier] ?? Number.NaN;
    if (!(Math.abs(mine - expected) <= TOLERANCE * Math.abs(expected)))
      found.push(`${key}: cross-entropy ${mine}, not ${expected}`);
  }
  return found;
}

function meanCrossEntropy(logits: Float32Array, labels: Int32Array, classes: number): number {
  let sum = 0;
  labels.forEach((label, i) => {
    const row = logits.subarray(i * classes, (i + 1) * classes);
    sum += Math.log(row.reduce((total, z) => total + Math.exp(z), 0)) - row[label]!;
  });
  return sum / labels.length;
}
