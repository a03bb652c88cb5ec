/**
 * TensorFlow operations that tfjs lacks or whose gradients it writes as many small ones: as tfjs kernels with tfjs
 * gradients, so that they run eagerly and are captured alike.
 *
 * Images are NHWC. Types: `f32` unless said; where a capture computes in bf16 or f16, so are x and y, and tfjs takes them for
 * float32.
 */
import { DType, eagerBackend, type NodeBackend, type OpAttr, type Tensor, tf } from '../tensorflow.ts';
import { boolAttr, floatAttr, intsAttr, operation, shapeTensor, T, typeAttr, windowAttrs } from './operation.ts';
import { AFTER } from './recorder.ts';

export type Precision = 'f32' | 'bf16' | 'f16';

// ------------------------------------------------------------------------------------------------ types

const DTYPES: Record<Precision, DType> = { f32: DType.FLOAT, bf16: DType.BFLOAT16, f16: DType.HALF };

const runCast = operation<{ from: Precision; to: Precision }>('Cast', {
  run: (backend, { x }, { to }) =>
    // Eagerly everything is f32: tfjs has no other.
    backend === eagerBackend
      ? backend.executeSingleOutput('Identity', [T], [x!])
      : backend.executeSingleOutput('Cast', [typeAttr('SrcT', DType.FLOAT), typeAttr('DstT', DTYPES[to])], [x!]),
  gradient: (dy, _, { from, to }) => ({ x: (): Tensor => runCast({ x: dy as Tensor }, { from: to, to: from }) }),
});

/** x in another precision; its gradient comes back in x's own. */
export function cast(x: Tensor, from: Precision, to: Precision): Tensor {
  return from === to ? x : runCast({ x }, { from, to });
}

const runStopGradient = operation('StopGradient', {
  run: (backend, { x }) => backend.executeSingleOutput('Identity', [T], [x!]),
  gradient: (dy) => ({ x: () => tf.zerosLike(dy as Tensor) }),
});

/** x. `then` is called when autodiff has the gradient of it, before it goes on to what x was made of. */
export function atGradient(x: Tensor, then: () => void): Tensor {
  const op = tf.customGrad((...args: unknown[]) => {
    const gradFunc = (dy: Tensor) => {
      then();
      return dy.clone();
    };
    return { value: (args[0] as Tensor).clone(), gradFunc } as never;
  });
  return op(x as never) as Tensor;
}

/** x, through which no gradient flows: a teacher. */
export function stopGradient(x: Tensor): Tensor {
  return runStopGradient({ x });
}

const runBitcast = operation('Bitcast', {
  run: (backend, { x }, { type }) =>
    backend.executeSingleOutput('Bitcast', [T, typeAttr('type', type as number)], [x!]),
});

/** Only in a capture. @param x f32[n], n even   @returns f32[n / 2]: the memory of two bf16 each, rounded to nearest */
export function packBf16(x: Tensor): Tensor {
  return runBitcast({ x: tf.reshape(cast(x, 'f32', 'bf16'), [x.size / 2, 2]) }, { type: DType.FLOAT });
}

/** Only in a capture. @param words f32[n / 2], as packBf16 makes them   @returns f32[n] */
export function unpackBf16(words: Tensor): Tensor {
  return cast(tf.reshape(runBitcast({ x: words }, { type: DType.BFLOAT16 }), [2 * words.size]), 'bf16', 'f32');
}

const runAfter = operation('After', {
  run: (backend, { x, other }) =>
    backend === eagerBackend
      ? backend.executeSingleOutput('Identity', [T], [x!])
      : backend.executeSingleOutput(AFTER, [T], [x!, other!]),
});

/** x, once `other` has been computed, and for TensorFlow another tensor than x. It has no gradient. */
export function after(x: Tensor, other: Tensor): Tensor {
  return runAfter({ x, other });
}

// ------------------------------------------------------------------------------------------------ padding

export function pad2d(backend: NodeBackend, x: Tensor, p: number): Tensor {
  if (p === 0) return x;
  const paddings = tf.tensor2d([0, 0, p, p, p, p, 0, 0], [4, 2], 'int32');
  return backend.executeSingleOutput('Pad', [T, typeAttr('Tpaddings', DType.INT32)], [x, paddings]);
}

export function cropped(x: Tensor, pad: number, shape: number[]): Tensor {
  return tf.slice(x, [0, pad, pad, 0], shape);
}

const runPad = operation<{ pad: number }>('Pad', { run: (backend, { x }, { pad }) => pad2d(backend, x!, pad) });

/** `pad` zeros on every side of every map. It has no gradient. */
export function padded(x: Tensor, pad: number): Tensor {
  return runPad({ x }, { pad });
}

// ------------------------------------------------------------------------------------------------ pooling

const poolAttrs = (size: number, stride: number): OpAttr[] => [
  ...windowAttrs(stride, 'VALID'),
  intsAttr('ksize', [1, size, size, 1]),
];

