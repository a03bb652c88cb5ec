/** What a run will do, known before anything is started: its data, its steps, its shards, its network. */
import { BraidError } from '../core/errors.ts';
import type { LossScale } from '../core/loss-scale.ts';
import { branchesOf, evaluationBatchOf, type Recipe, workersOf } from '../core/recipe.ts';
import { batchOf, distinctShardSizes, shardSizes, stepsPerEpoch } from '../core/sampler.ts';
import { distillWeightAt, learningRateAt, roundsAt, totalSteps } from '../core/schedule.ts';
import type { Dataset, ImageShape, openDataset } from '../input/dataset.ts';
import type { Position } from '../proto/messages.ts';

export interface Plan {
  recipe: Recipe;
  train: Dataset;
  test: Dataset;
  image: ImageShape;
  classes: number;
  branches: number;
  replicas: number;
  workers: number;
  steps: number;
  stepsPerEpoch: number;
  /** Every distinct number of samples that a training shard has. */
  shardSizes: number[];
  /** Batches of evaluation.batch samples that the test set is cut into. */
  testBatches: number;
}

/** One step, as the schedule has it. */
export interface Step {
  /** From 0. */
  step: number;
  epoch: number;
  learningRate: number;
  distillWeight: number;
  /** Samples of the global batch. */
  samples: number;
  /** By replica: its samples over the global batch's, adding up to 1. */
  shardWeights: number[];
  /** The updates it is made of, by their place in core/schedule.ts's roundNames. */
  rounds: number[];
}

/** One update of a step. */
export interface Update extends Step {
  round: number;
  /** Whether it is the step's last. */
  last: boolean;
  /** What its losses are multiplied by before they are differentiated. */
  lossScale: number;
}

/** What becomes of an update, wherever it is committed. */
export interface Decision extends Update {
  /** Its gradient is not finite, and training goes on without it. */
  skip: boolean;
  /** Where the loss scale stands after it. */
  next: LossScale;
}

/** Where training is once it has been committed. */
export function positionAfter({ step, round, last, next }: Decision): Position {
  return last ? { step: step + 1, round: 0, ...next } : { step, round: round + 1, ...next };
}

/**
 * Opens both splits and checks what the recipe alone cannot say.
 * @throws BraidError INVALID_DATA or INVALID_RECIPE; nothing stays open then
 */
export async function planRun(recipe: Recipe, open: typeof openDataset): Promise<Plan> {
  const train = await open(recipe.data, 'train');
  let test: Dataset | undefined;
  try {
    test = await open(recipe.data, 'test');
    requireSameKind(train, test);
    const { batch } = recipe.training;
    const { replicas } = recipe.cluster;
    return {
      recipe,
      train,
      test,
      image: train.image,
      classes: train.classes,
      branches: branchesOf(recipe).length,
      replicas,
      workers: workersOf(recipe),
      steps: totalSteps(recipe.training, train.length),
      stepsPerEpoch: stepsPerEpoch(train.length, batch),
      shardSizes: distinctShardSizes(train.length, batch, replicas),
      testBatches: Math.ceil(test.length / evaluationBatchOf(recipe)),
    };
  } catch (error) {
    train.close();
    test?.close();
    throw error;
  }
}

/** The same run on another number of replicas: the same samples in the same order, sharded differently. */
export function planFor(plan: Plan, replicas: number): Plan {
  const { recipe, train, branches } = plan;
  return {
    ...plan,
    replicas,
    workers: recipe.cluster.placement === 'together' ? replicas : replicas * branches,
    shardSizes: distinctShardSizes(train.length, recipe.training.batch, replicas),
  };
}

export function stepAt({ recipe, train, replicas, stepsPerEpoch }: Plan, step: number): Step {
  const { epoch, index, sampleIds } = batchOf(step, samplerOf(recipe, train.length));
  return {
    step,
    epoch,
    learningRate: learningRateAt(recipe, epoch, index / stepsPerEpoch),
    distillWeight: distillWeightAt(recipe.method, epoch),
    samples: sampleIds.length,
    shardWeights: shardSizes(sampleIds.length, replicas).map((size) => size / sampleIds.length),
    rounds: roundsAt(recipe, epoch),
  };
}

export function samplerOf({ seed, data, training }: Recipe, samples: number) {
  return { samples, batch: training.batch, seed, shuffle: data.shuffle };
}

/** Whether a step is its epoch's last one. */
export function endsEpoch({ stepsPerEpoch }: Plan, step: number): boolean {
  return (step + 1) % stepsPerEpoch === 0;
}

/** What distinguishes one network from another: a checkpoint fits where all of it is equal. */
export function networkOf({ recipe, image, classes }: Plan): Record<string, unknown> {
  const { method } = recipe;
  return {
    branches: branchesOf(recipe),
    trunk: recipe.trunk,
    shareUntil: recipe.shareUntil,
    method: {
      name: method.name,
      ...('fusion' in method && { fusion: method.fusion }),
      ...('gateBlocks' in method && { gateBlocks: method.gateBlocks }),
    },
    image,
    classes,
  };
}

/** What decides which samples a step trains on: a resumed run must agree on it, or it would not be the same run. */
export function samplingOf({ recipe, train }: Plan): Record<string, unknown> {
  return {
    seed: recipe.seed,
    'training.batch': recipe.training.batch,
    'data.shuffle': recipe.data.shuffle,
    samples: train.length,
  };
}

function requireSameKind(train: Dataset, test: Dataset): void {
  for (const dataset of [train, test]) {
    if (dataset.length === 0) throw new BraidError('INVALID_DATA', `${dataset.name} has no samples`);
  }
  const [a, b] = [train, test].map(({ image: { height, width, channels } }) => `${height}x${width}x${channels}`);
  if (a !== b) {
    throw new BraidError('INVALID_DATA', `the images of ${train.name} are ${a}, those of ${test.name} are ${b}`, {
      remedy: 'Train and test on images of one size.',
    });
  }
  if (train.classes !== test.classes) {
    const message = `${train.name} has ${train.classes} classes, ${test.name} has ${test.classes}`;
    throw new BraidError('INVALID_DATA', message, { remedy: 'Set data.classes, or mend the data set.' });
  }
}
