/**
 * Recomputation (gradient checkpointing, Chen et al. 2016): of a part of a network only the input is kept for backward, which
 * computes the rest once more.
 *
 * The second time begins only when the gradient of the part's output is there: TensorFlow would otherwise see two equal
 * computations and keep one of them, or begin all parts at once.
 */
import { after } from './graph/ops.ts';
import { type Tensor, tf } from './tensorflow.ts';

/**
 * y = forward(x), and the same gradients, with x alone kept.
 * @param forward called twice; the second time what it leaves behind is not wanted: `again`
 * @param weights that it reads and that may be differentiated by
 * @param differentiable whether anything wants the gradient of x: images have none
 */
export function recomputed(
  x: Tensor,
  weights: Tensor[],
  differentiable: boolean,
  forward: (x: Tensor, again: boolean) => Tensor,
): Tensor {
  const inputs = differentiable ? [x, ...weights] : weights;
  const op = tf.customGrad((...args: unknown[]) => {
    const save = args.at(-1) as (tensors: Tensor[]) => void;
    save([x]);
    return {
      value: forward(x, false),
      gradFunc: (dy: Tensor, [kept]: Tensor[]) => {
        const from = after(kept!, dy);
        const xs = differentiable ? [from, ...weights] : weights;
        return gradientsWithin(() => forward(from, true), xs, dy);
      },
    } as never;
  });
  return op(...(inputs as never[])) as Tensor;
}

/** d y / d xs, while another gradient is being computed: tfjs keeps one tape, and drops it when one is done. */
function gradientsWithin(y: () => Tensor, xs: Tensor[], dy: Tensor): Tensor[] {
  const state = tf.engine().state;
  const tape = state.activeTape;
  try {
    return tf.engine().gradients(y as never, xs, dy as never).grads;
  } finally {
    state.activeTape = tape;
  }
}
