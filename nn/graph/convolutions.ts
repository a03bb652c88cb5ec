/**
 * Convolutions and their gradients, as tfjs kernels. Images are NHWC; the types are those of ops.ts.
 */
import { isOnCpu } from '../device.ts';
import { DType, type Tensor, tf } from '../tensorflow.ts';
import { intsAttr, operation, shapeTensor, T, typeAttr, windowAttrs } from './operation.ts';
import { after, type Precision, padded } from './ops.ts';
import { isFasterByWinograd, winogradConv2d } from './winograd.ts';

const runConv2d = operation('Conv2D', {
  run: (backend, { x, filter }, { stride, padding }) =>
    backend.executeSingleOutput('Conv2D', windowAttrs(stride as number, padding as 'SAME'), [x!, filter!]),
  keep: { inputs: ['x', 'filter'] },
  gradient: (dy, [x, filter], { precision, ...attrs }) => ({
    x: () => runConv2dInput({ filter: filter!, dy: dy as Tensor }, { ...attrs, shape: x!.shape }),
    filter: () => {
      const window = { ...attrs, shape: filter!.shape } as FilterWindow;
      return isFasterForward(window, dy as Tensor, precision as Precision)
        ? filterGradientForward(x!, dy as Tensor, window)
        : filterGradient(x!, dy as Tensor, window);
    },
  }),
});

type FilterWindow = { stride: number; padding: 'SAME' | 'VALID'; shape: number[] };

const runConv2dInput = operation('Conv2DBackpropInput', {
  run: (backend, { filter, dy }, { stride, padding, shape }) =>
    backend.executeSingleOutput('Conv2DBackpropInput', windowAttrs(stride as number, padding as 'SAME'), [
      shapeTensor(shape as number[]),
      filter!,
      dy!,
    ]),
});

const runConv2dFilter = operation('Conv2DBackpropFilter', {
  run: (backend, { x, dy }, { stride, padding, shape }) =>
    backend.executeSingleOutput('Conv2DBackpropFilter', windowAttrs(stride as number, padding as 'SAME'), [
      x!,
      shapeTensor(shape as number[]),
      dy!,
    ]),
});

const runWiden = operation('Widen', {
  run: (backend, { x }, { more }) => {
    const paddings = tf.tensor2d([0, 0, 0, 0, 0, 0, 0, more as number], [4, 2], 'int32');
    return backend.executeSingleOutput('Pad', [T, typeAttr('Tpaddings', DType.INT32)], [x!, paddings]);
  },
});

/**
 * x of 4 to 8 channels is widened to 16: for fewer than a vector's, oneDNN's f32 kernel writes past its memory where two
 * threads share an odd batch. Up to 3, as images have, it has another one.
 */
function filterGradient(x: Tensor, dy: Tensor, attrs: FilterWindow): Tensor {
  const [h, w, inputs, outputs] = attrs.shape as [number, number, number, number];
  if (inputs < 4 || inputs > 8) return runConv2dFilter({ x, dy }, attrs);
  const widened = runWiden({ x }, { more: 16 - inputs });
  const gradient = runConv2dFilter({ x: widened, dy }, { ...attrs, shape: [h, w, 16, outputs] });
  return tf.slice(gradient, [0, 0, 0, 0], attrs.shape);
}

const runDilatedConv2d = operation('DilatedConv2D', {
  run: (backend, { x, filter }, { dilations }) =>
    backend.executeSingleOutput(
      'Conv2D',
      [...windowAttrs(1, 'VALID'), intsAttr('dilations', [1, ...(dilations as number[]), 1])],
      [x!, filter!],
    ),
});

/**
 * The filter gradient as a forward convolution: dW[i, j, c, o] = sum over n, h, w of x[n, s h + i, s w + j, c] dy[n, h, w, o]
 * is a sum over a window, that of all maps of dy, if what was the batch becomes the channels. With x as one image
 * [1, H, W I, B], the I channels of a pixel side by side, a window dilated by s and s I sees one channel at a time, and its
 * k x k I places are the gradient as it should lie.
 * @param x [B, H, W, I]   @param dy [B, h, w, O]   @returns [k, k, I, O]
 */
