/** Every operation that a capture knows, and its gradient, against eager tfjs on random shapes. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { capture } from '../nn/graph/capture.ts';
import { conv2d, depthwiseConv2d } from '../nn/graph/convolutions.ts';
import * as ops from '../nn/graph/ops.ts';
import { Session } from '../nn/graph/session.ts';
import { CAPTURED_OPS } from '../nn/graph/shapes.ts';
import { type Tensor, tf } from '../nn/tensorflow.ts';

const SHAPES_A_KERNEL = 4;
const TOLERANCE = 1e-5; // relative; elementwise kernels round alike, reductions and convolutions nearly so

interface Kernel {
  /** Shapes of the operands for sizes a, b, c. */
  shapes(a: number, b: number, c: number): number[][];
  run(inputs: Tensor[], a: number, b: number, c: number): Tensor;
  /** Operands above 0: roots and logarithms. */
  positive?: boolean;
  /** Also compare gradients. */
  gradient?: boolean;
  /** tfjs's own way to the same, to compare with: of operations that are Braid's. Absent: the same code, run eagerly. */
  stock?(inputs: Tensor[]): Tensor;
}

const like = (a: number, b: number, c: number) => [[a, b, c]];
const pair = (a: number, b: number, c: number) => [
  [a, b, c],
  [b, c],
];
const unary = (run: (x: Tensor) => Tensor, options: Partial<Kernel> = {}): Kernel => ({
  shapes: like,
  run: ([x]) => run(x!),
  gradient: true,
  ...options,
});
const binary = (run: (x: Tensor, y: Tensor) => Tensor, options: Partial<Kernel> = {}): Kernel => ({
  shapes: pair,
  run: ([x, y]) => run(x!, y!),
  gradient: true,
  ...options,
});
const same = (a: number, b: number, c: number) => [
  [a, b, c],
  [a, b, c],
];
const flagged = (run: (x: Tensor, y: Tensor) => Tensor): Kernel =>
  binary((x, y) => tf.cast(run(x, y), 'float32'), { gradient: false });
const image = (a: number, b: number, c: number) => [[a, b + 3, c + 3, 2]];
const as4d = (x: Tensor) => x as ReturnType<typeof tf.tensor4d>;
/** With a border of zeros, as PyTorch pads. */
const padded = (x: Tensor, pad: number) =>
  tf.pad(as4d(x), [
    [0, 0],
    [pad, pad],
    [pad, pad],
    [0, 0],
  ]);

