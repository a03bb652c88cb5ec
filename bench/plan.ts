/**
 * `plan`: what `braid plan` predicts beside what whole runs take, for 1, 2 and 4 workers on this machine's cores. The
 * efficiency is measured before each run, in one process, so what is compared is the model: its phases and how they scale.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { loadRecipe } from '../core/recipe.ts';
import { calibrated, readCalibrations } from '../sizing/calibration.ts';
import { deviceNamed, netNamed } from '../sizing/devices.ts';
import { type Placement, type Prediction, predict } from '../sizing/model.ts';
import { workOf } from '../sizing/work.ts';
import { braidTrain, type TrainResult } from './braid-train.ts';
import { prepareCluster } from './cluster.ts';
import { type Measurement, median, medianPhases } from './report.ts';
import type { Rounds } from './step.ts';

const BRAID = join(import.meta.dirname, '../bin/braid.mjs');
const RECIPE = join(import.meta.dirname, 'recipe.yaml');
const BATCH = 128; // recipe.yaml's
const SHAPE = { image: { height: 32, width: 32, channels: 3 }, classes: 100, sampleBytes: 3 * 32 * 32 };

const CASES: { name: string; placement: Placement; workers: number; replicas: number }[] = [
  { name: '1 together', placement: 'together', workers: 1, replicas: 1 },
  { name: '2 together', placement: 'together', workers: 2, replicas: 2 },
  { name: '4 together', placement: 'together', workers: 4, replicas: 4 },
  { name: '2 split', placement: 'split', workers: 2, replicas: 1 },
  { name: '4 split', placement: 'split', workers: 4, replicas: 2 },
];

/** What a run's journal calls the model's phases. */
const PHASES: Record<string, string[]> = {
  compute: ['compute'],
  forward: ['forward', 'gather'],
  method: ['method'],
  backward: ['backward', 'scatter'],
  reduce: ['reduce'],
  commit: ['commit'],
};

export async function benchPlan({ rounds, steps, say }: Rounds & { say(line: string): void }): Promise<Measurement[]> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-bench-'));
  try {
    prepareCluster(folder);
    const predictions = CASES.map(() => [] as Prediction[]);
    const results = CASES.map(() => [] as TrainResult[]);
    for (let round = 0; round < rounds; round++) {
      for (const [i, { name, placement, workers, replicas }] of CASES.entries()) {
        predictions[i]!.push(predicted(join(folder, 'calibration.json'), placement, workers));
        const threads = Math.max(1, Math.floor(availableParallelism() / workers));
        const set = { 'data.path': join(folder, 'cifar100'), 'cluster.placement': placement };
        const cluster = { 'cluster.replicas': replicas, 'cluster.threads': threads };
        const overrides = Object.entries({ ...set, ...cluster }).map(([path, value]) => `${path}=${value}`);
        const result = await braidTrain(
          folder,
          `${placement}-${workers}-${round}`,
          { recipe: 'recipe.yaml', batch: BATCH },
          steps,
          overrides,
        );
        results[i]!.push(result);
        const seconds = predictions[i]!.at(-1)!.seconds;
        say(
          `plan: round ${round + 1} of ${rounds}: ${name}: ${ms(seconds)} predicted, ${ms(secondsOf(result))} ms taken`,
        );
      }
    }
    return CASES.map(({ name }, i) => compare(name, predictions[i]!, results[i]!));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Calibrated anew: the machine may have become slower since. */
function predicted(file: string, placement: Placement, gpus: number): Prediction {
  const args = [BRAID, 'plan', RECIPE, '--gpu', 'cpu', '--calibrate', file];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  if (status !== 0) throw new BraidError('INTERNAL', `braid plan --calibrate ended with ${status}:\n${stderr}`);
  const device = calibrated(deviceNamed('cpu'), readCalibrations(file));
  const cores = availableParallelism();
  const fixed = { device, net: netNamed('local'), batch: BATCH, precision: 'f32', wire: 'f32', cores } as const;
  return predict(
    workOf(loadRecipe(RECIPE), SHAPE),
    { ...fixed, gpus, methodThreads: 1, microBatches: 1, overlap: false },
    placement,
  )!;
}

function compare(name: string, predictions: Prediction[], results: TrainResult[]): Measurement {
  const predicted = median(predictions.map(({ seconds }) => seconds));
  const taken = median(results.map(secondsOf));
  const measured = medianPhases(results.map(({ phases }) => phases));
  const phases = Object.entries(PHASES).flatMap(([phase, parts]) => {
    if (measured[phase] === undefined) return [];
    const of = (prediction: Prediction) => parts.reduce((sum, part) => sum + (prediction.phases[part] ?? 0), 0);
    return [
      [`${phase}, predicted ms`, 1000 * median(predictions.map(of))],
      [`${phase}, ms`, 1000 * measured[phase]],
    ];
  });
  return {
    bench: 'plan',
    case: name,
    figures: {
      'step, predicted ms': 1000 * predicted,
      'step, ms': 1000 * taken,
      'error, %': 100 * (predicted / taken - 1),
      ...Object.fromEntries(phases),
    },
    wrong: [],
  };
}

function secondsOf({ imagesPerSecond }: TrainResult): number {
  return BATCH / imagesPerSecond;
}

function ms(seconds: number): string {
  return (1000 * seconds).toFixed(1);
}
