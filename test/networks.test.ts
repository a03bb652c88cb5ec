/** Networks: their sizes are the literature's, their stages are what recipes name, and each of them learns. */
import test from 'ava';
import { type Branch, checkRecipe, recipeSchema, STAGES } from '../core/recipe.ts';
import { Builder, VariableStore } from '../nn/builder.ts';
import { type Complexity, complexityOf } from '../nn/complexity.ts';
import { flatLength, flatParts, splitFlat } from '../nn/flat.ts';
import { capture } from '../nn/graph/capture.ts';
import { cast, crossEntropy, globalAveragePool, type Precision } from '../nn/graph/ops.ts';
import { Session } from '../nn/graph/session.ts';
import { cutOf, networkOf, runStages, shapeAfter } from '../nn/models/network.ts';
import { type Tensor, tf } from '../nn/tensorflow.ts';
import { fromTensors, initialWeights, type VariableSpec } from '../nn/variables.ts';

const NETWORKS = Object.keys(STAGES) as Branch['network'][];

/** A branch with the recipe's defaults. */
function branchOf(network: Branch['network'], options: Record<string, unknown> = {}): Branch {
  const { count: _, ...branch } = recipeSchema.shape.branches.element.parse({ network, ...options });
  return branch as Branch;
}

// ------------------------------------------------------------------------------------------------ sizes

function complexity(pixels: number, classes: number, recipe: Record<string, unknown>): Complexity {
  const checked = checkRecipe({
    name: 'test',
    data: { format: 'cifar10', path: 'unused', mean: [0], std: [1] },
    method: { name: 'vanilla' },
    training: {},
    ...recipe,
  });
  return complexityOf(checked, { height: pixels, width: pixels, channels: 3 }, classes);
}

/**
 * Multiply-adds are of convolutions and linear layers. All agree with PyTorch's modules of the same networks; parameters of
 * the ImageNet ones are torchvision's, those of WRN-28-10 the MCL-OKD repository's, those of DenseNet imgclsmob's.
 */
const SIZES: [branch: Record<string, unknown>, classes: number, parameters: number, multiplyAdds: number][] = [
  [{ network: 'resnet', depth: 20 }, 10, 272_474, 40_813_184],
  [{ network: 'resnet', depth: 20 }, 100, 278_324, 40_818_944],
  [{ network: 'resnet', depth: 32 }, 10, 466_906, 69_124_736],
  [{ network: 'resnet', depth: 32 }, 100, 472_756, 69_130_496],
  [{ network: 'resnet', depth: 56 }, 10, 855_770, 125_747_840],
  [{ network: 'resnet', depth: 56 }, 100, 861_620, 125_753_600],
  [{ network: 'resnet', depth: 110 }, 10, 1_730_714, 253_149_824],
  [{ network: 'resnet', depth: 110 }, 100, 1_736_564, 253_155_584],
  [{ network: 'resnet', depth: 110, block: 'bottleneck' }, 100, 1_170_868, 167_453_696],
  [{ network: 'wrn', depth: 16, widen: 2 }, 10, 691_674, 101_106_944],
  [{ network: 'wrn', depth: 16, widen: 2 }, 100, 703_284, 101_118_464],
  [{ network: 'wrn', depth: 16, widen: 4 }, 10, 2_748_890, 392_612_352],
  [{ network: 'wrn', depth: 16, widen: 4 }, 100, 2_772_020, 392_635_392],
  [{ network: 'wrn', depth: 28, widen: 10 }, 10, 36_479_194, 5_243_328_768],
  [{ network: 'wrn', depth: 28, widen: 10 }, 100, 36_536_884, 5_243_386_368],
  [{ network: 'vgg' }, 10, 14_724_042, 313_201_664],
  [{ network: 'densenet', depth: 40, growth: 12 }, 10, 176_122, 72_365_352],
  [{ network: 'mobilenetv2' }, 10, 2_236_682, 87_976_448],
  [{ network: 'imagenet-resnet', depth: 18 }, 1000, 11_689_512, 1_814_073_344],
  [{ network: 'imagenet-resnet', depth: 34 }, 1000, 21_797_672, 3_663_761_408],
  [{ network: 'imagenet-resnet', depth: 50 }, 1000, 25_557_032, 4_089_184_256],
  [{ network: 'imagenet-mobilenetv2' }, 1000, 3_504_872, 300_774_272],
  [{ network: 'imagenet-mobilenetv2', multiplier: 0.5 }, 1000, 1_968_680, 97_131_840],
  [{ network: 'imagenet-mobilenetv2', multiplier: 1.4 }, 1000, 6_108_776, 582_195_824],
];

for (const [branch, classes, parameters, multiplyAdds] of SIZES) {
  const { network, ...options } = branch;
  test(`${[network, ...Object.values(options)].join(' ')} has ${parameters} parameters for ${classes} classes`, (t) => {
    const pixels = classes === 1000 ? 224 : 32;
    const found = complexity(pixels, classes, { branches: [branch] });
    t.deepEqual(found, { parameters, multiplyAdds, branches: [{ parameters, multiplyAdds }] });
  });
}