const KERNELS: Record<string, Kernel> = {
  abs: unary(tf.abs),
  ceil: unary(tf.ceil),
  cos: unary(tf.cos),
  elu: unary(tf.elu),
  erf: unary(tf.erf),
  exp: unary(tf.exp),
  expm1: unary(tf.expm1),
  floor: unary(tf.floor),
  identity: unary(tf.clone),
  leakyRelu: unary((x) => tf.leakyRelu(x, 0.1), { gradient: false }),
  log: unary(tf.log, { positive: true }),
  log1p: unary(tf.log1p, { positive: true }),
  negative: unary(tf.neg),
  onesLike: unary(tf.onesLike, { gradient: false }),
  zerosLike: unary(tf.zerosLike, { gradient: false }),
  reciprocal: unary(tf.reciprocal, { positive: true }),
  relu: unary(tf.relu),
  relu6: unary(tf.relu6),
  round: unary(tf.round),
  rsqrt: unary(tf.rsqrt, { positive: true }),
  selu: unary(tf.selu),
  sigmoid: unary(tf.sigmoid),
  sign: unary(tf.sign),
  sin: unary(tf.sin),
  acos: unary((x) => tf.acos(tf.mul(x, 0.4))),
  acosh: unary((x) => tf.acosh(tf.add(x, 1)), { positive: true }),
  asin: unary((x) => tf.asin(tf.mul(x, 0.4))),
  asinh: unary(tf.asinh),
  atan: unary(tf.atan),
  atanh: unary((x) => tf.atanh(tf.mul(x, 0.4))),
  cosh: unary(tf.cosh),
  sinh: unary(tf.sinh),
  tan: unary((x) => tf.tan(tf.mul(x, 0.4))),
  cumprod: unary((x) => tf.cumprod(x, 1), { gradient: false }),
  unstack: unary((x) => tf.unstack(x, 1)[0]!, { shapes: (a, b, c) => [[a, b + 1, c]] }), // of one part tfjs's own fails
  softmax: unary((x) => tf.softmax(x)),
  softplus: unary(tf.softplus),
  sqrt: unary(tf.sqrt, { positive: true }),
  square: unary(tf.square),
  tanh: unary(tf.tanh),
  reverse: unary((x) => tf.reverse(x, [0, 2])),
  cumsum: unary((x) => tf.cumsum(x, 2)), // of another axis tfjs's own gradient is wrong
  isNaN: unary((x) => tf.cast(tf.isNaN(x), 'float32'), { gradient: false }),
  isInf: unary((x) => tf.cast(tf.isInf(x), 'float32'), { gradient: false }),
  isFinite: unary((x) => tf.cast(tf.isFinite(x), 'float32'), { gradient: false }),
  add: binary(tf.add),
  sub: binary(tf.sub),
  mul: binary(tf.mul),
  div: binary(tf.div, { positive: true }),
  divNoNan: binary(tf.divNoNan, { gradient: false }),
  floorDiv: binary(tf.floorDiv, { positive: true, gradient: false }),
  mod: binary(tf.mod, { positive: true, gradient: false }),
  maximum: binary(tf.maximum, { shapes: same }),
  minimum: binary(tf.minimum, { shapes: same }),
  pow: binary(tf.pow, { positive: true }),
  squaredDifference: binary(tf.squaredDifference, { shapes: same }),
  atan2: binary(tf.atan2, { positive: true }),
  equal: flagged(tf.equal),
  notEqual: flagged(tf.notEqual),
  greater: flagged(tf.greater),
  greaterEqual: flagged(tf.greaterEqual),
  less: flagged(tf.less),
  lessEqual: flagged(tf.lessEqual),
  logicalAnd: flagged((x, y) => tf.logicalAnd(tf.greater(x, 0), tf.greater(y, 0))),
  logicalOr: flagged((x, y) => tf.logicalOr(tf.greater(x, 0), tf.greater(y, 0))),
  logicalNot: flagged((x) => tf.logicalNot(tf.greater(x, 0))),
  // The condition must not depend on what is differentiated: comparisons have no gradient.
  where: binary((x, y) => tf.where(tf.greater(tf.fill(x.shape as [number], 1), 0), x, y), { shapes: same }),
  addN: {
    shapes: (a, b) => [
      [a, b],
      [a, b],
      [a, b],
    ],
    run: (xs) => tf.addN(xs),
    gradient: true,
  },
  sum: unary((x) => tf.sum(x, 1)),
  sumKept: unary((x) => tf.sum(x, [0, 2], true)),
  mean: unary((x) => tf.mean(x, -1)),
  max: unary((x) => tf.max(x, 1), { gradient: false }),
  min: unary((x) => tf.min(x, 1), { gradient: false }),
  prod: unary((x) => tf.prod(x, 1), { gradient: false }),
  all: unary((x) => tf.cast(tf.all(tf.greater(x, -1), 1), 'float32'), { gradient: false }),
  any: unary((x) => tf.cast(tf.any(tf.greater(x, 1), 1), 'float32'), { gradient: false }),
  argMax: unary((x) => tf.cast(tf.argMax(x, 1), 'float32'), { gradient: false }),
  argMin: unary((x) => tf.cast(tf.argMin(x, 1), 'float32'), { gradient: false }),
  oneHot: unary((x) => tf.cast(tf.oneHot(tf.cast(tf.abs(tf.round(x)), 'int32'), 4), 'float32'), { gradient: false }),
  fill: unary((x) => tf.add(x, tf.fill(x.shape as [number], 0.5))),
  topk: unary((x) => tf.topk(x, 1).values, { gradient: false }),
  reshape: unary((x) => tf.reshape(x, [-1])),
  expandDims: unary((x) => tf.expandDims(x, 1)),
  transpose: unary((x) => tf.transpose(x, [2, 0, 1])),
  tile: unary((x) => tf.tile(x, [1, 2, 1])),
  pad: unary((x) =>
    tf.pad(
      x as ReturnType<typeof tf.tensor3d>,
      [
        [1, 0],
        [0, 2],
        [1, 1],
      ],
      0.5,
    ),
  ),
  mirrorPad: {
    shapes: (a, b, c) => [[a + 2, b + 2, c + 2]],
    run: ([x]) =>
      tf.mirrorPad(
        x as ReturnType<typeof tf.tensor3d>,
        [
          [1, 0],
          [0, 1],
          [1, 1],
        ],
        'reflect',
      ),
  },
  slice: { shapes: (a, b) => [[a + 1, b + 1]], run: ([x], a) => tf.slice(x!, [1, 0], [a, 1]), gradient: true },
  concat: {
    shapes: (a, b, c) => [
      [a, b],
      [a, c],
    ],
    run: (xs) => tf.concat(xs, 1),
    gradient: true,
  },
  stack: {
    shapes: (a, b) => [
      [a, b],
      [a, b],
    ],
    run: (xs) => tf.stack(xs, 1),
    gradient: true,
  },
  split: { shapes: (a, b, c) => [[a, b + c]], run: ([x], _, b, c) => tf.split(x!, [b, c], 1)[1]!, gradient: true },
  gather: { shapes: (a, b) => [[a + 1, b]], run: ([x]) => tf.gather(x!, tf.tensor1d([1, 0, 1], 'int32')) },
  matMul: {
    shapes: (a, b, c) => [
      [a, b],
      [b, c],
    ],
    run: ([x, y]) => tf.matMul(x!, y!),
    gradient: true,
  },
  matMulTransposed: {
    shapes: (a, b, c) => [
      [b, a],
      [c, b],
    ],
    run: ([x, y]) => tf.matMul(x!, y!, true, true),
    gradient: true,
  },
  conv2dStock: {
    shapes: (a, b, c) => [...image(a, b, c), [3, 3, 2, 3]],
    run: ([x, f]) => tf.conv2d(as4d(x!), as4d(f!), 1, 'same'),
  },
  avgPool: { shapes: image, run: ([x]) => tf.avgPool(as4d(x!), 2, 2, 'same'), gradient: true },
  maxPool: { shapes: image, run: ([x]) => tf.maxPool(as4d(x!), 2, 2, 'valid'), gradient: true },
  // Braid's own.
  conv2d: {
    shapes: (a, b, c) => [...image(a, b, c), [3, 3, 2, 3]],
    run: ([x, f]) => conv2d(x!, f!, 1),
    gradient: true,
  },
  conv2dStrided: {
    shapes: (a, b, c) => [...image(a, b, c), [3, 3, 2, 3]],
    run: ([x, f]) => conv2d(x!, f!, 2),
    stock: ([x, f]) => tf.conv2d(padded(x!, 1), as4d(f!), 2, 'valid'),
    gradient: true,
  },
  conv2dPointwise: {
    shapes: (a, b, c) => [...image(a, b, c), [1, 1, 2, 3]],
    run: ([x, f]) => conv2d(x!, f!, 2),
    gradient: true,
  },
  depthwise: {
    shapes: (a, b, c) => [...image(a, b, c), [3, 3, 2, 1]],
    run: ([x, f]) => depthwiseConv2d(x!, f!, 1),
    stock: ([x, f]) => tf.depthwiseConv2d(as4d(x!), as4d(f!), 1, 'same'),
    gradient: true,
  },
  depthwiseStrided: {
    shapes: (a, b, c) => [...image(a, b, c), [3, 3, 2, 1]],
    run: ([x, f]) => depthwiseConv2d(x!, f!, 2),
    stock: ([x, f]) => tf.depthwiseConv2d(padded(x!, 1), as4d(f!), 2, 'valid'),
    gradient: true,
  },
  maxPoolPadded: {
    shapes: image,
    run: ([x]) => ops.maxPool(ops.paddedRelu(x!, 1), 3, 2),
    stock: ([x]) => tf.maxPool(padded(tf.relu(x!), 1), 3, 2, 'valid'),
    gradient: true,
  },
  maxPoolHalving: {
    shapes: image,
    run: ([x]) => ops.maxPool(x!, 2, 2),
    stock: ([x]) => tf.maxPool(as4d(x!), 2, 2, 'valid'),
    gradient: true,
  },
  avgPoolHalving: {
    shapes: image,
    run: ([x]) => ops.avgPool(x!, 2),
    stock: ([x]) => tf.avgPool(as4d(x!), 2, 2, 'valid'),
    gradient: true,
  },
  batchNorm: {
    shapes: (a, b, c) => [[a + 1, b + 3, c + 3, 2], [2], [2]],
    run: ([x, scale, offset]) => ops.batchNormTraining(x!, scale!, offset!, 1e-3).y,
    gradient: true,
  },
  batchNormInference: {
    shapes: (a, b, c) => [[a, b, c, 2], [2], [2], [2], [2]],
    run: ([x, scale, offset, mean, v]) =>
      ops.batchNormInference(x!, scale!, offset!, mean!, tf.add(tf.abs(v!), 0.5), 1e-3),
  },
  reluRaw: unary(ops.relu, { stock: ([x]) => tf.relu(x!) }),
  relu6Raw: unary((x) => ops.relu6(tf.mul(x, 4)), { stock: ([x]) => tf.relu6(tf.mul(x!, 4)) }),
  globalAveragePool: { shapes: image, run: ([x]) => ops.globalAveragePool(x!), gradient: true },
  logSoftmax: unary((x) => ops.logSoftmax(tf.reshape(x, [x.shape[0]!, -1]))),
  crossEntropy: {
    shapes: (a, b) => [[a, b + 1]],
    run: ([x]) => ops.crossEntropy(x!, tf.fill([x!.shape[0]!], 1, 'int32')),
    gradient: true,
  },
  inTopK: {
    shapes: (a, b) => [[a, b + 1]],
    run: ([x]) => tf.cast(ops.inTopK(x!, tf.fill([x!.shape[0]!], 1, 'int32'), 1), 'float32'),
  },
  castToF32: unary((x) => ops.cast(ops.cast(x, 'f32', 'f32'), 'f32', 'f32')),
};

