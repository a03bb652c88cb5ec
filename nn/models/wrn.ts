/**
 * Wide ResNet of depth 6n+4, widened k times (Zagoruyko & Komodakis 2016), without dropout. Names are those of its
 * PyTorch ports.
 *
 * stem: conv3x3(16); layer1..3: n pre-activation blocks of 16k, 32k, 64k channels, the first of the latter two with
 * stride 2; then BN - ReLU, which belongs to layer3 here, so that its map is what is pooled; linear, whose bias starts at 0.
 */
import type { Branch } from '../../core/recipe.ts';
import { type Builder, ZERO_BIAS } from '../builder.ts';
import { relu } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Network, Stage } from './network.ts';

export function wrn({ depth, widen }: Extract<Branch, { network: 'wrn' }>): Network {
  const blocks = (depth - 4) / 6;
  const layer3 = wideStage('layer3', blocks, 64 * widen, 2);
  return {
    stages: [
      {
        name: 'stem',
        shape: ([h, w]) => [h, w, 16],
        forward: (b, prefix, x) => b.conv(`${prefix}.conv1`, x, 3, 16),
      },
      wideStage('layer1', blocks, 16 * widen, 1),
      wideStage('layer2', blocks, 32 * widen, 2),
      {
        ...layer3,
        forward: (b, prefix, x) => relu(b.batchNorm(`${prefix}.bn1`, layer3.forward(b, prefix, x))),
      },
    ],
    shareUntil: 'layer2',
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.fc`, pooled, classes, ZERO_BIAS),
  };
}

/** `blocks` blocks, the first with the stride. */
function wideStage(name: string, blocks: number, channels: number, stride: number): Stage {
  return {
    name,
    shape: ([h, w]) => [Math.ceil(h / stride), Math.ceil(w / stride), channels],
    forward(b, prefix, input) {
      let x = input;
      for (let i = 0; i < blocks; i++) x = wideBlock(b, `${prefix}.${name}.${i}`, x, channels, i === 0 ? stride : 1);
      return x;
    },
  };
}

/**
 * BN - ReLU - conv3x3 - BN - ReLU - conv3x3, added to x. Where the channels change, it is added to a projection instead:
 * a 1x1 convolution of the first ReLU's output, without BN.
 */
function wideBlock(b: Builder, prefix: string, x: Tensor, channels: number, stride: number): Tensor {
  const activated = relu(b.batchNorm(`${prefix}.bn1`, x));
  let y = relu(b.batchNorm(`${prefix}.bn2`, b.conv(`${prefix}.conv1`, activated, 3, channels, stride)));
  y = b.conv(`${prefix}.conv2`, y, 3, channels);
  const same = stride === 1 && x.shape[3] === channels;
  return tf.add(y, same ? x : b.conv(`${prefix}.shortcut`, activated, 1, channels, stride));
}
