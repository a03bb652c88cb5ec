/**
 * Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu, CVPR 2018): every network learns from its peers' predictions.
 *
 *   L_k = CE(z_k, y) + w mean_{l != k} T^2 KL(p_T(z_l) || p_T(z_k))
 * with the peers constant. `reduce: sum` adds the peers up, as the authors' code does; `target: peerMean` makes the mean of
 * their logits the one teacher. `update: alternate` is their Algorithm 1: on the same batch, one network after another,
 * each seeing what the ones before have just learnt.
 */
import type { MethodRecipe } from '../../core/recipe.ts';
import { distillation } from '../losses.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import { branchClassifiers, mean } from './common.ts';
import type { Method } from './method.ts';

type Options = MethodRecipe<'dml'>;

export function dml({ temperature, teacherEpsilon, reduce, target }: Options): Method {
  const kl = (student: Tensor, teacher: Tensor) => distillation(student, teacher, temperature, teacherEpsilon);
  const mutual = (logits: Tensor[], k: number): Tensor => {
    const peers = logits.filter((_, l) => l !== k);
    if (target === 'peerMean') return kl(logits[k]!, mean(peers));
    const terms = peers.map((peer) => kl(logits[k]!, peer));
    return reduce === 'mean' ? mean(terms) : tf.addN(terms);
  };
  return {
    reads: [],
    losses(_, { branches, crossEntropy, distillWeight }, round) {
      const logits = branches.map((branch) => branch.logits);
      const learning = logits.flatMap((_, k) => (round === 'all' || round === `network.${k}` ? [k] : []));
      const ce = learning.map((k) => [`ce.${k}`, crossEntropy(logits[k]!)] as const);
      const distilled = learning.map((k) => [`kl.${k}`, mutual(logits, k)] as const);
      const sum = (terms: (readonly [string, Tensor])[]) => tf.addN(terms.map(([, term]) => term));
      const total = tf.add(sum(ce), tf.mul(distillWeight, sum(distilled)));
      return { ...Object.fromEntries([...ce, ...distilled]), total };
    },
    classifiers: (_, { branches }) => branchClassifiers(branches),
    learns: ({ branch }, round) => round === 'all' || round === `network.${branch}`,
  };
}