const exercised = new Set<string>();

for (const [name, kernel] of Object.entries(KERNELS)) {
  test(`${name} is captured with the value${kernel.gradient ? ' and the gradient' : ''} of eager tfjs`, (t) => {
    const size = fc.integer({ min: 1, max: 5 });
    fc.assert(
      fc.property(size, size, size, fc.integer(), (a, b, c, seed) => compare(t, kernel, [a, b, c], seed)),
      { numRuns: SHAPES_A_KERNEL, includeErrorInReport: true },
    );
  });
}

test('the filter gradient of a narrow map keeps to its memory when the batch is odd', (t) => {
  const [n, side, channels] = [7, 12, 4];
  const graph = capture((cap) => {
    cap.phase('run', () => {
      const x = cap.feed('x', [n, side, side, channels]);
      const filter = cap.feed('filter', [3, 3, channels, channels]);
      return { gradient: tf.grad((w) => tf.sum(conv2d(x, w, 1)))(filter) };
    });
  });
  for (const { op } of graph.nodes) exercised.add(op);
  const session = new Session(graph);
  const ones = (length: number) => new Float32Array(length).fill(1);
  // A write past its end would end this process, at the latest where memory is given back.
  for (let run = 0; run < 20; run++) {
    const feeds = { x: ones(n * side * side * channels), filter: ones(9 * channels * channels) };
    const { gradient } = session.run('run', feeds);
    t.is(gradient![4 * channels * channels], n * side * side); // the filter's middle meets every pixel
    t.is(gradient![0], n * (side - 1) * (side - 1));
  }
  session.close();
});

