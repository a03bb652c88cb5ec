/**
 * `imagenet`: FFL ResNet-34 at 224 pixels. The step beside PyTorch's (step.ts), and two workers that decode photographs, crop
 * them and train, against one process with all the cores that is fed from memory.
 */
import { mkdirSync, symlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { braidTrain } from './braid-train.ts';
import { alternate, medianOf, take, together } from './cluster.ts';
import { braidStep } from './contenders.ts';
import { jpegsIn } from './input.ts';
import { type Comparison, medianPhases } from './report.ts';
import { MEMORY, type Rounds } from './step.ts';
import { withSteppers } from './stepper.ts';

const RECIPE = { recipe: 'imagenet.yaml', batch: 32 };
const CLASSES = 8;
const AN_EPOCH = 10 * RECIPE.batch; // full batches
const TEST_IMAGES = CLASSES;
const AT_LEAST = 0.9;

export interface ImageNet extends Rounds {
  /** A folder with JPEG files, at any depth. */
  data: string;
  /** For the data set and the runs. */
  folder: string;
  /** Most memory of PyTorch's one process with the whole batch. */
  peerMebibytes: number;
  say(line: string): void;
}

/** Two replicas of one thread each, on half of every batch. */
export async function benchImageNetTogether(options: ImageNet): Promise<Comparison[]> {
  const { data, folder, peerMebibytes, rounds, steps, say } = options;
  linkAsDataset(data, folder);
  const paths = { path: join(folder, 'train'), testPath: join(folder, 'test') };
  const overrides = [
    ...Object.entries(paths).map(([name, path]) => `data.${name}=${path}`),
    ...['cluster.inputThreads=1', ...together({ replicas: 2, threads: 1 })],
  ];
  say('imagenet together: warming up');
  return await withSteppers([() => braidStep({ network: 'imagenet', threads: 2 })], async (one) => {
    let peakBytes = 0;
    const results = await alternate(
      { rounds, say },
      {
        'two workers': async (round) => {
          const result = await braidTrain(folder, `together-${round}`, RECIPE, steps, overrides);
          peakBytes = Math.max(peakBytes, result.peakBytes);
          return result;
        },
        'one process': () => take(one!, steps, RECIPE.batch),
      },
    );
    const [workers, alone] = [results['two workers']!, results['one process']!];
    const throughput: Comparison = {
      ...{ bench: 'imagenet', case: 'together / one process', unit: 'images/s', bar: { atLeast: AT_LEAST } },
      ...{ braid: medianOf(workers), peer: medianOf(alone) },
      note: 'braid: two workers of one thread, from JPEG files; peer: one process of two threads, fed from memory',
      phases: medianPhases(workers.map(({ phases }) => phases)),
    };
    const memory: Comparison = {
      ...{ bench: 'imagenet', case: 'together, memory', unit: 'MiB', bar: MEMORY },
      ...{ braid: peakBytes / 2 ** 20, peer: peerMebibytes, phases: {} },
      note: "braid: the largest of its processes, evaluation and checkpoint included; peer: PyTorch's one process in f32",
    };
    return [throughput, memory];
  });
}

/** The photographs as a data set of class folders, each as often as it takes to fill an epoch. */
function linkAsDataset(data: string, folder: string): void {
  const files = jpegsIn(data).map((file) => resolve(file));
  for (const [part, images] of [
    ['train', AN_EPOCH],
    ['test', TEST_IMAGES],
  ] as const) {
    for (let i = 0; i < images; i++) {
      const target = join(folder, part, `class-${i % CLASSES}`);
      mkdirSync(target, { recursive: true });
      symlinkSync(files[i % files.length]!, join(target, `${i}.jpg`));
    }
  }
}
