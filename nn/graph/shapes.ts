/**
 * The operations that a capture knows: for each, the shapes (and, where it is not the operands' own, the type) of its
 * results. An operation that is not here is refused by name. One line an operation; `inputs` are edges whose shapes
 * are all static, and whose values are known where they are constants.
 */
import { DType } from '../tensorflow.ts';
import type { AttrValue } from './graphdef.ts';

export interface Operand {
  shape: number[];
  dtype: number;
  /** The elements of a constant; undefined for what is only known when the graph runs. */
  value?: ArrayLike<number> | undefined;
}

export interface Result {
  shape: number[];
  dtype: number;
}

type Attrs = Record<string, AttrValue>;

/** Throws a plain Error on impossible operands: the recorder adds the operation and the layer. */
type ShapeFunction = (inputs: Operand[], attrs: Attrs) => Result[];

const first = ([x]: Operand[]): Operand => x!;
const like = (x: Operand, shape: number[] = x.shape): Result[] => [{ shape, dtype: x.dtype }];

const sameAsFirst: ShapeFunction = (inputs) => like(first(inputs));

const broadcast: ShapeFunction = ([a, b]) => like(a!, broadcastShape(a!.shape, b!.shape));

const compare: ShapeFunction = ([a, b]) => [{ shape: broadcastShape(a!.shape, b!.shape), dtype: DType.BOOL }];

const reduce: ShapeFunction = ([x, axes], attrs) => {
  const reduced = new Set(constant(axes!, 'axes').map((axis) => (axis + x!.shape.length) % x!.shape.length));
  const shape = flag(attrs, 'keep_dims')
    ? x!.shape.map((size, i) => (reduced.has(i) ? 1 : size))
    : x!.shape.filter((_, i) => !reduced.has(i));
  return like(x!, shape);
};

/** Of the operand that says its own shape as a constant: Reshape's second, Conv2DBackpropInput's first. */
const given =
  (shapeOf: number, typeOf: number): ShapeFunction =>
  (inputs) =>
    like(inputs[typeOf]!, constant(inputs[shapeOf]!, 'shape'));

const window: ShapeFunction = ([x, filter], attrs) => {
  const [n, h, w, c] = x!.shape as [number, number, number, number];
  const [kh, kw, kc, multiplier] = filter!.shape as [number, number, number, number];
  if (c !== kc) throw new Error(`${c} channels for a filter of ${kc}`);
  const [oh, ow] = windowSize([h, w], [kh, kw], attrs);
  return like(x!, [n, oh, ow, multiplier]);
};

const pool: ShapeFunction = ([x], attrs) => {
  const [n, h, w, c] = x!.shape as [number, number, number, number];
  const [, kh, kw] = ints(attrs, 'ksize');
  const [oh, ow] = windowSize([h, w], [kh!, kw!], attrs);
  return like(x!, [n, oh, ow, c]);
};

const pad: ShapeFunction = ([x, paddings]) => {
  const p = constant(paddings!, 'paddings');
  return like(
    x!,
    x!.shape.map((size, i) => p[2 * i]! + size + p[2 * i + 1]!),
  );
};

