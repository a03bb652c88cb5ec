/** Plain training: every branch learns from the labels alone. */
import { crossEntropy } from '../losses.ts';
import { tf } from '../tensorflow.ts';
import { branchClassifiers, numbered } from './common.ts';
import type { Method } from './method.ts';

export function vanilla(): Method {
  return {
    reads: [],
    losses(_, { branches, labels }) {
      const terms = branches.map(({ logits }) => crossEntropy(logits, labels));
      return { ...numbered('ce', terms), total: tf.addN(terms) };
    },
    classifiers: (_, { branches }) => branchClassifiers(branches),
  };
}
