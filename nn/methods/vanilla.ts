/** Plain training: every branch learns from the labels alone. */
import { tf } from '../tensorflow.ts';
import { branchClassifiers, numbered } from './common.ts';
import type { Method } from './method.ts';

export function vanilla(): Method {
  return {
    reads: [],
    losses(_, { branches, crossEntropy }) {
      const terms = branches.map(({ logits }) => crossEntropy(logits));
      return { ...numbered('ce', terms), total: tf.addN(terms) };
    },
    classifiers: (_, { branches }) => branchClassifiers(branches),
  };
}