const runMaxPool = operation('MaxPool', {
  run: (backend, { x }, { size, stride }) =>
    backend.executeSingleOutput('MaxPool', poolAttrs(size as number, stride as number), [x!]),
  keep: { inputs: ['x'], outputs: [true] },
  gradient: (dy, [x, y], attrs) => ({ x: () => runMaxPoolGrad({ x: x!, y: y!, dy: dy as Tensor }, attrs) }),
});

const runMaxPoolGrad = operation('MaxPoolGrad', {
  run: (backend, { x, y, dy }, { size, stride }) =>
    backend.executeSingleOutput('MaxPoolGrad', poolAttrs(size as number, stride as number), [x!, y!, dy!]),
});

/** The largest of each size x size window.   @param x [B, H, W, C]   @returns [B, floor((H - size) / stride) + 1, ..., C] */
export function maxPool(x: Tensor, size: number, stride: number): Tensor {
  return runMaxPool({ x }, { size, stride });
}

const runAvgPool = operation('AvgPool', {
  run: (backend, { x }, { size }) =>
    backend.executeSingleOutput('AvgPool', poolAttrs(size as number, size as number), [x!]),
  gradient: (dy, _, attrs) => ({ x: () => runAvgPoolGrad({ dy: dy as Tensor }, attrs) }),
});

const runAvgPoolGrad = operation('AvgPoolGrad', {
  run: (backend, { dy }, { size, shape }) =>
    backend.executeSingleOutput('AvgPoolGrad', poolAttrs(size as number, size as number), [
      shapeTensor(shape as number[]),
      dy!,
    ]),
});

/** The mean of each size x size window, side by side.   @param x [B, H, W, C]   @returns [B, floor(H / size), ..., C] */
export function avgPool(x: Tensor, size: number): Tensor {
  return runAvgPool({ x }, { size, shape: x.shape });
}

// ------------------------------------------------------------------------------------------------ layers

const batchNormAttrs = (epsilon: number, training: boolean): OpAttr[] => [
  T,
  typeAttr('U', DType.FLOAT),
  floatAttr('epsilon', epsilon),
  boolAttr('is_training', training),
];

const runBatchNorm = operation('BatchNorm', {
  run: (backend, { x, scale, offset, mean, variance }, { epsilon, training }) =>
    backend.executeMultipleOutputs(
      'FusedBatchNormV3',
      batchNormAttrs(epsilon as number, training as boolean),
      [x!, scale!, offset!, mean ?? tf.tensor1d([]), variance ?? tf.tensor1d([])],
      6,
    ),
  keep: { inputs: ['x', 'scale'], outputs: [false, false, false, true, true, true] },
  gradient: (dys, [x, scale, ...reserved], { epsilon }) => {
    let gradients: Tensor[] | undefined;
    const part = (i: number) => () => {
      // tfjs asks for the three one by one, and tidies up after each.
      gradients ??= runBatchNormGrad<Tensor[]>(
        { dy: (dys as Tensor[])[0]!, x: x!, scale: scale!, r1: reserved[0]!, r2: reserved[1]!, r3: reserved[2]! },
        { epsilon },
      ).map((gradient) => tf.keep(gradient));
      return gradients[i]!;
    };
    return { x: part(0), scale: part(1), offset: part(2) };
  },
});

const runBatchNormGrad = operation('BatchNormGrad', {
  run: (backend, { dy, x, scale, r1, r2, r3 }, { epsilon }) =>
    backend.executeMultipleOutputs(
      'FusedBatchNormGradV3',
      batchNormAttrs(epsilon as number, true),
      [dy!, x!, scale!, r1!, r2!, r3!],
      5,
    ),
});

/**
 * Batch normalisation with the batch's own statistics.
 * @param x [B, H, W, C]   @param scale, offset f32[C]
 * @returns y like x; mean f32[C] and the unbiased variance f32[C] (n/(n-1), as PyTorch's running variance takes it)
 */
export function batchNormTraining(
  x: Tensor,
  scale: Tensor,
  offset: Tensor,
  epsilon: number,
): { y: Tensor; mean: Tensor; variance: Tensor } {
  const [y, mean, variance] = runBatchNorm<Tensor[]>({ x, scale, offset }, { epsilon, training: true });
  return { y: y!, mean: mean!, variance: variance! };
}

/** Batch normalisation with given statistics, for evaluation: it has no gradient. */
export function batchNormInference(
  x: Tensor,
  scale: Tensor,
  offset: Tensor,
  mean: Tensor,
  variance: Tensor,
  epsilon: number,
): Tensor {
  return runBatchNorm<Tensor[]>({ x, scale, offset, mean, variance }, { epsilon, training: false })[0]!;
}

const runRelu = operation('Relu', {
  run: (backend, { x }) => backend.executeSingleOutput('Relu', [T], [x!]),
  keep: { outputs: [true] },
  gradient: (dy, [y]) => ({ x: () => runReluGrad({ dy: dy as Tensor, y: y! }) }),
});