test('a shared trunk is counted once, and in each network that would be deployed', (t) => {
  const found = complexity(32, 100, { branches: [{ network: 'resnet', depth: 32, count: 2 }] });
  const single = { parameters: 472_756, multiplyAdds: 69_130_496 };
  t.deepEqual(found, { parameters: 832_920, multiplyAdds: 91_681_280, branches: [single, single] });
});

test('a recipe may cut a network elsewhere', (t) => {
  const branches = [{ network: 'imagenet-resnet', depth: 34, count: 2 }];
  const cut = (shareUntil: string | null) => complexity(224, 1000, { branches, shareUntil }).parameters;
  t.is(cut('layer3'), 35_425_040);
  t.is(cut(null), 42_247_440); // layer2
});

test('what a method adds is in the whole, and in no branch', (t) => {
  const pair = { branches: [{ network: 'resnet', depth: 32, count: 2 }] };
  const alone = complexity(32, 100, pair);
  const added = (method: Record<string, unknown>) => {
    const { branches, ...whole } = complexity(32, 100, { ...pair, method });
    t.deepEqual(branches, alone.branches);
    return [whole.parameters - alone.parameters, whole.multiplyAdds - alone.multiplyAdds];
  };
  t.deepEqual(added({ name: 'ffl' }), [16_228, 604_416]);
  t.deepEqual(added({ name: 'one' }), [70, 64]);
  t.deepEqual(added({ name: 'dml' }), [0, 0]);
});

test('different networks share nothing', (t) => {
  const branches = [{ network: 'resnet', depth: 32 }, { network: 'wrn' }];
  t.is(complexity(32, 100, { branches, trunk: 'none' }).parameters, 472_756 + 703_284);
});

// ------------------------------------------------------------------------------------------------ stages

for (const network of NETWORKS) {
  test(`${network} has the stages that recipes name, and a default cut before the last`, (t) => {
    const built = networkOf(branchOf(network));
    t.deepEqual(
      built.stages.map(({ name }) => name),
      [...STAGES[network]],
    );
    const { trunk, branch } = cutOf(built, { shareUntil: null });
    t.true(trunk.length > 0 && branch.length > 0);
  });

  test(`${network}: every stage makes the shape that it says, of images of any size`, (t) => {
    const { stages } = networkOf(branchOf(network));
    for (const [height, width] of [
      [32, 32],
      [28, 28],
      [224, 224],
      [33, 50],
    ] as const) {
      capture((c) => {
        const b = new Builder(new VariableStore(c, () => 'branch'), 'f32', 'running');
        c.phase('evaluate', () => {
          let x = c.feed('images', [1, height, width, 3]);
          stages.forEach((stage, i) => {
            x = stage.forward(b, 'trunk.0', x);
            t.deepEqual(
              x.shape,
              [1, ...shapeAfter(stages.slice(0, i + 1), { height, width, channels: 3 })],
              stage.name,
            );
          });
          return {};
        });
      });
    }
  });
}

test("variables of the ImageNet networks have torchvision's names", (t) => {
  const names = (branch: Branch) => trainingOf(branch, 'f32', 32, 1).variables.map(({ name }) => name);
  const resnet50 = names(branchOf('imagenet-resnet', { depth: 50 }));
  for (const name of [
    'conv1.weight',
    'bn1.running_var',
    'layer1.0.conv3.weight',
    'layer1.0.downsample.1.bias',
    'fc.bias',
  ])
    t.true(resnet50.includes(`net.${name}`), name);
  const mobilenet = names(branchOf('imagenet-mobilenetv2'));
  for (const name of [
    'features.0.0.weight',
    'features.1.conv.0.0.weight',
    'features.1.conv.2.running_mean',
    'features.2.conv.1.1.weight',
    'features.17.conv.3.bias',
    'features.18.1.bias',
    'classifier.1.weight',
  ])
    t.true(mobilenet.includes(`net.${name}`), name);
});

// ------------------------------------------------------------------------------------------------ learning

const CLASSES = 5;
const BATCH = 8;
const STEP_NATS = 0.02; // how much a step would lower the loss if it were linear
/** Of gradients to f32's: at first weights and few samples those of MobileNetV2 in bf16 are as far apart in PyTorch. */
const LEAST_COSINE = { bf16: 0.3, f16: 0.85 };
const LOSS_ERROR = { bf16: 0.03, f16: 0.003 };