for (const [side, stride] of [
  [9, 1],
  [9, 2],
  [10, 2],
] as const) {
  test(`the filter gradient of a ${side} x ${side} map, stride ${stride}, is the same as a forward convolution`, (t) => {
    const [batch, inputs, outputs] = [9, 6, 64];
    const out = Math.ceil(side / stride);
    const graph = capture((c) => {
      c.phase('run', () => {
        const x = c.feed('x', [batch, side, side, inputs]);
        const filter = c.feed('filter', [3, 3, inputs, outputs]);
        const dy = c.feed('dy', [batch, out, out, outputs]);
        const by = (precision: ops.Precision) => {
          const conv = (f: Tensor) =>
            conv2d(ops.cast(x, 'f32', precision), ops.cast(f, 'f32', precision), stride, precision);
          const { grads } = tf
            .engine()
            .gradients((() => conv(filter)) as never, [filter], ops.cast(dy, 'f32', precision));
          return grads[0] as Tensor;
        };
        return { stock: by('f32'), forward: by('bf16') };
      });
    });
    t.is(graph.nodes.filter(({ op }) => op === 'Conv2DBackpropFilter').length, 1);
    const session = new Session(graph);
    const small = (shape: number[], seed: number) => randoms(shape, seed, false).map((v) => Math.round(8 * v) / 8); // exact in bf16
    const feeds = {
      x: small([batch, side, side, inputs], 1),
      filter: small([3, 3, inputs, outputs], 2),
      dy: small([batch, out, out, outputs], 3),
    };
    const { stock, forward } = session.run('run', feeds);
    session.close();
    const most = stock!.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
    const furthest = stock!.reduce((max, v, i) => Math.max(max, Math.abs(v - forward![i]!)), 0);
    t.true(most > 1 && furthest <= most * 2 ** -8, `${furthest} of ${most}`);
  });
}

