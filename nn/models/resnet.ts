/**
 * CIFAR-style ResNet of depth 6n+2: basic blocks, option-B shortcuts (He et al. 2016, section 4.2, as in the FFL code).
 *
 * trunk:  conv3x3(W) - BN - ReLU; n blocks of W; n blocks of 2W, the first with stride 2
 * branch: n blocks of 4W, the first with stride 2; global average pooling; linear
 */
import type { Branch } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { cast, globalAveragePool, relu } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';

export interface ImageSize {
  height: number;
  width: number;
  channels: number;
}

export interface BranchOutputs {
  /** [B, H/4, W/4, 4 width] in the builder's precision: the last feature map, after its ReLU, before pooling. */
  features: Tensor;
  /** f32[B, classes] */
  logits: Tensor;
}

/** @param images [B, H, W, C] in the builder's precision, normalised   @returns [B, H/2, W/2, 2 width] */
export function trunk(b: Builder, prefix: string, images: Tensor, network: Branch): Tensor {
  const { width } = network;
  let x = relu(b.batchNorm(`${prefix}.bn1`, b.conv(`${prefix}.conv1`, images, 3, width)));
  x = stage(b, `${prefix}.layer1`, x, network, width, 1);
  return stage(b, `${prefix}.layer2`, x, network, 2 * width, 2);
}

/** @param x the trunk's output */
export function branch(b: Builder, prefix: string, x: Tensor, network: Branch, classes: number): BranchOutputs {
  const features = stage(b, `${prefix}.layer3`, x, network, 4 * network.width, 2);
  const pooled = globalAveragePool(cast(features, b.precision, 'f32'));
  return { features, logits: b.linear(`${prefix}.fc`, pooled, classes) };
}

/** Height, width and channels of the last feature map. */
export function featureShape(network: Branch, image: ImageSize): [number, number, number] {
  const quarter = (size: number) => Math.ceil(Math.ceil(size / 2) / 2);
  return [quarter(image.height), quarter(image.width), 4 * network.width];
}

function stage(b: Builder, prefix: string, input: Tensor, { depth }: Branch, channels: number, stride: number): Tensor {
  let x = input;
  for (let i = 0; i < (depth - 2) / 6; i++) x = basicBlock(b, `${prefix}.${i}`, x, channels, i === 0 ? stride : 1);
  return x;
}

function basicBlock(b: Builder, prefix: string, x: Tensor, channels: number, stride: number): Tensor {
  let y = relu(b.batchNorm(`${prefix}.bn1`, b.conv(`${prefix}.conv1`, x, 3, channels, stride)));
  y = b.batchNorm(`${prefix}.bn2`, b.conv(`${prefix}.conv2`, y, 3, channels));
  const same = stride === 1 && x.shape[3] === channels;
  const shortcut = same ? x : b.batchNorm(`${prefix}.down.1`, b.conv(`${prefix}.down.0`, x, 1, channels, stride));
  return relu(tf.add(y, shortcut));
}
