/**
 * DenseNet-BC of depth 6n+4 and growth g, compression 0.5, without dropout (Huang et al. 2017). Names are those of its
 * PyTorch ports for CIFAR.
 *
 * stem: conv3x3(2g); dense1..3: n layers, each of which adds g channels to what it is given. dense2 and dense3 begin with
 * the transition, which halves channels and size; dense3 ends with BN - ReLU; linear, whose bias starts at 0.
 */
import type { Branch } from '../../core/recipe.ts';
import { type Builder, ZERO_BIAS } from '../builder.ts';
import { avgPool, relu } from '../graph/ops.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import type { Network, Stage } from './network.ts';

export function densenet({ depth, growth }: Extract<Branch, { network: 'densenet' }>): Network {
  const layers = (depth - 4) / 6; // two convolutions each
  const dense2 = denseStage('dense2', layers, growth);
  const dense3 = denseStage('dense3', layers, growth);
  return {
    stages: [
      {
        name: 'stem',
        shape: ([h, w]) => [h, w, 2 * growth],
        forward: (b, prefix, x) => b.conv(`${prefix}.conv1`, x, 3, 2 * growth),
      },
      denseStage('dense1', layers, growth),
      {
        name: 'dense2',
        shape: (input) => dense2.shape(halved(input)),
        forward: (b, prefix, x) => dense2.forward(b, prefix, transition(b, `${prefix}.trans1`, x)),
      },
      {
        name: 'dense3',
        shape: (input) => dense3.shape(halved(input)),
        forward(b, prefix, x) {
          const y = dense3.forward(b, prefix, transition(b, `${prefix}.trans2`, x));
          return relu(b.batchNorm(`${prefix}.bn`, y));
        },
      },
    ],
    shareUntil: 'dense2',
    head: (b, prefix, pooled, classes) => b.linear(`${prefix}.fc`, pooled, classes, ZERO_BIAS),
  };
}

function denseStage(name: string, layers: number, growth: number): Stage {
  return {
    name,
    shape: ([h, w, c]) => [h, w, c + layers * growth],
    forward(b, prefix, input) {
      let x = input;
      for (let i = 0; i < layers; i++) x = tf.concat([x, denseLayer(b, `${prefix}.${name}.${i}`, x, growth)], 3);
      return x;
    },
  };
}

/** BN - ReLU - conv1x1(4g) - BN - ReLU - conv3x3(g) */
function denseLayer(b: Builder, prefix: string, x: Tensor, growth: number): Tensor {
  const y = b.conv(`${prefix}.conv1`, relu(b.batchNorm(`${prefix}.bn1`, x)), 1, 4 * growth);
  return b.conv(`${prefix}.conv2`, relu(b.batchNorm(`${prefix}.bn2`, y)), 3, growth);
}

/** BN - ReLU - conv1x1 to half the channels - 2x2 average pool */
function transition(b: Builder, prefix: string, x: Tensor): Tensor {
  const activated = relu(b.batchNorm(`${prefix}.bn1`, x));
  return avgPool(b.conv(`${prefix}.conv1`, activated, 1, x.shape[3]! >> 1), 2);
}

const halved: Stage['shape'] = ([h, w, c]) => [h >> 1, w >> 1, c >> 1];