const SHAPES: Record<string, ShapeFunction> = {
  // One operand, element by element.
  ...each(
    'Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Elu Erf Exp Expm1 Floor Identity Log Log1p LogSoftmax Neg OnesLike ' +
      'Reciprocal Relu Relu6 Round Rsqrt Selu Sigmoid Sign Sin Sinh Softmax Softplus Sqrt Square Tan Tanh ZerosLike ' +
      'DeepCopy LogicalNot ReverseV2 Cumsum Cumprod LeakyRelu',
    sameAsFirst,
  ),
  ...each('IsFinite IsInf IsNan', ([x]) => [{ shape: x!.shape, dtype: DType.BOOL }]),
  ...each('EluGrad ReluGrad Relu6Grad', sameAsFirst),
  // Two operands, broadcast.
  ...each(
    'Add Sub Mul RealDiv FloorDiv FloorMod Maximum Minimum Pow SquaredDifference Atan2 LogicalAnd LogicalOr',
    broadcast,
  ),
  ...each('Equal NotEqual Greater GreaterEqual Less LessEqual', compare),
  ...each('Sum Mean Max Min Prod All Any', reduce),
  Cast: ([x], attrs) => [{ shape: x!.shape, dtype: (attrs.DstT as { type: number }).type }],
  Select: ([, t]) => like(t!),
  AddN: sameAsFirst,
  ArgMax: ([x, axis]) => [{ shape: without(x!.shape, constant(axis!, 'axis')[0]!), dtype: DType.INT32 }],
  ArgMin: ([x, axis]) => [{ shape: without(x!.shape, constant(axis!, 'axis')[0]!), dtype: DType.INT32 }],
  OneHot: ([indices, depth, on]) => like(on!, [...indices!.shape, constant(depth!, 'depth')[0]!]),
  Fill: ([dims, value]) => like(value!, constant(dims!, 'dims')),
  InTopKV2: ([, targets]) => [{ shape: targets!.shape, dtype: DType.BOOL }],
  TopKV2: ([x, k]) => {
    const shape = [...x!.shape.slice(0, -1), constant(k!, 'k')[0]!];
    return [
      { shape, dtype: x!.dtype },
      { shape, dtype: DType.INT32 },
    ];
  },
  // Losses.
  SparseSoftmaxCrossEntropyWithLogits: ([logits]) => [
    { shape: logits!.shape.slice(0, 1), dtype: logits!.dtype },
    { shape: logits!.shape, dtype: logits!.dtype },
  ],
  // Shapes only.
  Reshape: ([x, shape]) => like(x!, inferReshape(x!.shape, constant(shape!, 'shape'))),
  ExpandDims: ([x, dim]) => {
    const [at] = constant(dim!, 'dim');
    const shape = [...x!.shape];
    shape.splice(at! < 0 ? at! + shape.length + 1 : at!, 0, 1);
    return like(x!, shape);
  },
  Transpose: ([x, perm]) =>
    like(
      x!,
      constant(perm!, 'perm').map((axis) => x!.shape[axis]!),
    ),
  BroadcastTo: given(1, 0),
  Tile: ([x, multiples]) => {
    const m = constant(multiples!, 'multiples');
    return like(
      x!,
      x!.shape.map((size, i) => size * m[i]!),
    );
  },
  Pad: pad,
  PadV2: pad,
  MirrorPad: pad,
  Slice: ([x, begin, size]) => {
    const from = constant(begin!, 'begin');
    return like(
      x!,
      constant(size!, 'size').map((n, i) => (n === -1 ? x!.shape[i]! - from[i]! : n)),
    );
  },
  ConcatV2: (inputs) => {
    const parts = inputs.slice(0, -1);
    const [axis] = constant(inputs.at(-1)!, 'axis');
    const shape = [...parts[0]!.shape];
    shape[axis!] = parts.reduce((sum, part) => sum + part.shape[axis!]!, 0);
    return like(parts[0]!, shape);
  },
  Pack: (inputs, attrs) => {
    const shape = [...inputs[0]!.shape];
    shape.splice((attrs.axis as { i: number }).i, 0, inputs.length);
    return like(inputs[0]!, shape);
  },
  Unpack: ([x], attrs) => {
    const { i: axis } = attrs['axis'] as { i: number };
    return Array.from({ length: x!.shape[axis]! }, () => like(x!, without(x!.shape, axis))[0]!);
  },
  SplitV: ([x, sizes, dim]) => {
    const [axis] = constant(dim!, 'dim');
    return constant(sizes!, 'sizes').map((size) => ({
      shape: x!.shape.map((n, i) => (i === axis ? size : n)),
      dtype: x!.dtype,
    }));
  },
  GatherV2: ([x, indices, axis]) => {
    const [at] = constant(axis!, 'axis');
    return like(x!, [...x!.shape.slice(0, at), ...indices!.shape, ...x!.shape.slice(at! + 1)]);
  },
  /** To a smaller type: one more axis; to a larger one: the last axis goes. */
  Bitcast: ([x], attrs) => {
    const { type } = attrs.type as { type: number };
    const [from, to] = [BYTES[x!.dtype]!, BYTES[type]!];
    return [{ shape: to < from ? [...x!.shape, from / to] : x!.shape.slice(0, -1), dtype: type }];
  },
  // Products.
  BatchMatMulV2: ([a, b], attrs) => {
    const [m, ka] = flag(attrs, 'adj_x') ? a!.shape.slice(-2).reverse() : a!.shape.slice(-2);
    const [kb, n] = flag(attrs, 'adj_y') ? b!.shape.slice(-2).reverse() : b!.shape.slice(-2);
    if (ka !== kb) throw new Error(`inner sizes ${ka} and ${kb} differ`);
    return like(a!, [...broadcastShape(a!.shape.slice(0, -2), b!.shape.slice(0, -2)), m!, n!]);
  },
  Conv2D: window,
  Conv2DBackpropInput: given(0, 1),
  Conv2DBackpropFilter: given(1, 0),
  DepthwiseConv2dNative: ([x, filter], attrs) => {
    const [, , c, multiplier] = filter!.shape as [number, number, number, number];
    const [y] = window([x!, { ...filter!, shape: [filter!.shape[0]!, filter!.shape[1]!, c, c * multiplier] }], attrs);
    return [y!];
  },
  DepthwiseConv2dNativeBackpropInput: given(0, 1),
  DepthwiseConv2dNativeBackpropFilter: given(1, 0),
  // Pooling and normalisation.
  AvgPool: pool,
  MaxPool: pool,
  AvgPoolGrad: given(0, 1),
  MaxPoolGrad: sameAsFirst,
  FusedBatchNormV3: ([x, scale]) => [
    like(x!)[0]!,
    ...Array.from({ length: 5 }, () => ({ shape: scale!.shape, dtype: DType.FLOAT })),
  ],
  FusedBatchNormGradV3: ([dy, , scale]) => [
    like(dy!)[0]!,
    ...Array.from({ length: 4 }, () => ({ shape: scale!.shape, dtype: DType.FLOAT })),
  ],
  // State.
  ReadVariableOp: (_, attrs) => [
    { shape: (attrs._shape as { shape: number[] }).shape, dtype: (attrs.dtype as { type: number }).type },
  ],
};

