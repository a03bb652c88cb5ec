/**
 * ResNet-18, -34 and -50 for 224-pixel images (He et al. 2016, section 4.1), with torchvision's names, and its stride in
 * the bottleneck's 3x3 convolution (v1.5).
 *
 * stem: conv7x7(64, stride 2) - BN - ReLU - max pool 3x3 with stride 2; layer1..4: blocks of 64, 128, 256, 512 channels,
 * the first of the latter three with stride 2; global average pooling; linear.
 */
import type { Branch } from '../../core/recipe.ts';
import { maxPool, paddedRelu } from '../graph/ops.ts';
import type { Network } from './network.ts';
import { BASIC, BOTTLENECK, residualStage } from './resnet.ts';

const VARIANTS = {
  18: { kind: BASIC, blocks: [2, 2, 2, 2] },
  34: { kind: BASIC, blocks: [3, 4, 6, 3] },
  50: { kind: BOTTLENECK, blocks: [3, 4, 6, 3] },
} as const;

export function imagenetResnet({ depth }: Extract<Branch, { network: 'imagenet-resnet' }>): Network {
  const { kind, blocks } = VARIANTS[depth];
  return {
    stages: [
      {
        name: 'stem',
        shape: ([h, w]) => [Math.ceil(h / 4), Math.ceil(w / 4), 64],
        forward(b, prefix, x) {
          const y = b.conv(`${prefix}.conv1`, x, 7, 64, 2);
          // The largest maps of all: the second of them would be kept for the max pool alone.
          return b.anew(y, [`${prefix}.bn1.weight`, `${prefix}.bn1.bias`], (b, y) =>
            maxPool(paddedRelu(b.batchNorm(`${prefix}.bn1`, y), 1), 3, 2),
          );
        },
      },
      ...blocks.map((count, i) =>
        residualStage(`layer${i + 1}`, kind, count, 64 * 2 ** i, i === 0 ? 1 : 2, 'downsample'),
      ),
    ],
    shareUntil: 'layer2',
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.fc`, pooled, classes),
  };
}
