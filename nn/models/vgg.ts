/**
 * VGG-16 (Simonyan & Zisserman 2015, configuration D) as usual for small images: batch norms, and one linear layer on the
 * pooled map in place of three.
 *
 * stage1..5: 2, 2, 3, 3, 3 times conv3x3 - BN - ReLU of 64, 128, 256, 512, 512 channels. Each stage but the first begins
 * with the 2x2 max pool that elsewhere ends the one before. Convolutions have no bias: the batch norm that follows has one.
 * The classifier starts as torchvision's, N(0, 0.01).
 */
import { SMALL_NORMAL } from '../builder.ts';
import { maxPool, relu } from '../graph/ops.ts';
import type { Network, Stage } from './network.ts';

export function vgg16(): Network {
  return {
    stages: [
      vggStage('stage1', 2, 64),
      vggStage('stage2', 2, 128),
      vggStage('stage3', 3, 256),
      vggStage('stage4', 3, 512),
      vggStage('stage5', 3, 512),
    ],
    shareUntil: 'stage4',
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.classifier`, pooled, classes, SMALL_NORMAL),
  };
}

function vggStage(name: string, convolutions: number, channels: number): Stage {
  const pooled = name !== 'stage1';
  return {
    name,
    shape: ([h, w]) => (pooled ? [h >> 1, w >> 1, channels] : [h, w, channels]),
    forward(b, prefix, input) {
      let x = pooled ? maxPool(input, 2, 2) : input;
      for (let i = 1; i <= convolutions; i++) {
        const at = `${prefix}.${name}`;
        x = relu(b.batchNorm(`${at}.bn${i}`, b.conv(`${at}.conv${i}`, x, 3, channels)));
      }
      return x;
    },
  };
}
