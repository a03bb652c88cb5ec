/**
 * MobileNetV2 (Sandler et al. 2018), for 224-pixel images as torchvision has it, and for small ones with the strides of
 * the usual ports for CIFAR. Names are torchvision's, so is the classifier's start, N(0, 0.01); there is no dropout.
 *
 * stem: conv3x3(32) - BN - ReLU6; stage1..7: inverted residual blocks; top: conv1x1(1280) - BN - ReLU6; global average
 * pooling; linear.
 */
import type { Branch } from '../../core/recipe.ts';
import { type Builder, SMALL_NORMAL } from '../builder.ts';
import { relu6 } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Network, Stage } from './network.ts';

type MobileNetV2 = Extract<Branch, { network: 'mobilenetv2' | 'imagenet-mobilenetv2' }>;

/** A row a stage: how many times wider its blocks are inside, their channels, how many there are (the paper's table 2). */
const STAGES = [
  [1, 16, 1],
  [6, 24, 2],
  [6, 32, 3],
  [6, 64, 4],
  [6, 96, 3],
  [6, 160, 3],
  [6, 320, 1],
] as const;

const VARIANTS = {
  mobilenetv2: { stemStride: 1, strides: [1, 1, 2, 2, 1, 2, 1], shareUntil: 'stage5' },
  'imagenet-mobilenetv2': { stemStride: 2, strides: [1, 2, 2, 2, 1, 2, 1], shareUntil: 'stage3' },
} as const;

export function mobilenetV2({ network, multiplier }: MobileNetV2): Network {
  const { stemStride, strides, shareUntil } = VARIANTS[network];
  const stem = divisibleBy8(32 * multiplier);
  const top = divisibleBy8(1280 * Math.max(1, multiplier));
  const stages: Stage[] = [];
  let index = 1; // of a block, in torchvision's list `features`
  STAGES.forEach(([expansion, channels, blocks], i) => {
    const name = `stage${i + 1}`;
    stages.push(invertedStage(name, index, expansion, divisibleBy8(channels * multiplier), blocks, strides[i]!));
    index += blocks;
  });
  return {
    stages: [
      {
        name: 'stem',
        shape: ([h, w]) => [Math.ceil(h / stemStride), Math.ceil(w / stemStride), stem],
        forward: (b, prefix, x) => convolution(b, `${prefix}.features.0`, x, 3, stem, stemStride),
      },
      ...stages,
      {
        name: 'top',
        shape: ([h, w]) => [h, w, top],
        forward: (b, prefix, x) => convolution(b, `${prefix}.features.${index}`, x, 1, top, 1),
      },
    ],
    shareUntil,
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.classifier.1`, pooled, classes, SMALL_NORMAL),
  };
}

/** `blocks` blocks, the first with the stride. */
function invertedStage(
  name: string,
  firstIndex: number,
  expansion: number,
  channels: number,
  blocks: number,
  stride: number,
): Stage {
  return {
    name,
    shape: ([h, w]) => [Math.ceil(h / stride), Math.ceil(w / stride), channels],
    forward(b, prefix, input) {
      let x = input;
      for (let i = 0; i < blocks; i++) {
        const at = `${prefix}.features.${firstIndex + i}.conv`;
        x = invertedResidual(b, at, x, expansion, channels, i === 0 ? stride : 1);
      }
      return x;
    },
  };
}

/**
 * conv1x1 to `expansion` times the channels - BN - ReLU6 (unless the expansion is 1) - depthwise 3x3 - BN - ReLU6 -
 * conv1x1 - BN, added to x where the shapes are the same.
 */
function invertedResidual(
  b: Builder,
  prefix: string,
  x: Tensor,
  expansion: number,
  channels: number,
  stride: number,
): Tensor {
  let at = 0;
  const next = () => `${prefix}.${at++}`;
  let y = expansion === 1 ? x : convolution(b, next(), x, 1, x.shape[3]! * expansion, 1);
  const depthwise = next();
  y = relu6(b.batchNorm(`${depthwise}.1`, b.depthwise(`${depthwise}.0`, y, stride)));
  const projected = b.conv(next(), y, 1, channels);
  y = b.batchNorm(next(), projected);
  return stride === 1 && x.shape[3] === channels ? tf.add(x, y) : y;
}

/** conv - BN - ReLU6 */
function convolution(b: Builder, prefix: string, x: Tensor, kernel: number, channels: number, stride: number): Tensor {
  return relu6(b.batchNorm(`${prefix}.1`, b.conv(`${prefix}.0`, x, kernel, channels, stride)));
}

/** To the nearest multiple of 8, but never to less than 90 % (torchvision's _make_divisible). */
function divisibleBy8(channels: number): number {
  const nearest = Math.max(8, Math.floor((channels + 4) / 8) * 8);
  return nearest < 0.9 * channels ? nearest + 8 : nearest;
}
