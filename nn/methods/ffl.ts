/**
 * Feature Fusion Learning (Kim, Hyun, Chung, Kwak: Feature Fusion for Online Mutual Knowledge Distillation, ICPR 2020).
 *
 * With K branches, logits z_k and fused logits zf:
 *   ze    = mean_k z_k                                               the ensemble
 *   L_CE  = sum_k CE(z_k, y) + CE(zf, y)
 *   L_EKD = T^2 KL(p_T(ze) || p_T(zf))                               the ensemble teaches the fused classifier
 *   L_FKD = sum_k T^2 KL(p_T(zf) || p_T(z_k))                        the fused classifier teaches every branch
 *   L     = L_CE + w(e) (L_EKD + L_FKD)
 * Teachers are constants. The feature maps are not: L_EKD and CE(zf) reach branches and trunk through the fusion module.
 */
import type { Recipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { cast, globalAveragePool, relu } from '../graph/ops.ts';
import { crossEntropy, distillation } from '../losses.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Method } from './method.ts';
import { branchClassifiers, meanLogits } from './vanilla.ts';

type Options = Extract<Recipe['method'], { name: 'ffl' }>;

export function ffl({ temperature, teacherEpsilon, fusionChannels }: Options): Method {
  const fuse = (b: Builder, features: Tensor[], classes: number) => fusionModule(b, features, fusionChannels, classes);
  const kl = (student: Tensor, teacher: Tensor) => distillation(student, teacher, temperature, teacherEpsilon);
  return {
    losses(b, { branches, classes, labels, distillWeight }) {
      const logits = branches.map((branch) => branch.logits);
      const fused = fuse(
        b,
        branches.map((branch) => branch.features),
        classes,
      );
      const ensemble = meanLogits(logits);

      const ce = logits.map((z) => crossEntropy(z, labels));
      const ceFused = crossEntropy(fused, labels);
      const ekd = kl(fused, ensemble);
      const fkd = logits.map((z) => kl(z, fused));
      const total = tf.add(tf.addN([...ce, ceFused]), tf.mul(distillWeight, tf.addN([ekd, ...fkd])));

      const named = (name: string, terms: Tensor[]) =>
        Object.fromEntries(terms.map((term, k) => [`${name}.${k}`, term]));
      return { ...named('ce', ce), 'ce.fused': ceFused, ekd, ...named('fkd', fkd), total };
    },
    classifiers(b, { branches, classes }) {
      const fused = fuse(
        b,
        branches.map((branch) => branch.features),
        classes,
      );
      return { ...branchClassifiers(branches.map((branch) => branch.logits)), fused };
    },
  };
}

/**
 * concat - depthwise 3x3 - BN - ReLU - pointwise - BN - ReLU - pool - linear.
 * @param features K of [B, H, W, C_k] in the builder's precision   @returns f32[B, classes]
 */
function fusionModule(b: Builder, features: Tensor[], channels: number | null, classes: number): Tensor {
  const concat = tf.concat(features, 3);
  const u = relu(b.batchNorm('fusion.bn1', b.depthwise('fusion.depthwise', concat)));
  const widest = Math.max(...features.map((map) => map.shape[3]!));
  const v = relu(b.batchNorm('fusion.bn2', b.conv('fusion.pointwise', u, 1, channels ?? widest)));
  return b.linear('fusion.fc', globalAveragePool(cast(v, b.precision, 'f32')), classes);
}