const runReluGrad = operation('ReluGrad', {
  run: (backend, { dy, y }) => backend.executeSingleOutput('ReluGrad', [T], [dy!, y!]),
});

export function relu(x: Tensor): Tensor {
  return runRelu({ x });
}

const runPaddedRelu = operation('PaddedRelu', {
  run: (backend, { x }, { pad }) => pad2d(backend, backend.executeSingleOutput('Relu', [T], [x!]), pad as number),
  keep: { outputs: [true] },
  gradient: (dy, [y], { pad, shape }) => ({
    x: () => cropped(runReluGrad({ dy: dy as Tensor, y: y! }), pad as number, shape as number[]),
  }),
});

/**
 * relu(x) with `pad` zeros on every side of every map: padded for a max pool, PyTorch's -infinity gives the same value and
 * gradient. Of it all only the padded result is kept for backward.
 */
export function paddedRelu(x: Tensor, pad: number): Tensor {
  return runPaddedRelu({ x }, { pad, shape: x.shape });
}

const runRelu6 = operation('Relu6', {
  run: (backend, { x }) => backend.executeSingleOutput('Relu6', [T], [x!]),
  keep: { outputs: [true] },
  gradient: (dy, [y]) => ({ x: () => runRelu6Grad({ dy: dy as Tensor, y: y! }) }),
});

const runRelu6Grad = operation('Relu6Grad', {
  run: (backend, { dy, y }) => backend.executeSingleOutput('Relu6Grad', [T], [dy!, y!]),
});

/** min(max(x, 0), 6) */
export function relu6(x: Tensor): Tensor {
  return runRelu6({ x });
}

const runGlobalAveragePool = operation('GlobalAveragePool', {
  run: (backend, { x }) =>
    backend.executeSingleOutput(
      'Mean',
      [T, typeAttr('Tidx', DType.INT32), boolAttr('keep_dims', false)],
      [x!, tf.tensor1d([1, 2], 'int32')],
    ),
  gradient: (dy, _, { shape }) => ({
    x: () => {
      const [batch, height, width, channels] = shape as [number, number, number, number];
      const share = tf.mul(dy as Tensor, tf.scalar(1 / (height * width)));
      return runBroadcast({ x: tf.reshape(share, [batch, 1, 1, channels]) }, { shape });
    },
  }),
});

const runBroadcast = operation('Broadcast', {
  run: (backend, { x }, { shape }) =>
    backend.executeSingleOutput(
      'BroadcastTo',
      [T, typeAttr('Tidx', DType.INT32)],
      [x!, shapeTensor(shape as number[])],
    ),
});

/** @param x f32[B, H, W, C]   @returns f32[B, C] */
export function globalAveragePool(x: Tensor): Tensor {
  return runGlobalAveragePool({ x }, { shape: x.shape });
}

// ------------------------------------------------------------------------------------------------ losses

const runLogSoftmax = operation('LogSoftmax', {
  run: (backend, { x }) => backend.executeSingleOutput('LogSoftmax', [T], [x!]),
  keep: { outputs: [true] },
  gradient: (dy, [y]) => ({
    x: () => tf.sub(dy as Tensor, tf.mul(tf.exp(y!), tf.sum(dy as Tensor, -1, true))),
  }),
});

/** @param x f32[B, K] logits   @returns f32[B, K] nats */
export function logSoftmax(x: Tensor): Tensor {
  return runLogSoftmax({ x });
}

const runCrossEntropy = operation('CrossEntropy', {
  run: (backend, { logits, labels }) =>
    backend.executeMultipleOutputs(
      'SparseSoftmaxCrossEntropyWithLogits',
      [T, typeAttr('Tlabels', DType.INT32)],
      [logits!, labels!],
      2,
    ),
  keep: { outputs: [false, true] },
  gradient: (dys, [softmaxMinusTarget]) => ({
    logits: () => tf.mul(tf.expandDims((dys as Tensor[])[0]!, 1), softmaxMinusTarget!),
    labels: () => tf.zerosLike((dys as Tensor[])[0]!),
  }),
});

/** @param logits f32[B, K]   @param labels i32[B], 0 <= label < K   @returns f32[B] nats */
export function crossEntropy(logits: Tensor, labels: Tensor): Tensor {
  return runCrossEntropy<Tensor[]>({ logits, labels })[0]!;
}

const runInTopK = operation('InTopK', {
  run: (backend, { predictions, targets }, { k }) =>
    backend.executeSingleOutput(
      'InTopKV2',
      [typeAttr('T', DType.INT32)],
      [predictions!, targets!, tf.scalar(k as number, 'int32')],
    ),
});

/** @param predictions f32[B, K]   @param targets i32[B]   @returns bool[B]: the target is among the k largest */
export function inTopK(predictions: Tensor, targets: Tensor, k: number): Tensor {
  return runInTopK({ predictions, targets }, { k });
}