/** One of each kind, small. */
const SMALL: [branch: Branch, pixels: number][] = [
  [branchOf('resnet', { depth: 8, width: 4 }), 13],
  [branchOf('resnet', { depth: 11, width: 4, block: 'bottleneck' }), 13],
  [branchOf('wrn', { depth: 10, widen: 1 }), 13],
  [branchOf('vgg'), 16],
  [branchOf('densenet', { depth: 10, growth: 4 }), 13],
  [branchOf('mobilenetv2', { multiplier: 0.25 }), 13],
  [branchOf('imagenet-resnet', { depth: 18 }), 33],
  [branchOf('imagenet-mobilenetv2', { multiplier: 0.25 }), 65],
];

for (const [branch, pixels] of SMALL) {
  const { network, ...options } = branch;
  test(`${[network, ...Object.values(options)].join(' ')}: the loss falls by what the gradient says, bf16 and f16 like f32`, (t) => {
    const f32 = new Training(branch, 'f32', pixels);
    const weights = f32.firstWeights();
    const { loss, gradient } = f32.run(weights);
    const step = STEP_NATS / dot(gradient, gradient);
    const stepped = f32.run(weights.map((w, i) => w - step * gradient[i]!));
    f32.close();
    const lowered = (loss - stepped.loss) / STEP_NATS;
    t.true(lowered > 0.8 && lowered < 1.1, `by ${lowered} of it`);
    for (const precision of ['bf16', 'f16'] as const) {
      const half = new Training(branch, precision, pixels);
      const rounded = half.run(weights);
      half.close();
      t.true(
        Math.abs(rounded.loss / loss - 1) < LOSS_ERROR[precision],
        `${precision}: ${rounded.loss} and ${loss} nats`,
      );
      const norms = Math.sqrt(dot(gradient, gradient) * dot(rounded.gradient, rounded.gradient));
      const cosine = dot(gradient, rounded.gradient) / norms;
      t.true(cosine > LEAST_COSINE[precision], `${precision}: cosine ${cosine}`);
    }
  });
}

const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);

/** A network alone and one batch, in a session. */
class Training {
  private readonly variables: VariableSpec[];
  private readonly session: Session;
  private readonly images: Float32Array;

  constructor(branch: Branch, precision: Precision, pixels: number) {
    const { graph, variables } = trainingOf(branch, precision, pixels, BATCH);
    this.variables = variables;
    this.session = new Session(graph);
    this.images = Float32Array.from({ length: BATCH * pixels * pixels * 3 }, (_, i) => 2 * Math.sin(i * i));
  }

  /** All variables, flat. */
  firstWeights(): Float32Array {
    const length = flatLength(this.variables.map((v) => v.size)); // without momenta
    return fromTensors(this.variables, initialWeights(this.variables, 1)).slice(0, length);
  }

  /** The loss, in nats, and its gradient by all variables: 0 by running statistics. */
  run(weights: Float32Array): { loss: number; gradient: Float32Array } {
    this.session.run('write', { state: weights });
    const labels = Int32Array.from({ length: BATCH }, (_, i) => i % CLASSES);
    const { loss, gradient } = this.session.run('train', { images: this.images, labels });
    return { loss: loss![0]!, gradient: gradient! };
  }

  close(): void {
    this.session.close();
  }
}

/** The phases of Training: `write` takes all variables, `train` gives the loss and the gradient. */
function trainingOf(branch: Branch, precision: Precision, pixels: number, batch: number) {
  const network = networkOf(branch);
  let variables: VariableSpec[] = [];
  const graph = capture((c) => {
    const store = new VariableStore(c, () => 'branch');
    const logitsOf = (b: Builder, images: Tensor) => {
      const map = runStages(network.stages, b, 'net', cast(images, 'f32', precision));
      return network.head(b, 'net', globalAveragePool(cast(map, precision, 'f32')), CLASSES);
    };
    const images = () => c.feed('images', [batch, pixels, pixels, 3]);
    c.phase('evaluate', () => ({ logits: logitsOf(new Builder(store, precision, 'running'), images()) }));
    variables = store.specs;
    c.phase('train', () => {
      const labels = c.feed('labels', [batch], 'int32');
      const values = store.readTrainable();
      const b = new Builder(store, precision, 'batch', values);
      const loss = () => tf.mean(crossEntropy(logitsOf(b, images()), labels));
      const { value, grads } = tf.engine().gradients(loss as never, [...values.values()] as never);
      const byName = new Map([...values.keys()].map((name, i) => [name, grads[i] as Tensor]));
      const parts = flatParts(variables.map((v) => tf.reshape(byName.get(v.name) ?? tf.zeros(v.shape), [v.size])));
      return { loss: value as Tensor, gradient: tf.concat(parts.map((part) => part.value)) };
    });
    c.phase('write', () => {
      const sizes = variables.map((v) => v.size);
      const parts = splitFlat(c.feed('state', [flatLength(sizes)]), sizes);
      for (const [i, v] of variables.entries()) store.get(v.name).assign(tf.reshape(parts[i]!, v.shape));
      return {};
    });
  });
  return { graph, variables };
}
