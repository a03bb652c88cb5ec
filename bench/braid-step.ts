/**
 * Times Braid's training steps of FFL in one process: the captured graph, fed from memory.
 *
 *     node bench/braid-step.ts --network cifar --precision bf16 --threads 2
 *
 * A step: a uint8 batch -> normalise -> forward -> losses -> gradient -> SGD -> the losses as numbers. Speaks the
 * protocol of stepper.ts.
 */
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { discardPages } from '../core/libc.ts';
import { Random } from '../core/random.ts';
import { loadRecipe } from '../core/recipe.ts';
import { alignedSharedBuffer } from '../core/shared-buffer.ts';
import { Device } from '../nn/device.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import type { Answer } from './stepper.ts';

/** What is trained, by name; its batch is the recipe's. */
const NETWORKS = {
  cifar: { recipe: 'recipe.yaml', size: 32, classes: 100 },
  imagenet: { recipe: 'imagenet.yaml', size: 224, classes: 1000 },
};
const BATCHES = 4; // different ones, used in turn: more than any cache holds
const WARM_UP_STEPS = 3;
const RAMP_UP_WEIGHT = 0.286505; // w(40)

const { values } = parseArgs({
  options: {
    network: { type: 'string', default: 'cifar' },
    precision: { type: 'string', default: 'f32' },
    threads: { type: 'string', default: '2' },
    batch: { type: 'string' },
    branches: { type: 'string', default: '2' },
    unshared: { type: 'boolean', default: false },
  },
});
const network = NETWORKS[values.network as keyof typeof NETWORKS];
const image = { height: network.size, width: network.size, channels: 3 };
const recipe = loadRecipe(join(import.meta.dirname, network.recipe), [
  `training.precision=${values.precision}`,
  ...(values.batch === undefined ? [] : [`training.batch=${values.batch}`]),
  `branches.0.count=${values.branches}`,
  `trunk=${values.unshared ? 'none' : 'shared'}`,
  ...(values.branches === '1' ? ['method={name: vanilla}'] : []),
]);

const { batch } = recipe.training;

const device = await Device.open({
  recipe,
  role: { kind: 'replica' },
  image,
  classes: network.classes,
  shardSizes: [batch],
  threads: Number(values.threads),
});
const { variables, stateLength, rounds } = device.program;
const { gradientLength, losses } = rounds[0]!;
await writeFirstState();

const random = new Random(1);
const imageBytes = batch * image.height * image.width * image.channels;
const batches = Array.from({ length: BATCHES }, () => ({
  images: new Uint8Array(alignedSharedBuffer(imageBytes), 0, imageBytes).map(() => random.int(256)),
  labels: new Int32Array(alignedSharedBuffer(batch * 4), 0, batch).map(() => random.int(network.classes)),
}));
const gradient = new Float32Array(alignedSharedBuffer(gradientLength * 4), 0, gradientLength);

let steps = 0;
for (let n = 0; n < WARM_UP_STEPS; n++) await step();
process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
for await (const line of createInterface(process.stdin)) {
  const answer: Answer = { seconds: [], phases: { compute: [], apply: [] }, loss: 0 };
  for (let n = Number(line.split(' ')[1]); n > 0; n--) {
    const { compute, apply, loss } = await step();
    answer.seconds.push(compute + apply);
    answer.phases!.compute!.push(compute);
    answer.phases!.apply!.push(apply);
    answer.loss = loss;
  }
  answer.peakBytes = process.resourceUsage().maxRSS * 1024;
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await device.close();

/** As a worker takes it: in memory that is given back. Whoever made the weights, in a real run the coordinator, has them no more. */
async function writeFirstState(): Promise<void> {
  const state = new Float32Array(alignedSharedBuffer(4 * stateLength), 0, stateLength);
  state.set(fromTensors(variables, initialWeights(variables, recipe.seed)));
  await device.run('write', { state });
  discardPages(new Uint8Array(state.buffer));
  globalThis.gc?.();
}

/** Seconds of a step's two phases, and its total loss. */
async function step(): Promise<{ compute: number; apply: number; loss: number }> {
  const start = performance.now();
  const feeds = { ...batches[steps++ % BATCHES]!, distillWeight: RAMP_UP_WEIGHT, shardWeight: 1 };
  const results = await device.run(`compute@${batch}`, feeds, { gradient });
  const middle = performance.now();
  await device.run('apply', { gradient, learningRate: recipe.training.learningRate });
  const end = performance.now();
  return {
    compute: (middle - start) / 1000,
    apply: (end - middle) / 1000,
    loss: results.losses![losses.indexOf('total')]!,
  };
}
