/**
 * 3x3 convolutions with fewer products: Winograd's minimal filtering F(4x4, 3x3), as Lavin and Gray 2016 ("Fast Algorithms for
 * Convolutional Neural Networks"). Four by four places of y come of 36 products a channel instead of 144:
 *
 *     y = A^T [(G f G^T) * (B^T x B)] A
 *
 * for x a window of 6x6, f the filter and * the product place by place, which the sum over channels makes a matrix product.
 * Both gradients have as many products, and the same matrices transposed.
 *
 * The windows of a map lie 4 apart. Along an axis, B^T or A for all of them is one matrix, which pads and crops as well.
 */
import { type Tensor, tf } from '../tensorflow.ts';
import { after } from './ops.ts';

type Matrix = number[][];

const TILE = 4;
const WINDOW = 6;
const PLACES = WINDOW * WINDOW;

// For the points 0, 1, -1, 1/2, -2 and infinity: two thirds of the rounding of 0, 1, -1, 2, -2.
const B_TRANSPOSED: Matrix = [
  [1 / 2, -3 / 4, -1, 3 / 4, 1 / 2, 0],
  [0, -1 / 3, 1 / 6, 5 / 6, 1 / 3, 0],
  [0, -1 / 3, 5 / 6, -1 / 6, -1 / 3, 0],
  [0, 16 / 15, 8 / 15, -16 / 15, -8 / 15, 0],
  [0, 8 / 15, -16 / 15, -8 / 15, 16 / 15, 0],
  [0, 1 / 2, -3 / 4, -1, 3 / 4, 1 / 2],
];
const G: Matrix = [
  [2, 0, 0],
  [1, 1, 1],
  [1, -1, 1],
  [2, 1, 1 / 2],
  [1 / 16, -1 / 8, 1 / 4],
  [0, 0, 2],
];
const A: Matrix = [
  [1, 0, 0, 0],
  [1, 1, 1, 1],
  [1, -1, 1, -1],
  [1, 1 / 2, 1 / 4, 1 / 8],
  [1, -2, 4, -8],
  [0, 0, 0, 1],
];

/** The places of a filter: G f G^T, for f with its nine in a column. */
const OF_FILTER: Matrix = G.flatMap((a) => G.map((b) => a.flatMap((p) => b.map((q) => p * q))));

/**
 * Whether winogradConv2d is the faster one: for enough channels, or its sums before and after weigh more; for enough tiles, or
 * the filters do; and where most of a tile lies on the map. Measured on CPUs in f32.
 * @param x [B, H, W, I]   @param filter [k, k, I, O]
 */
export function isFasterByWinograd({ shape: x }: Tensor, { shape: filter }: Tensor): boolean {
  const [batch, height, width] = x as [number, number, number];
  const [k, , inputs, outputs] = filter as [number, number, number, number];
  const tiles = batch * Math.ceil(height / TILE) * Math.ceil(width / TILE);
  const used = (batch * height * width) / (tiles * TILE * TILE);
  return k === 3 && Math.min(inputs, outputs) >= 256 && tiles >= 64 && used > 0.75;
}

/**
 * The convolution with a stride of 1 and one zero around. Rounding is about eight times a direct one's: 2e-6 of the result's
 * root mean square for 256 channels. In 16 bits that would be too much.
 * @param x f32[B, H, W, I]   @param filter f32[3, 3, I, O]   @returns f32[B, H, W, O]
 */
export function winogradConv2d(x: Tensor, filter: Tensor): Tensor {
  const [, height, width] = x.shape as [number, number, number];
  const inputAxes = [height, width].map((size) => along(size, B_TRANSPOSED, -1));
  const outputAxes = [height, width].map((size) => along(size, A, 0));
  const op = tf.customGrad((...args: unknown[]) => {
    const save = args.at(-1) as (tensors: Tensor[]) => void;
    save([x, filter]);
    // The filter's places wait for x: all filters of a network would be there from the beginning, at four times their size.
    return {
      value: fromPlaces(tf.matMul(toPlaces(x, inputAxes), placesOf(after(filter, x))), outputAxes, x.shape[0]!),
      gradFunc: (dy: Tensor, [x, filter]: [Tensor, Tensor]) => {
        // Both places are computed anew: kept, x's would take three times what x does. And the filter's gradient comes first:
        // TensorFlow would put it off, as nothing waits for it, and keep what it is made of.
        const dys = toPlaces(dy, outputAxes);
        const dFilters = tf.matMul(toPlaces(after(x, dy), inputAxes), dys, true);
        const dFilter = tf.reshape(
          tf.matMul(matrix(OF_FILTER), tf.reshape(dFilters, [PLACES, -1]), true),
          filter.shape,
        );
        const dxs = tf.matMul(dys, placesOf(after(filter, dFilter)), false, true);
        return [fromPlaces(dxs, inputAxes, x.shape[0]!), dFilter];
      },
    } as never;
  });
  return op(...([x, filter] as never[])) as Tensor;
}

const matrix = (values: Matrix) => tf.tensor2d(values);

/** @param filter [3, 3, I, O]   @returns [36, I, O] */
function placesOf(filter: Tensor): Tensor {
  const [, , inputs, outputs] = filter.shape as [number, number, number, number];
  return tf.reshape(tf.matMul(matrix(OF_FILTER), tf.reshape(filter, [9, -1])), [PLACES, inputs, outputs]);
}

/** One matrix for all windows along an axis, [6 tiles, size]: row i tiles + t is the i-th of window t, which begins at 4 t + from. */
function along(size: number, window: Matrix, from: number): Matrix {
  const tiles = Math.ceil(size / TILE);
  return window.flatMap((row) =>
    Array.from({ length: tiles }, (_, t) => Array.from({ length: size }, (_, at) => row[at - TILE * t - from] ?? 0)),
  );
}

/** @param x [B, H, W, C]   @param axes [6 h, H] and [6 w, W] of h and w tiles   @returns [36, B h w, C] */
function toPlaces(x: Tensor, [rows, columns]: Matrix[]): Tensor {
  const [batch, height, width, channels] = x.shape as [number, number, number, number];
  const [h, w] = [rows!.length / WINDOW, columns!.length / WINDOW];
  const high = tf.matMul(tf.tensor3d([rows!]), tf.reshape(x, [batch, height, width * channels]));
  const both = tf.matMul(tf.tensor3d([columns!]), tf.reshape(high, [batch * h * WINDOW, width, channels]));
  const turned = tf.transpose(tf.reshape(both, [batch, WINDOW, h, WINDOW, w * channels]), [1, 3, 0, 2, 4]);
  return tf.reshape(turned, [PLACES, batch * h * w, channels]);
}

/** The transpose of toPlaces.   @param places [36, B h w, C]   @returns [B, H, W, C] */
function fromPlaces(places: Tensor, [rows, columns]: Matrix[], batch: number): Tensor {
  const channels = places.shape[2]!;
  const [h, w] = [rows!.length / WINDOW, columns!.length / WINDOW];
  const [height, width] = [rows![0]!.length, columns![0]!.length];
  const turned = tf.transpose(tf.reshape(places, [WINDOW, WINDOW, batch, h, w * channels]), [2, 0, 3, 1, 4]);
  const wide = tf.matMul(tf.tensor3d([columns!]), tf.reshape(turned, [batch * h * WINDOW, w * WINDOW, channels]), true);
  const both = tf.matMul(tf.tensor3d([rows!]), tf.reshape(wide, [batch, h * WINDOW, width * channels]), true);
  return tf.reshape(both, [batch, height, width, channels]);
}
