/** Winograd's convolutions against TensorFlow's own. */
import test from 'ava';
import { Random } from '../core/random.ts';
import { capture, type Graph } from '../nn/graph/capture.ts';
import { conv2d } from '../nn/graph/convolutions.ts';
import { cast, type Precision } from '../nn/graph/ops.ts';
import { Session } from '../nn/graph/session.ts';
import { winogradConv2d } from '../nn/graph/winograd.ts';
import { type Tensor, tf } from '../nn/tensorflow.ts';

type Convolution = (x: Tensor, filter: Tensor) => Tensor;
interface Sizes {
  batch: number;
  height: number;
  width: number;
  inputs: number;
  outputs: number;
}

const NARROW = { inputs: 5, outputs: 7 };
const TOLERANCE = 5e-6; // of the largest value

for (const [height, width] of [
  [1, 1],
  [3, 4],
  [8, 8],
  [7, 14],
  [9, 6],
] as const) {
  test(`a ${height} x ${width} map is convolved, and both gradients are, as TensorFlow does`, (t) => {
    const sizes = { batch: 3, height, width, ...NARROW };
    const graph = graphOf(sizes, { direct: (x, f) => conv2d(x, f, 1), winograd: winogradConv2d });
    const results = resultsOf(graph, sizes);
    for (const name of ['y', 'dx', 'dFilter']) {
      const [direct, winograd] = [results[`direct.${name}`]!, results[`winograd.${name}`]!];
      const most = direct.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
      const furthest = direct.reduce((max, v, i) => Math.max(max, Math.abs(v - winograd[i]!)), 0);
      t.is(winograd.length, direct.length);
      t.true(most > 0.1 && furthest <= TOLERANCE * most, `${name}: ${furthest} of ${most}`);
    }
  });
}

const WIDE = { batch: 16, height: 7, width: 7, inputs: 256, outputs: 256 };
for (const [what, sizes, precision, chosen] of [
  ['wide f32 maps', WIDE, 'f32', true],
  ['bf16', WIDE, 'bf16', false],
  ['narrow maps', { ...WIDE, inputs: 128 }, 'f32', false],
  ['few tiles', { ...WIDE, batch: 15 }, 'f32', false],
  ['tiles that the map half fills', { ...WIDE, batch: 64, height: 5 }, 'f32', false],
] as const satisfies [string, Sizes, Precision, boolean][]) {
  test(`conv2d of ${what} is ${chosen ? 'by Winograd' : 'direct'}`, (t) => {
    const convolution: Convolution = (x, filter) =>
      cast(conv2d(cast(x, 'f32', precision), cast(filter, 'f32', precision), 1, precision), precision, 'f32');
    const { nodes } = graphOf(sizes, { chosen: convolution });
    t.is(
      nodes.some(({ op }) => op.startsWith('Conv2D')),
      !chosen,
    );
    t.is(
      nodes.some(({ op }) => op.startsWith('BatchMatMul')),
      chosen,
    );
  });
}

test('places of filters wait for x and for dy, those of x for dy: TensorFlow would make and keep them all at once', (t) => {
  const { nodes } = graphOf(WIDE, { winograd: winogradConv2d });
  const waiting = nodes.filter(({ op, inputs }) => op === 'Identity' && inputs.some((input) => input.startsWith('^')));
  t.deepEqual(waiting.map(({ inputs }) => inputs[0]).sort(), ['run/feed/filter', 'run/feed/filter', 'run/feed/x']);
});

function graphOf({ batch, height, width, inputs, outputs }: Sizes, convolutions: Record<string, Convolution>): Graph {
  return capture((c) => {
    c.phase('run', () => {
      const x = c.feed('x', [batch, height, width, inputs]);
      const filter = c.feed('filter', [3, 3, inputs, outputs]);
      const dy = c.feed('dy', [batch, height, width, outputs]);
      const fetches: Record<string, Tensor> = {};
      for (const [name, convolution] of Object.entries(convolutions)) {
        const { value, grads } = tf.engine().gradients((() => convolution(x, filter)) as never, [x, filter], dy);
        Object.assign(fetches, { [`${name}.y`]: value, [`${name}.dx`]: grads[0], [`${name}.dFilter`]: grads[1] });
      }
      return fetches;
    });
  });
}

function resultsOf(graph: Graph, { batch, height, width, inputs, outputs }: Sizes): Record<string, Float32Array> {
  const random = new Random(1);
  const values = (length: number) => Float32Array.from({ length }, () => random.next() * 2 - 1);
  const session = new Session(graph);
  const pixels = batch * height * width;
  const results = session.run('run', {
    x: values(pixels * inputs),
    filter: values(9 * inputs * outputs),
    dy: values(pixels * outputs),
  });
  session.close();
  return results;
}
