/** What several methods are made of. */
import { logSoftmax } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { BranchOutputs } from './method.ts';

/** Terms by name and branch: "ce.0", "ce.1". */
export function numbered(name: string, terms: Tensor[]): Record<string, Tensor> {
  return Object.fromEntries(terms.map((term, k) => [`${name}.${k}`, term]));
}

/**
 * Each branch and, where there are several, their ensemble: by the mean of the logits (`ensemble`) and by the mean of the
 * probabilities, whose logarithms serve as logits.
 */
export function branchClassifiers(branches: BranchOutputs[]): Record<string, Tensor> {
  const logits = branches.map((branch) => branch.logits);
  const own = numbered('branch', logits);
  if (logits.length < 2) return own;
  const probabilities = mean(logits.map((z) => tf.exp(logSoftmax(z))));
  return { ...own, ensemble: mean(logits), 'ensemble.probabilities': tf.log(probabilities) };
}

/** @param tensors K of one shape   @returns their mean */
export function mean(tensors: Tensor[]): Tensor {
  return tf.mul(tf.addN(tensors), tf.scalar(1 / tensors.length));
}
