/**
 * On-the-fly Native Ensemble (Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018).
 *
 *   g    = softmax(ReLU(BN(W pool(trunk))))                          per sample, over the K branches
 *   zg   = sum_k g_k z_k                                             the gated ensemble
 *   L    = sum_k CE(z_k, y) + CE(zg, y) + w(e) sum_k T^2 KL(p_T(zg) || p_T(z_k))
 * The teacher is a constant: the gate learns from CE(zg) alone. Residual blocks before the gate make it ONE-E+. Networks
 * that share no trunk are gated by all their maps at their cuts, side by side.
 */
import type { MethodRecipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { cast, globalAveragePool, logSoftmax, relu } from '../graph/ops.ts';
import { distillation } from '../losses.ts';
import { basicBlock } from '../models/resnet.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import { branchClassifiers, numbered } from './common.ts';
import type { BranchOutputs, Method } from './method.ts';

type Options = MethodRecipe<'one'>;

export function one({ temperature, teacherEpsilon, gateBlocks }: Options): Method {
  return {
    reads: ['gate'],
    gateFeatures(b, trunkMap) {
      let map = trunkMap;
      for (let i = 0; i < gateBlocks; i++) map = basicBlock(b, `gate.blocks.${i}`, map, map.shape[3]!, 1);
      return globalAveragePool(cast(map, b.precision, 'f32'));
    },
    losses(b, { branches, crossEntropy, distillWeight }) {
      const logits = branches.map((branch) => branch.logits);
      const gated = gate(b, branches);
      const ce = logits.map(crossEntropy);
      const ceGated = crossEntropy(gated);
      const kd = logits.map((z) => distillation(z, gated, temperature, teacherEpsilon));
      const total = tf.add(tf.addN([...ce, ceGated]), tf.mul(distillWeight, tf.addN(kd)));
      return { ...numbered('ce', ce), 'ce.gated': ceGated, ...numbered('kd', kd), total };
    },
    classifiers: (b, { branches }) => ({ ...branchClassifiers(branches), gated: gate(b, branches) }),
  };
}

/** @returns f32[B, classes]: the branches' logits, weighted by the gate */
function gate(b: Builder, branches: BranchOutputs[]): Tensor {
  const seen = branches.flatMap((branch) => branch.gate ?? []);
  const scores = b.linear('gate.fc', seen.length === 1 ? seen[0]! : tf.concat(seen, 1), branches.length);
  const shape = [scores.shape[0]!, 1, 1, branches.length]; // a batch norm takes maps
  const normalised = tf.reshape(b.batchNorm('gate.bn', tf.reshape(scores, shape)), scores.shape);
  const weights = tf.split(tf.exp(logSoftmax(relu(normalised))), branches.length, 1);
  return tf.addN(branches.map(({ logits }, k) => tf.mul(logits, weights[k]!)));
}
