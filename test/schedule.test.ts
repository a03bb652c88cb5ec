import test from 'ava';
import { checkRecipe } from '../core/recipe.ts';
import { distillWeightAt, learningRateAt, rampUpWeight, totalSteps } from '../core/schedule.ts';

const recipe = checkRecipe({
  name: 'x',
  data: { format: 'cifar10', path: '/data', mean: [0], std: [1] },
  branches: [{ count: 2 }],
  method: { name: 'ffl' },
  training: {},
});

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
  const rates = [0, 149, 150, 224, 225, 299].map((epoch) => learningRateAt(recipe.training, epoch));
  const expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001];
  rates.forEach((rate, i) => {
    t.true(Math.abs(rate - expected[i]!) < 1e-15);
  });
});

test('a run ends after its last epoch, or at maxSteps', (t) => {
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100 }, 250), 9);
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100, maxSteps: 5 }, 250), 5);
  t.is(totalSteps({ ...recipe.training, epochs: 3, batch: 100, maxSteps: 50 }, 250), 9);
});