/** Of an element. A resource is a handle. */
export const BYTES: Record<number, number> = {
  [DType.RESOURCE]: 0,
  [DType.UINT8]: 1,
  [DType.BOOL]: 1,
  [DType.BFLOAT16]: 2,
  [DType.HALF]: 2,
  [DType.INT32]: 4,
  [DType.FLOAT]: 4,
};

/** The names of all operations that a capture knows. */
export const CAPTURED_OPS: ReadonlySet<string> = new Set(Object.keys(SHAPES));

export function shapesOf(op: string, inputs: Operand[], attrs: Attrs): Result[] {
  return SHAPES[op]!(inputs, attrs);
}

function each(names: string, shape: ShapeFunction): Record<string, ShapeFunction> {
  return Object.fromEntries(names.split(' ').map((name) => [name, shape]));
}

function broadcastShape(a: number[], b: number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const [x, y] = [a[i - rank + a.length] ?? 1, b[i - rank + b.length] ?? 1];
    if (x !== y && x !== 1 && y !== 1) throw new Error(`[${a}] and [${b}] do not broadcast`);
    return x === 1 ? y : x;
  });
}

function windowSize(size: [number, number], kernel: [number, number], attrs: Attrs): [number, number] {
  const [, ...strides] = ints(attrs, 'strides');
  const [, ...dilations] = 'dilations' in attrs ? ints(attrs, 'dilations') : [1, 1, 1];
  const { s: padding } = attrs.padding as { s: string };
  const explicit = padding === 'EXPLICIT' ? ints(attrs, 'explicit_paddings').slice(2) : [0, 0, 0, 0];
  return size.map((n, i) => {
    const seen = n + explicit[2 * i]! + explicit[2 * i + 1]!;
    const out = Math.ceil((padding === 'SAME' ? n : seen - dilations[i]! * (kernel[i]! - 1)) / strides[i]!);
    if (out < 1) throw new Error(`a window of ${kernel} over ${size}`);
    return out;
  }) as [number, number];
}

function inferReshape(from: number[], to: number[]): number[] {
  const total = from.reduce((a, b) => a * b, 1);
  const known = to.reduce((a, b) => (b === -1 ? a : a * b), 1);
  const shape = to.map((size) => (size === -1 ? total / known : size));
  if (shape.reduce((a, b) => a * b, 1) !== total) throw new Error(`[${from}] cannot become [${to}]`);
  return shape;
}

function without(shape: number[], axis: number): number[] {
  return shape.filter((_, i) => i !== (axis + shape.length) % shape.length);
}

function constant(operand: Operand, what: string): number[] {
  if (operand.value === undefined) throw new Error(`its ${what} must be a constant`);
  return Array.from(operand.value);
}

function flag(attrs: Attrs, name: string): boolean {
  return (attrs[name] as { b: boolean } | undefined)?.b ?? false;
}

function ints(attrs: Attrs, name: string): number[] {
  return (attrs[name] as { list: { i: number[] } }).list.i;
}
