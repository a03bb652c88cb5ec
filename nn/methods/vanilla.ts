/** Plain training: every branch learns from the labels alone. */
import { crossEntropy } from '../losses.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Method } from './method.ts';

export function vanilla(): Method {
  return {
    losses(_, { branches, labels }) {
      const terms = branches.map(({ logits }) => crossEntropy(logits, labels));
      const named = Object.fromEntries(terms.map((term, k) => [`ce.${k}`, term]));
      return { ...named, total: tf.addN(terms) };
    },
    classifiers: (_, { branches }) => branchClassifiers(branches.map(({ logits }) => logits)),
  };
}

/** Each branch and, where there are several, their ensemble: the mean of the logits. */
export function branchClassifiers(logits: Tensor[]): Record<string, Tensor> {
  const named = Object.fromEntries(logits.map((z, k) => [`branch.${k}`, z]));
  return logits.length > 1 ? { ...named, ensemble: meanLogits(logits) } : named;
}

/** @param logits K of f32[B, C]   @returns f32[B, C] */
export function meanLogits(logits: Tensor[]): Tensor {
  return tf.mul(tf.addN(logits), tf.scalar(1 / logits.length));
}
