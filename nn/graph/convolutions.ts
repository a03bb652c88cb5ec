/**
 * Convolutions and their gradients, as tfjs kernels. Images are NHWC; the types are those of ops.ts.
 */
import { isOnCpu } from '../device.ts';
import { DType, type Tensor, tf } from '../tensorflow.ts';
import { intsAttr, operation, shapeTensor, T, typeAttr, windowAttrs } from './operation.ts';
import { after, cropped, type Precision, pad2d, padded } from './ops.ts';
import { isFasterByWinograd, winogradConv2d } from './winograd.ts';

/**
 * Of odd windows, which PyTorch pads with k >> 1 zeros on every side. With a stride, TensorFlow's SAME would pad the far side
 * alone, and explicit padding makes bf16 gradients many times slower on CPUs: so zeros are added first. Backward adds them anew.
 */
interface Window {
  stride: number;
  /** Zeros that are added first. */
  pad: number;
}

const windowOf = (filter: Tensor, stride: number): Window => ({
  stride,
  pad: stride === 1 ? 0 : filter.shape[0]! >> 1,
});
const attrsOf = ({ stride }: Window) => windowAttrs(stride, stride === 1 ? 'SAME' : 'VALID');

/** Zeros around a map of forward, for backward: TensorFlow would keep the ones of forward. */
const paddedAgain = (x: Tensor, { pad }: Window, dy: Tensor) => (pad === 0 ? x : padded(after(x, dy), pad));

/** What `run` gives as the gradient of the padded x, as that of x. */
function ofPadded(shape: number[], { pad }: Window, run: (shape: number[]) => Tensor): Tensor {
  const [batch, height, width, channels] = shape as [number, number, number, number];
  if (pad === 0) return run(shape);
  return cropped(run([batch, height + 2 * pad, width + 2 * pad, channels]), pad, shape);
}

const runConv2d = operation<Window & { precision: Precision }>('Conv2D', {
  run: (backend, { x, filter }, window) =>
    backend.executeSingleOutput('Conv2D', attrsOf(window), [pad2d(backend, x!, window.pad), filter!]),
  keep: { inputs: ['x', 'filter'] },
  gradient: (dy, [x, filter], { precision, ...window }) => ({
    x: () =>
      ofPadded(x!.shape, window, (shape) =>
        runConv2dInput({ filter: filter!, dy: dy as Tensor }, { ...window, shape }),
      ),
    filter: () => {
      const { shape } = filter!;
      return isFasterForward(shape, dy as Tensor, precision)
        ? filterGradientForward(x!, dy as Tensor, window, shape)
        : filterGradient(paddedAgain(x!, window, dy as Tensor), dy as Tensor, window, shape);
    },
  }),
});

const runConv2dInput = operation<Window & { shape: number[] }>('Conv2DBackpropInput', {
  run: (backend, { filter, dy }, { shape, ...window }) =>
    backend.executeSingleOutput('Conv2DBackpropInput', attrsOf(window), [shapeTensor(shape), filter!, dy!]),
});