test.after.always('every captured operation was exercised, here or by the programs', (t) => {
  // State and stash operations, and those of a program's feeds and updates: test/program.test.ts runs them.
  const elsewhere = ['ReadVariableOp', 'DeepCopy', 'Bitcast'];
  const missing = [...CAPTURED_OPS].filter((op) => !exercised.has(op) && !elsewhere.includes(op));
  t.deepEqual(missing, []);
});

function compare(t: ExecutionContext, kernel: Kernel, [a, b, c]: [number, number, number], seed: number): void {
  const shapes = kernel.shapes(a, b, c);
  const values = shapes.map((shape, i) => randoms(shape, seed + i, kernel.positive ?? false));
  const eager = tf.tidy(() => {
    const inputs = values.map((value, i) => tf.tensor(value, shapes[i]!));
    const run = kernel.stock ?? kernel.run;
    return results({ ...kernel, run }, inputs, [a, b, c]).map((tensor) => tensor.dataSync().slice());
  });
  const graph = capture((cap) => {
    cap.phase('run', () => {
      const inputs = shapes.map((shape, i) => cap.feed(`x${i}`, shape));
      return Object.fromEntries(results(kernel, inputs, [a, b, c]).map((tensor, i) => [`y${i}`, tensor]));
    });
  });
  for (const { op } of graph.nodes) exercised.add(op);
  const session = new Session(graph);
  const captured = session.run('run', Object.fromEntries(values.map((value, i) => [`x${i}`, value])));
  session.close();
  eager.forEach((expected, i) => {
    const found = captured[`y${i}`]!;
    t.is(found.length, expected.length);
    expected.forEach((value, j) => {
      if (Math.abs(found[j]! - value) > TOLERANCE * Math.max(1, Math.abs(value))) {
        t.fail(`${i === 0 ? 'value' : `gradient ${i - 1}`}[${j}] is ${found[j]}, eagerly ${value}`);
      }
    });
  });
}

/** The value and, where wanted, the gradient of its weighted sum with respect to every operand. */
function results(kernel: Kernel, inputs: Tensor[], sizes: [number, number, number]): Tensor[] {
  const run = (xs: Tensor[]) => kernel.run(xs, ...sizes);
  const y = run(inputs);
  if (!kernel.gradient) return [y];
  const gradients = tf.grads((...xs: Tensor[]) => tf.sum(tf.mul(run(xs), 0.75)))(inputs);
  return [y, ...gradients];
}

function randoms(shape: number[], seed: number, positive: boolean): Float32Array {
  const size = shape.reduce((a, b) => a * b, 1);
  return Float32Array.from({ length: size }, (_, i) => {
    const x = Math.sin(seed * 12.9898 + i * 78.233) * 43758.5453;
    const u = x - Math.floor(x);
    return positive ? 0.25 + 2 * u : 4 * u - 2;
  });
}
