import test, { type ExecutionContext } from 'ava';
import { checkRecipe } from '../core/recipe.ts';
import { distillWeightAt, learningRateAt, rampUpWeight, roundNames, roundsAt, totalSteps } from '../core/schedule.ts';

const changed = (method: object, training: object = {}, branches: object = { count: 2 }) =>
  checkRecipe({
    name: 'x',
    data: { format: 'cifar10', path: '/data', mean: [0], std: [1] },
    branches: [{ network: 'resnet', ...branches }],
    trunk: 'none',
    method,
    training,
  });
const recipe = changed({ name: 'ffl' });

test("the ramp-up has the authors' values", (t) => {
  const rampUp = { kind: 'exponential', epochs: 80 } as const;
  for (const [epoch, weight] of [
    [0, '0.006738'],
    [40, '0.286505'],
    [79, '0.999219'],
    [80, '1.000000'],
    [299, '1.000000'],
  ] as const) {
    t.is(rampUpWeight(rampUp, epoch).toFixed(6), weight);
  }
});

test('a constant ramp-up is constant, and a method without distillation has weight 0', (t) => {
  t.is(rampUpWeight({ kind: 'constant', value: 0.5 }, 7), 0.5);
  t.is(distillWeightAt(recipe.method, 80), 1);
  t.is(distillWeightAt({ name: 'vanilla' }, 80), 0);
});

test('the learning rate falls at each milestone, from the first step of its epoch on', (t) => {
  const rates = [0, 149, 150, 224, 225, 299].map((epoch) => learningRateAt(recipe, epoch));
  const expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001];
  rates.forEach((rate, i) => {
    t.true(Math.abs(rate - expected[i]!) < 1e-15);
  });
});

/** Learning rates of a run's steps, four an epoch. */
const ratesOf = (training: object, epochs: number[], method: object = { name: 'ffl' }) =>
  epochs.map((at) => learningRateAt(changed(method, training), Math.floor(at), at % 1));

function close(t: ExecutionContext, found: number[], wanted: number[]): void {
  t.is(found.length, wanted.length);
  found.forEach((rate, i) => {
    t.true(Math.abs(rate - wanted[i]!) < 1e-12, `${i}: ${rate}, not ${wanted[i]}`);
  });
}

test("a warm-up grows from step to step as PyTorch's LinearLR does, and milestones stay where they are", (t) => {
  const training = { epochs: 10, learningRate: 1, milestones: [4], warmUp: { epochs: 2, startFactor: 0.2 } };
  close(t, ratesOf(training, [0, 0.25, 1, 1.75, 2, 3.75, 4, 9.75]), [0.2, 0.3, 0.6, 0.9, 1, 1, 0.1, 0.1]);
});

test("after the warm-up half a cosine falls to 0, as PyTorch's CosineAnnealingLR does", (t) => {
  const training = { epochs: 10, learningRate: 2, schedule: 'cosine', warmUp: { epochs: 2, startFactor: 0 } };
  const cosine = (progress: number) => 1 + Math.cos(Math.PI * progress);
  close(t, ratesOf(training, [0, 1, 2, 4, 6, 9.75]), [0, 1, 2, cosine(0.25), 1, cosine(7.75 / 8)]);
});

test('the learning rate scales with the batch, where it is given for another one', (t) => {
  close(t, ratesOf({ batch: 1024, referenceBatch: 256, milestones: [30] }, [0, 30]), [0.4, 0.04]);
  close(t, ratesOf({ batch: 64, referenceBatch: 256 }, [0]), [0.025]);
  close(t, ratesOf({ batch: 1024 }, [0]), [0.1]);
});

test('each phase of a method has its own warm-up', (t) => {
  const training = { epochs: 10, learningRate: 1, milestones: [9], warmUp: { epochs: 5, startFactor: 0 } };
  const halves = { name: 'dualnet', schedule: 'iterative', phases: { standard: 1, fine: 1, classifiers: 0 } };
  close(t, ratesOf(training, [0, 1, 2.5, 4, 5, 6, 7.5], halves), [0, 0.4, 1, 1, 0, 0.4, 1]);
});

test('a warm-up that takes the whole run is refused', (t) => {
  t.throws(() => changed({ name: 'ffl' }, { epochs: 5, warmUp: { epochs: 5 } }), {
    message: /training.warmUp.epochs: 5/,
  });
});

test('a run ends after its last epoch, or at maxSteps', (t) => {
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100 }, 250), 9);
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100, maxSteps: 5 }, 250), 5);
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100, maxSteps: 50 }, 250), 9);
});

test('a step is one update; networks of an alternating DML each have theirs', (t) => {
  t.deepEqual([roundNames(recipe), roundsAt(recipe, 7)], [['all'], [0]]);
  const alternate = changed({ name: 'dml', update: 'alternate' }, {}, { count: 3 });
  t.deepEqual(roundNames(alternate), ['network.0', 'network.1', 'network.2']);
  t.deepEqual(roundsAt(alternate, 7), [0, 1, 2]);
});

test('the phases of an iterative DualNet share the epochs, each with the learning rates of a whole run', (t) => {
  const dualnet = changed(
    { name: 'dualnet', schedule: 'iterative', phases: { coarse: 0.4 } },
    { epochs: 14, milestones: [7, 10] },
  );
  t.deepEqual(roundNames(dualnet), ['standard', 'fine', 'coarse', 'classifiers']);
  const epochs = Array.from({ length: 14 }, (_, epoch) => epoch);
  t.deepEqual(
    epochs.map((epoch) => roundsAt(dualnet, epoch)),
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3].map((round) => [round]),
  );
  const rates = epochs.map((epoch) => Math.round(1000 * learningRateAt(dualnet, epoch)));
  t.deepEqual(rates, [100, 100, 10, 1, 100, 100, 10, 1, 100, 100, 10, 1, 100, 10]);
  const released = changed({ name: 'dualnet', schedule: 'iterative' }, { epochs: 10 });
  t.deepEqual(roundNames(released), ['standard', 'fine', 'classifiers']);
});
