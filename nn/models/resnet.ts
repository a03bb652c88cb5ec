/**
 * ResNet for small images (He et al. 2016, section 4.2), with projections where the shape changes (option B).
 *
 * stem: conv3x3(W) - BN - ReLU; layer1: n blocks of W; layer2: n of 2W; layer3: n of 4W, the first of each of the latter
 * two with stride 2; global average pooling; linear. Depth is 6n+2 with basic blocks, as the FFL authors have it
 * throughout, and 9n+2 with bottlenecks, as the ONE authors have it from depth 44 on.
 */
import type { Branch } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { relu } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Network, Stage } from './network.ts';

export function resnet({ depth, width, block }: Extract<Branch, { network: 'resnet' }>): Network {
  const { kind, layers } = block === 'basic' ? { kind: BASIC, layers: 2 } : { kind: BOTTLENECK, layers: 3 };
  const blocks = (depth - 2) / (3 * layers);
  return {
    stages: [
      {
        name: 'stem',
        shape: ([h, w]) => [h, w, width],
        forward: (b, prefix, x) => relu(b.batchNorm(`${prefix}.bn1`, b.conv(`${prefix}.conv1`, x, 3, width))),
      },
      residualStage('layer1', kind, blocks, width, 1),
      residualStage('layer2', kind, blocks, 2 * width, 2),
      residualStage('layer3', kind, blocks, 4 * width, 2),
    ],
    shareUntil: 'layer2',
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.fc`, pooled, classes),
  };
}

export interface BlockKind {
  /** Output channels, in channels of its 3x3 convolution. */
  expansion: number;
  forward: typeof basicBlock;
}

/** `blocks` blocks, the first with the stride.   @param shortcut what their projections are called */
export function residualStage(
  name: string,
  { expansion, forward }: BlockKind,
  blocks: number,
  channels: number,
  stride: number,
  shortcut?: string,
): Stage {
  return {
    name,
    shape: ([h, w]) => [Math.ceil(h / stride), Math.ceil(w / stride), expansion * channels],
    forward(b, prefix, input) {
      let x = input;
      for (let i = 0; i < blocks; i++)
        x = forward(b, `${prefix}.${name}.${i}`, x, channels, i === 0 ? stride : 1, shortcut);
      return x;
    },
  };
}

/** conv3x3 - BN - ReLU - conv3x3 - BN, added to x (or to its projection), then ReLU. */
export function basicBlock(
  b: Builder,
  prefix: string,
  x: Tensor,
  channels: number,
  stride: number,
  shortcut = 'down',
): Tensor {
  let y = relu(b.batchNorm(`${prefix}.bn1`, b.conv(`${prefix}.conv1`, x, 3, channels, stride)));
  y = b.batchNorm(`${prefix}.bn2`, b.conv(`${prefix}.conv2`, y, 3, channels));
  return addShortcut(b, `${prefix}.${shortcut}`, x, y, stride);
}

/** conv1x1 - BN - ReLU - conv3x3 - BN - ReLU - conv1x1 to 4 times the channels - BN, added to x, then ReLU. */
export function bottleneckBlock(
  b: Builder,
  prefix: string,
  x: Tensor,
  channels: number,
  stride: number,
  shortcut = 'down',
): Tensor {
  let y = relu(b.batchNorm(`${prefix}.bn1`, b.conv(`${prefix}.conv1`, x, 1, channels)));
  y = relu(b.batchNorm(`${prefix}.bn2`, b.conv(`${prefix}.conv2`, y, 3, channels, stride)));
  y = b.batchNorm(`${prefix}.bn3`, b.conv(`${prefix}.conv3`, y, 1, BOTTLENECK.expansion * channels));
  return addShortcut(b, `${prefix}.${shortcut}`, x, y, stride);
}

export const BASIC: BlockKind = { expansion: 1, forward: basicBlock };
export const BOTTLENECK: BlockKind = { expansion: 4, forward: bottleneckBlock };

function addShortcut(b: Builder, prefix: string, x: Tensor, y: Tensor, stride: number): Tensor {
  const channels = y.shape[3]!;
  const same = stride === 1 && x.shape[3] === channels;
  const shortcut = same ? x : b.batchNorm(`${prefix}.1`, b.conv(`${prefix}.0`, x, 1, channels, stride));
  return relu(tf.add(y, shortcut));
}
