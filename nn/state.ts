/** The phases that change a program's state, and give it. */
import type { Recipe } from '../core/recipe.ts';
import type { VariableStore } from './builder.ts';
import { flatLength, flatParts, splitFlat } from './flat.ts';
import type { Capture, Variable } from './graph/capture.ts';
import { type Tensor, tf } from './tensorflow.ts';
import type { VariableSpec } from './variables.ts';

const RUNNING_DECAY = 0.9; // of the running statistics a step: PyTorch's momentum of 0.1

/** All that a program learns. */
export interface Learnt {
  store: VariableStore;
  /** Of trainable variables, by name. */
  momenta: ReadonlyMap<string, Variable>;
  training: Recipe['training'];
}

/**
 * SGD with coupled weight decay: g + wd w enters the momentum, as in PyTorch. Averages follow what has changed.
 * @param variables in gradient order
 */
export function applyIn(
  c: Capture,
  phase: string,
  { store, momenta, training }: Learnt,
  variables: VariableSpec[],
): void {
  const { momentum, nesterov, ema } = training;
  c.phase(phase, () => {
    const learningRate = c.feed('learningRate', []);
    const sizes = variables.map((v) => v.size);
    const parts = splitFlat(c.feed('gradient', [flatLength(sizes)]), sizes);
    for (const [i, spec] of variables.entries()) {
      const variable = store.get(spec.name);
      const part = tf.reshape(parts[i]!, spec.shape);
      let changed: Tensor;
      if (spec.trainable) {
        const decay = weightDecayOf(spec, training);
        const gradient = tf.add(part, tf.mul(variable.read(), tf.scalar(decay)));
        changed = variable.applyMomentum(momenta.get(spec.name)!, learningRate, gradient, momentum, nesterov);
      } else {
        changed = blend(variable.read(), part, RUNNING_DECAY);
        variable.assign(changed);
      }
      if (ema === null) continue;
      const average = store.average(spec.name);
      average.assign(blend(average.read(), changed, ema.decay));
    }
    return {};
  });
}

/** The phases `read` and `write` of the whole state, flat (variables.ts). */
export function readAndWrite(c: Capture, { store, momenta, training }: Learnt): void {
  const { specs } = store;
  if (specs.length === 0) return;
  const trainable = specs.filter((v) => v.trainable);
  const averaged = training.ema === null ? [] : specs;
  const variables = [
    ...specs.map((v) => store.get(v.name)),
    ...trainable.map((v) => momenta.get(v.name)!),
    ...averaged.map((v) => store.average(v.name)),
  ];
  const sizes = [...specs, ...trainable, ...averaged].map((v) => v.size);
  c.phase('read', () => {
    c.write('state', flatLength(sizes), flatParts(variables.map((v, i) => tf.reshape(v.read(), [sizes[i]!]))));
    return {};
  });
  c.phase('write', () => {
    const parts = splitFlat(c.feed('state', [flatLength(sizes)]), sizes);
    for (const [i, variable] of variables.entries()) variable.assign(tf.reshape(parts[i]!, variable.shape));
    return {};
  });
}

/** decay a + (1 - decay) b */
function blend(a: Tensor, b: Tensor, decay: number): Tensor {
  return tf.add(tf.mul(a, tf.scalar(decay)), tf.mul(b, tf.scalar(1 - decay)));
}

/** The weight-decay group of a variable: FFL's fusion module, batch norms and biases, or all other weights. */
export function weightDecayOf(
  { name, kind }: Pick<VariableSpec, 'name' | 'kind'>,
  training: Recipe['training'],
): number {
  if (name.startsWith('fusion.')) return training.fusionWeightDecay;
  return kind === 'vector' ? (training.normWeightDecay ?? training.weightDecay) : training.weightDecay;
}