function filterGradientForward(x: Tensor, dy: Tensor, { stride, padding, shape }: FilterWindow): Tensor {
  const [k, , inputs] = shape as [number, number, number, number];
  const [batch, h, w] = dy.shape as [number, number, number, number];
  const [height, width] = [stride * (h - 1) + k, stride * (w - 1) + k]; // that any window sees
  const late = after(x, dy); // or x would be turned as soon as forward has it, and kept twice
  const seen = tf.slice(padded(late, padding === 'SAME' ? k >> 1 : 0), [0, 0, 0, 0], [batch, height, width, inputs]);
  const turned = tf.transpose(tf.reshape(seen, [batch, height * width * inputs]));
  const image = tf.reshape(turned, [1, height, width * inputs, batch]);
  const gradient = runDilatedConv2d(
    { x: image, filter: tf.transpose(dy, [1, 2, 0, 3]) },
    { dilations: [stride, stride * inputs] },
  );
  return tf.reshape(gradient, shape);
}

/**
 * On a CPU in bf16, where oneDNN's filter gradients reach two fifths to two thirds of the speed of its forward convolutions.
 * Measured from 8 samples on; larger maps take too long to turn, and fewer outputs leave vectors empty.
 */
function isFasterForward({ shape }: FilterWindow, dy: Tensor, precision: Precision): boolean {
  const [k, , , outputs] = shape as [number, number, number, number];
  const [batch, h, w] = dy.shape as [number, number, number, number];
  return precision === 'bf16' && isOnCpu() && k > 1 && batch >= 8 && outputs >= 64 && h * w <= 28 * 28;
}

/**
 * A convolution that pads as PyTorch does: k >> 1 zeros on every side. With a stride, TensorFlow's SAME would pad the far
 * side alone, and explicit padding makes bf16 gradients many times slower on CPUs: so the zeros are added first.
 * @param x [B, H, W, I]   @param filter [k, k, I, O], k odd   @param precision of both in a capture
 * @returns [B, ceil(H / stride), ceil(W / stride), O]
 */
export function conv2d(x: Tensor, filter: Tensor, stride: number, precision: Precision = 'f32'): Tensor {
  const pad = filter.shape[0]! >> 1;
  if (stride === 1 && precision === 'f32' && isOnCpu() && isFasterByWinograd(x, filter))
    return winogradConv2d(x, filter);
  if (stride === 1) return runConv2d({ x, filter }, { stride, padding: 'SAME', precision });
  return runConv2d({ x: padded(x, pad), filter }, { stride, padding: 'VALID', precision });
}

const runDepthwise = operation('Depthwise', {
  run: (backend, { x, filter }, { stride, padding }) =>
    backend.executeSingleOutput('DepthwiseConv2dNative', windowAttrs(stride as number, padding as 'SAME'), [
      x!,
      filter!,
    ]),
  keep: { inputs: ['x', 'filter'] },
  gradient: (dy, [x, filter], attrs) => ({
    x: () => runDepthwiseInput({ filter: filter!, dy: dy as Tensor }, { ...attrs, shape: x!.shape }),
    filter: () => runDepthwiseFilter({ x: x!, dy: dy as Tensor }, { ...attrs, shape: filter!.shape }),
  }),
});

const runDepthwiseInput = operation('DepthwiseBackpropInput', {
  run: (backend, { filter, dy }, { stride, padding, shape }) =>
    backend.executeSingleOutput(
      'DepthwiseConv2dNativeBackpropInput',
      windowAttrs(stride as number, padding as 'SAME'),
      [shapeTensor(shape as number[]), filter!, dy!],
    ),
});

const runDepthwiseFilter = operation('DepthwiseBackpropFilter', {
  run: (backend, { x, dy }, { stride, padding, shape }) =>
    backend.executeSingleOutput(
      'DepthwiseConv2dNativeBackpropFilter',
      windowAttrs(stride as number, padding as 'SAME'),
      [x!, shapeTensor(shape as number[]), dy!],
    ),
});

/**
 * Each channel convolved with a filter of its own, padded as conv2d pads.
 * @param x [B, H, W, C]   @param filter [k, k, C, 1], k odd   @returns [B, ceil(H / stride), ceil(W / stride), C]
 */
export function depthwiseConv2d(x: Tensor, filter: Tensor, stride: number): Tensor {
  if (stride === 1) return runDepthwise({ x, filter }, { stride, padding: 'SAME' });
  return runDepthwise({ x: padded(x, filter.shape[0]! >> 1), filter }, { stride, padding: 'VALID' });
}