const runConv2dFilter = operation<Window & { shape: number[] }>('Conv2DBackpropFilter', {
  run: (backend, { x, dy }, { shape, ...window }) =>
    backend.executeSingleOutput('Conv2DBackpropFilter', attrsOf(window), [x!, shapeTensor(shape), dy!]),
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
function filterGradient(x: Tensor, dy: Tensor, window: Window, shape: number[]): Tensor {
  const [h, w, inputs, outputs] = shape as [number, number, number, number];
  if (inputs < 4 || inputs > 8) return runConv2dFilter({ x, dy }, { ...window, shape });
  const widened = runWiden({ x }, { more: 16 - inputs });
  const gradient = runConv2dFilter({ x: widened, dy }, { ...window, shape: [h, w, 16, outputs] });
  return tf.slice(gradient, [0, 0, 0, 0], shape);
}

/** Of rows and of columns: the distance of what a window sees, and zeros before and after. */
type Axis = { dilation: number; before: number; after: number };

const runDilatedConv2d = operation<{ axes: Axis[] }>('DilatedConv2D', {
  run: (backend, { x, filter }, { axes }) => {
    const paddings = [0, 0, ...axes.flatMap(({ before, after }) => [before, after]), 0, 0];
    const dilations = [1, ...axes.map(({ dilation }) => dilation), 1];
    return backend.executeSingleOutput(
      'Conv2D',
      [...windowAttrs(1, 'EXPLICIT'), intsAttr('explicit_paddings', paddings), intsAttr('dilations', dilations)],
      [x!, filter!],
    );
  },
});

/**
 * The filter gradient as a forward convolution: dW[i, j, c, o] = sum over n, h, w of x[n, s h + i, s w + j, c] dy[n, h, w, o]
 * is a sum over a window, that of all maps of dy, if what was the batch becomes the channels. With x as one image
 * [1, H, W I, B], the I channels of a pixel side by side, a window dilated by s and s I sees one channel at a time, and its
 * k x k I places are the gradient as it should lie.
 * @param x [B, H, W, I]   @param dy [B, h, w, O]   @returns [k, k, I, O]
 */
function filterGradientForward(x: Tensor, dy: Tensor, { stride }: Window, shape: number[]): Tensor {
  const [k, , inputs] = shape as [number, number, number, number];
  const [batch, height, width] = x.shape as [number, number, number, number];
  const [, h, w] = dy.shape as [number, number, number, number];
  const late = after(x, dy); // or x would be turned as soon as forward has it, and kept twice
  const image = tf.reshape(tf.transpose(tf.reshape(late, [batch, -1])), [1, height, width * inputs, batch]);
  const axis = (size: number, windows: number, step: number) => {
    const before = k >> 1;
    const last = stride * (windows - 1) + k - before; // where the last window ends
    return { dilation: stride * step, before: before * step, after: (last - size) * step };
  };
  const axes = [axis(height, h, 1), axis(width, w, inputs)];
  return tf.reshape(runDilatedConv2d({ x: image, filter: tf.transpose(dy, [1, 2, 0, 3]) }, { axes }), shape);
}

/**
 * On a CPU in bf16, where oneDNN's filter gradients reach two fifths to two thirds of the speed of its forward convolutions.
 * Measured from 8 samples on; larger maps take too long to turn, and fewer outputs leave vectors empty.
 */
function isFasterForward(shape: number[], dy: Tensor, precision: Precision): boolean {
  const [k, , , outputs] = shape as [number, number, number, number];
  const [batch, h, w] = dy.shape as [number, number, number, number];
  return precision === 'bf16' && isOnCpu() && k > 1 && batch >= 8 && outputs >= 64 && h * w <= 28 * 28;
}

/**
 * A convolution that pads as PyTorch does: k >> 1 zeros on every side.
 * @param x [B, H, W, I]   @param filter [k, k, I, O], k odd   @param precision of both in a capture
 * @returns [B, ceil(H / stride), ceil(W / stride), O]
 */
export function conv2d(x: Tensor, filter: Tensor, stride: number, precision: Precision = 'f32'): Tensor {
  if (stride === 1 && precision === 'f32' && isOnCpu() && isFasterByWinograd(x, filter))
    return winogradConv2d(x, filter);
  return runConv2d({ x, filter }, { ...windowOf(filter, stride), precision });
}

const runDepthwise = operation<Window>('Depthwise', {
  run: (backend, { x, filter }, window) =>
    backend.executeSingleOutput('DepthwiseConv2dNative', attrsOf(window), [pad2d(backend, x!, window.pad), filter!]),
  keep: { inputs: ['x', 'filter'] },
  gradient: (dy, [x, filter], window) => ({
    x: () =>
      ofPadded(x!.shape, window, (shape) =>
        runDepthwiseInput({ filter: filter!, dy: dy as Tensor }, { ...window, shape }),
      ),
    filter: () =>
      runDepthwiseFilter(
        { x: paddedAgain(x!, window, dy as Tensor), dy: dy as Tensor },
        { ...window, shape: filter!.shape },
      ),
  }),
});

const runDepthwiseInput = operation<Window & { shape: number[] }>('DepthwiseBackpropInput', {
  run: (backend, { filter, dy }, { shape, ...window }) =>
    backend.executeSingleOutput('DepthwiseConv2dNativeBackpropInput', attrsOf(window), [
      shapeTensor(shape),
      filter!,
      dy!,
    ]),
});

const runDepthwiseFilter = operation<Window & { shape: number[] }>('DepthwiseBackpropFilter', {
  run: (backend, { x, dy }, { shape, ...window }) =>
    backend.executeSingleOutput('DepthwiseConv2dNativeBackpropFilter', attrsOf(window), [x!, shapeTensor(shape), dy!]),
});

/**
 * Each channel convolved with a filter of its own, padded as conv2d pads.
 * @param x [B, H, W, C]   @param filter [k, k, C, 1], k odd   @returns [B, ceil(H / stride), ceil(W / stride), C]
 */
export function depthwiseConv2d(x: Tensor, filter: Tensor, stride: number): Tensor {
  return runDepthwise({ x, filter }, windowOf(filter, stride));
}
