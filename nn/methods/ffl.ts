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
 *
 * Ablations leave L_EKD or L_FKD out; without a fusion module the ensemble takes the fused classifier's place as teacher.
 */
import type { MethodRecipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { cast, globalAveragePool, relu } from '../graph/ops.ts';
import { distillation } from '../losses.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import { branchClassifiers, mean, numbered } from './common.ts';
import type { BranchOutputs, Method } from './method.ts';

type Options = MethodRecipe<'ffl'>;

export function ffl({ temperature, teacherEpsilon, fusion, ensembleToFused, fusedToBranch }: Options): Method {
  const fuse = (b: Builder, branches: BranchOutputs[], classes: number) =>
    fusion && fusionModule(b, align(b, branches, fusion.align), fusion.channels, classes);
  const kl = (student: Tensor, teacher: Tensor) => distillation(student, teacher, temperature, teacherEpsilon);
  return {
    reads: fusion === null ? [] : ['map'],
    losses(b, { branches, classes, crossEntropy, distillWeight }) {
      const logits = branches.map((branch) => branch.logits);
      const fused = fuse(b, branches, classes);
      const ensemble = mean(logits);
      const teacher = fused ?? ensemble;

      const ce = numbered('ce', logits.map(crossEntropy));
      if (fused !== null) ce['ce.fused'] = crossEntropy(fused);
      const kd: Record<string, Tensor> = fused !== null && ensembleToFused ? { ekd: kl(fused, ensemble) } : {};
      if (fusedToBranch)
        Object.assign(
          kd,
          numbered(
            'fkd',
            logits.map((z) => kl(z, teacher)),
          ),
        );

      const distilled = Object.values(kd);
      const labelled = tf.addN(Object.values(ce));
      const total = distilled.length === 0 ? labelled : tf.add(labelled, tf.mul(distillWeight, tf.addN(distilled)));
      return { ...ce, ...kd, total };
    },
    classifiers(b, { branches, classes }) {
      const fused = fuse(b, branches, classes);
      return { ...branchClassifiers(branches), ...(fused !== null && { fused }) };
    },
  };
}

/**
 * concat - depthwise 3x3 - BN - ReLU - pointwise - BN - ReLU - pool - linear.
 * @param maps K of [B, H, W, C_k] in the builder's precision   @returns f32[B, classes]
 */
function fusionModule(b: Builder, maps: Tensor[], channels: number | null, classes: number): Tensor {
  const concat = tf.concat(maps, 3);
  const u = relu(b.batchNorm('fusion.bn1', b.depthwise('fusion.depthwise', concat)));
  const widest = Math.max(...maps.map((map) => map.shape[3]!));
  const v = relu(b.batchNorm('fusion.bn2', b.conv('fusion.pointwise', u, 1, channels ?? widest)));
  return b.linear('fusion.fc', globalAveragePool(cast(v, b.precision, 'f32')), classes);
}

/**
 * The branches' maps at the size of the smallest: a larger one by a 3x3 convolution with stride, batch norm and ReLU where
 * the sizes' ratio is whole (and `conv` is wanted), else by adaptive average pooling. Maps of that size are left alone.
 */
function align(b: Builder, branches: BranchOutputs[], how: 'conv' | 'avgpool' | 'none'): Tensor[] {
  const maps = branches.map(({ map }) => map!);
  const smallest = [1, 2].map((axis) => Math.min(...maps.map(({ shape }) => shape[axis]!))) as [number, number];
  return maps.map((map, k) => {
    const [, height, width, channels] = map.shape as [number, number, number, number];
    const stride = height / smallest[0];
    if (height === smallest[0] && width === smallest[1]) return map;
    if (how === 'none') throw new Error(`branch ${k}'s map is ${height}x${width}, the smallest ${smallest.join('x')}`);
    if (how === 'conv' && Number.isInteger(stride) && width / smallest[1] === stride) {
      const name = `fusion.align.${k}`;
      return relu(b.batchNorm(`${name}.bn`, b.conv(`${name}.conv`, map, 3, channels, stride)));
    }
    return cast(averagePoolTo(cast(map, b.precision, 'f32'), smallest), 'f32', b.precision);
  });
}

/** Adaptive average pooling, as PyTorch cuts the windows. @param x f32[B, H, W, C]   @returns f32[B, h, w, C] */
function averagePoolTo(x: Tensor, [h, w]: [number, number]): Tensor {
  const [batch, height, width, channels] = x.shape as [number, number, number, number];
  const rows = tf.matMul(windows(h, height), tf.reshape(x, [batch, height, width * channels]) as MatrixBatch);
  const columns = tf.matMul(windows(w, width), tf.reshape(rows, [batch * h, width, channels]) as MatrixBatch);
  return tf.reshape(columns, [batch, h, w, channels]);
}

type MatrixBatch = ReturnType<typeof tf.tensor3d>;

/** @returns f32[1, to, from]: row i is the mean over [floor(i from / to), ceil((i + 1) from / to)) */
function windows(to: number, from: number): MatrixBatch {
  const matrix = Array.from({ length: to }, (_, i) => {
    const [start, end] = [Math.floor((i * from) / to), Math.ceil(((i + 1) * from) / to)];
    return Array.from({ length: from }, (_, j) => (j >= start && j < end ? 1 / (end - start) : 0));
  });
  return tf.tensor3d([matrix]);
}
