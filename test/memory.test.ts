/** What a program's memory is told to be: it grows as the network and its shard do, and a batch that does not fit is refused with numbers. */
import test from 'ava';
import { BraidError } from '../core/errors.ts';
import { checkRecipe, type Recipe } from '../core/recipe.ts';
import { capture } from '../nn/graph/capture.ts';
import { phaseMemory } from '../nn/graph/memory.ts';
import { relu } from '../nn/graph/ops.ts';
import { Session } from '../nn/graph/session.ts';
import { largestShard, memoryOf, requireMemory } from '../nn/memory.ts';
import { buildProgram, type Role } from '../nn/program.ts';
import { tf } from '../nn/tensorflow.ts';

const image = { height: 32, width: 32, channels: 3 };
const classes = 10;

function recipeOf(training: object = {}): Recipe {
  return checkRecipe({
    name: 'test',
    data: { format: 'cifar10', path: 'unused', mean: [120], std: [60] },
    branches: [{ network: 'resnet', depth: 14, count: 2 }],
    method: { name: 'ffl' },
    training,
    evaluation: { batch: 8 },
  });
}

const optionsOf = (recipe: Recipe, role: Role = { kind: 'replica' }) => ({ recipe, role, image, classes });

test('a chain of results: two are there at once, and an activation is written over its operand', (t) => {
  const size = 4 * 1000;
  const graph = capture((c) => {
    c.phase('chain', () => {
      const x = c.feed('x', [10, 100]); // 1
      const y = tf.matMul(x as never, c.feed('w', [100, 100]) as never); // x, w (10 times as large), y
      return { z: relu(tf.reshape(y, [1000])) }; // over y
    });
  });
  t.deepEqual(phaseMemory(graph).get('chain'), { peak: 12 * size, stashed: 0 });
});

test('what forward keeps for backward is stashed once, and is there when backward begins', (t) => {
  const graph = capture((c) => {
    c.continueIn('forward');
    const x = c.feed('x', [1000]);
    const grad = tf.grad((x) => {
      const y = tf.exp(x);
      c.continueIn('backward');
      return y;
    });
    c.fetch('dx', grad(x));
  });
  const phases = phaseMemory(graph);
  t.is(phases.get('forward')!.stashed, 4000); // exp(x) alone is read again
  t.is(phases.get('backward')!.stashed, 0);
  t.true(phases.get('backward')!.peak >= 4000);
});

test('memory grows linearly with the shard, and bf16 halves the activations', (t) => {
  const [one, two, three] = [32, 64, 96].map((samples) => memoryOf(optionsOf(recipeOf()), samples)) as [M, M, M];
  t.is(two.activations - one.activations, three.activations - two.activations);
  t.is(one.weights, three.weights);
  t.is(one.total, one.weights + one.momenta + one.stash + one.activations + one.exchange + one.runtime);
  const bf16 = memoryOf(optionsOf(recipeOf({ precision: 'bf16' })), 96);
  t.true(bf16.activations < 0.65 * three.activations, `${bf16.activations} ${three.activations}`);
  const branch = memoryOf(optionsOf(recipeOf(), { kind: 'branch', branch: 0 }), 96);
  t.true(branch.stash > 0 && branch.stash + branch.activations < three.activations);
});
type M = ReturnType<typeof memoryOf>;

test('the largest shard that fits, fits; one more does not', (t) => {
  const options = optionsOf(recipeOf());
  const bytes = memoryOf(options, 100).total + 1000;
  t.is(largestShard(options, bytes), 100);
  t.is(largestShard(options, 1), 0);
});

test('a batch that does not fit is refused with what it needs, what there is and what would fit', (t) => {
  const options = { ...optionsOf(recipeOf()), shardSizes: [256] };
  const { graph, program } = buildProgram(options);
  const half = memoryOf(options, 128).total - memoryOf(options, 128).runtime;
  t.notThrows(() => requireMemory(graph, program, options, 4 * half));
  t.notThrows(() => requireMemory(graph, program, options, null));
  const error = t.throws<BraidError>(() => requireMemory(graph, program, options, half), { instanceOf: BraidError })!;
  t.is(error.code, 'OUT_OF_MEMORY');
  t.regex(
    error.message,
    /256 samples need about \d+ MiB \(weights 2 MiB, .*activations \d+ MiB.*\), there are \d+ MiB/,
  );
  t.regex(
    error.remedy,
    /^128 samples would fit: use at least 2 times as many replicas, or set training.batch to at most 128/,
  );
});

test('TensorFlow without memory is told apart from other failures', (t) => {
  const huge = capture((c) => {
    c.phase('p', () => ({
      y: tf.sum(tf.matMul(c.feed('x', [1 << 20, 1]) as never, c.feed('w', [1, 1 << 22]) as never)),
    }));
  });
  const session = new Session(huge);
  const feeds = { x: new Float32Array(1 << 20), w: new Float32Array(1 << 22) };
  const error = t.throws<BraidError>(() => session.run('p', feeds), { instanceOf: BraidError })!; // 16 TiB
  t.is(error.code, 'OUT_OF_MEMORY', error.message);
  session.close();
});
