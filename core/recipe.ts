/**
 * The recipe: everything a run is made of, as one strict schema. Every default lives here and nowhere else.
 *
 * A recipe is read from YAML, changed by `--set path=value`, checked as a whole, and written back resolved into the
 * run's folder, so that a run can be repeated from its own folder alone.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { parse, stringify } from 'yaml';
import { z } from 'zod';
import { BraidError, nearest } from './errors.ts';
import { MAX_LOSS_SCALE } from './loss-scale.ts';

const positiveInt = z.number().int().positive();
const count = z.number().int().nonnegative();

/** Workers take these of a coordinator: far above what helps, and nothing that a machine could not bear. */
const MAX_BATCH = 1 << 20;
const MAX_INPUT_THREADS = 256;
const MAX_METHOD_THREADS = 256;
const MAX_PREFETCH = 256;
const MAX_MICRO_BATCHES = 1024;

/** How many branches of this very kind. */
const copies = { count: positiveInt.default(1) };

const branchSchema = z.discriminatedUnion('network', [
  /** CIFAR-style ResNet (He et al. 2016, section 4.2): depth 6n+2 with basic blocks, 9n+2 with bottlenecks. */
  z.strictObject({
    network: z.literal('resnet'),
    depth: positiveInt.default(32),
    /** Channels of the first stage; the second and third have 2 and 4 times as many (bottlenecks: 4 times all of that). */
    width: positiveInt.default(16),
    /** The FFL authors always use basic blocks; the ONE authors bottlenecks from depth 44 on. */
    block: z.enum(['basic', 'bottleneck']).default('basic'),
    ...copies,
  }),
  /** Wide ResNet of depth 6n+4 (Zagoruyko & Komodakis 2016). */
  z.strictObject({
    network: z.literal('wrn'),
    depth: positiveInt.default(16),
    widen: positiveInt.default(2),
    ...copies,
  }),
  /** VGG with batch norms for small images (Simonyan & Zisserman 2015, configuration D). */
  z.strictObject({ network: z.literal('vgg'), depth: z.literal(16).default(16), ...copies }),
  /** DenseNet-BC of depth 6n+4, compression 0.5 (Huang et al. 2017). */
  z.strictObject({
    network: z.literal('densenet'),
    depth: positiveInt.default(40),
    growth: positiveInt.default(12),
    ...copies,
  }),
  /** MobileNetV2 (Sandler et al. 2018) with the strides that 32-pixel images take. */
  z.strictObject({ network: z.literal('mobilenetv2'), multiplier: z.number().positive().default(1), ...copies }),
  /** ResNet for 224-pixel images (He et al. 2016, section 4.1). */
  z.strictObject({
    network: z.literal('imagenet-resnet'),
    depth: z.union([z.literal(18), z.literal(34), z.literal(50)]).default(34),
    ...copies,
  }),
  /** MobileNetV2 for 224-pixel images. */
  z.strictObject({
    network: z.literal('imagenet-mobilenetv2'),
    multiplier: z.number().positive().default(1),
    ...copies,
  }),
]);

const rampUpSchema = z.discriminatedUnion('kind', [
  /** w(e) = exp(-5 (1 - clip(e, 0, epochs) / epochs)^2), e the 0-based epoch. */
  z.strictObject({ kind: z.literal('exponential'), epochs: positiveInt.default(80) }),
  z.strictObject({ kind: z.literal('constant'), value: z.number().nonnegative().default(1) }),
]);

/** Every branch learns from the labels alone: with `trunk: none` these are networks trained alone. */
const vanillaSchema = z.strictObject({ name: z.literal('vanilla') });

/** What methods that distil have in common. */
const distilling = (defaults: {
  temperature: number;
  teacherEpsilon: number;
  rampUp: z.infer<typeof rampUpSchema>;
}) => ({
  /** T of the softened distributions. */
  temperature: z.number().positive().default(defaults.temperature),
  /** Added to every teacher probability, without renormalising: 1e-7 in the FFL and ONE authors' code. */
  teacherEpsilon: z.number().nonnegative().default(defaults.teacherEpsilon),
  /** The weight w(e) of the distillation terms. */
  rampUp: rampUpSchema.default(defaults.rampUp),
});
const AUTHORS = { temperature: 3, teacherEpsilon: 1e-7, rampUp: { kind: 'exponential', epochs: 80 } } as const;

/** Feature Fusion Learning (Kim et al., ICPR 2020). */
const fflSchema = z.strictObject({
  name: z.literal('ffl'),
  ...distilling(AUTHORS),
  /** null: no fused classifier, the ensemble itself teaches the branches. */
  fusion: z
    .strictObject({
      /** Channels N after the pointwise convolution; null: the widest branch's. */
      channels: positiveInt.nullable().default(null),
      /** How last maps of different sizes are brought to the smallest: a strided 3x3 convolution, or average pooling. */
      align: z.enum(['conv', 'avgpool', 'none']).default('conv'),
    })
    .nullable()
    .prefault({}),
  /** Ablation: whether the ensemble teaches the fused classifier. */
  ensembleToFused: z.boolean().default(true),
  /** Ablation: whether the fused classifier teaches the branches. */
  fusedToBranch: z.boolean().default(true),
});

/** Deep Mutual Learning (Zhang et al., CVPR 2018). */
const dmlSchema = z.strictObject({
  name: z.literal('dml'),
  ...distilling({ temperature: 1, teacherEpsilon: 0, rampUp: { kind: 'constant', value: 1 } }),
  /** All networks by one step, or one after another, each seeing what the ones before have learnt (Algorithm 1). */
  update: z.enum(['joint', 'alternate']).default('joint'),
  /** Over a network's peers. */
  reduce: z.enum(['mean', 'sum']).default('mean'),
  /** Each peer is a teacher, or the mean of the peers' logits is the one teacher. */
  target: z.enum(['pairwise', 'peerMean']).default('pairwise'),
});

/** On-the-fly Native Ensemble (Lan, Zhu, Gong, NeurIPS 2018). */
const oneSchema = z.strictObject({
  name: z.literal('one'),
  ...distilling(AUTHORS),
  /** Residual blocks before the gate: more than 0 is ONE-E+, which matches the parameters of FFL's fusion module. */
  gateBlocks: count.default(0),
});

/** DualNet (Hou, Liu, Wang, ICCV 2017): two networks whose last maps are averaged for a fused classifier. */
const dualnetSchema = z.strictObject({
  name: z.literal('dualnet'),
  /** Weight of each branch's own cross-entropy beside the fused one's, and of its logits in the weighted score. */
  auxiliaryWeight: z.number().nonnegative().default(0.3),
  /** `iterative`: the published phases, one after another. */
  schedule: z.enum(['joint', 'iterative']).default('joint'),
  /** Of `iterative`: the part of the epochs that each phase gets. Learning rates start anew with each. */
  phases: z
    .strictObject({
      /** The first network alone. */
      standard: z.number().nonnegative().default(0.4),
      /** The second one beside it, the first one fixed. */
      fine: z.number().nonnegative().default(0.4),
      /** Roles swapped: 0 in the authors' scripts. */
      coarse: z.number().nonnegative().default(0),
      /** All three classifiers, both networks fixed. */
      classifiers: z.number().nonnegative().default(0.2),
    })
    .prefault({}),
});

const perChannel = z.array(z.number()).min(1).max(3);
const positive = z.number().positive();
/** A factor is drawn from [max(0, 1 - strength), 1 + strength]; 0: off. */
const jitterStrength = z.number().nonnegative().default(0);

/** As torchvision's transforms of these names do it on uint8 images, antialiased and bilinear. */
const resizedCropSchema = z.strictObject({
  /** Side in pixels of what the network sees. */
  size: positiveInt.default(224),
  /** RandomResizedCrop: the crop's part of the image's area, and its width over its height: from, to. */
  area: z.tuple([positive, positive.max(1)]).default([0.08, 1]),
  ratio: z.tuple([positive, positive]).default([3 / 4, 4 / 3]),
  /** Resize: the short side in evaluation, before CenterCrop takes the middle. */
  evaluationResize: positiveInt.default(256),
  /** ColorJitter. */
  jitter: z
    .strictObject({
      brightness: jitterStrength,
      contrast: jitterStrength,
      saturation: jitterStrength,
      /** Of the colour circle's turns, drawn from [-hue, hue]. */
      hue: z.number().min(0).max(0.5).default(0),
    })
    .prefault({}),
  /**
   * Decode a JPEG at a half, a quarter or an eighth where the crop is shrunk by at least that much anyway. A third less
   * work there, and pixels that are one grey level from torchvision's on average, up to fifty at sharp edges.
   */
  scaledDecode: z.boolean().default(false),
});

export const recipeSchema = z.strictObject({
  /** Names the folder runs/<name>. */
  name: z
    .string()
    .regex(
      /^[a-z0-9][a-z0-9._-]*$/i,
      'must be letters, digits, dots, dashes and underscores, and start with one of the first two',
    ),
  /** Seeds the weights, the order of samples and the augmentation. */
  seed: z.number().int().min(0).max(0xffffffff).default(1),
  data: z.strictObject({
    format: z.enum(['cifar10', 'cifar100', 'idx', 'folder', 'indexed']),
    /**
     * Folder with the files of the format. For `folder`: the training images, a folder or .tar with a sub-folder a class. For
     * `indexed`: the index that `braid data index` made of them, or the folder or URL that holds it.
     */
    path: z.string().min(1),
    /** A data set that `braid data fetch` knows: brought into `path` when its files are not there. */
    fetch: z.string().nullable().default(null),
    /** For `folder` and `indexed` only: the test images. */
    testPath: z.string().min(1).optional(),
    /** How many classes the networks tell apart; null: as many as the format has. */
    classes: positiveInt.nullable().default(null),
    /**
     * What a worker gets of its samples: their bytes, or (for `indexed` only) `ids`, and reads them itself by an index that
     * is at the same path or URL and equal.
     */
    send: z.enum(['bytes', 'ids']).default('bytes'),
    shuffle: z.boolean().default(true),
    /** A training sample that cannot be read or decoded ends the run, or another of its batch stands in for it. */
    onBadSample: z.enum(['fail', 'skip']).default('fail'),
    /** Per channel, on the 0..255 scale. */
    mean: perChannel,
    std: perChannel,
    augment: z
      .strictObject({
        /** Pixels added on each side before a random crop back to size. */
        pad: count.default(4),
        padMode: z.enum(['reflect', 'zero']).default('reflect'),
        flip: z.boolean().default(true),
      })
      .prefault({}),
    /** Each branch has its own random crop, flip and colours of an image, in place of the same for all. Takes `trunk: none`. */
    perBranch: z.boolean().default(false),
    /** For `folder` and `indexed` only: images of any size, of which a random part is brought to one size; null: all have one size. */
    resizedCrop: resizedCropSchema.nullable().default(null),
  }),
  branches: z.array(branchSchema).min(1),
  /** `shared`: the first stages are one for all branches. `none`: every branch is a whole network. */
  trunk: z.enum(['shared', 'none']).default('shared'),
  /** The last stage of the trunk; null: the network's own default (CIFAR: all but the last stage; ImageNet: all but two). */
  shareUntil: z.string().nullable().default(null),
  method: z.discriminatedUnion('name', [vanillaSchema, fflSchema, dmlSchema, oneSchema, dualnetSchema]),
  training: z.strictObject({
    epochs: positiveInt.default(300),
    /** Stop after this many steps, whatever the epoch; null: after the last epoch. */
    maxSteps: positiveInt.nullable().default(null),
    /** Global batch: it is sharded over the replicas. */
    batch: positiveInt.max(MAX_BATCH).default(128),
    /** A replica computes its shard in so many pieces, one after another, for one update: a fraction of the memory. */
    microBatches: positiveInt.max(MAX_MICRO_BATCHES).default(1),
    learningRate: z.number().positive().default(0.1),
    /** The linear scaling rule (Goyal et al. 2017): `learningRate` is for a batch of so many, here times batch / this; null: as it is. */
    referenceBatch: positiveInt.nullable().default(null),
    /** The learning rate grows over the first epochs, linearly from step to step, from `startFactor` times its value. */
    warmUp: z
      .strictObject({ epochs: z.number().nonnegative().default(0), startFactor: z.number().min(0).max(1).default(0.1) })
      .prefault({}),
    /** `milestones`: in steps. `cosine`: half a cosine from the end of the warm-up to 0, from step to step. */
    schedule: z.enum(['milestones', 'cosine']).default('milestones'),
    /** 0-based epochs from which the learning rate is multiplied by `gamma` once more. */
    milestones: z.array(positiveInt).default([150, 225]),
    gamma: z.number().positive().default(0.1),
    momentum: z.number().min(0).max(1).default(0.9),
    nesterov: z.boolean().default(true),
    /** Coupled L2 on the weights of the networks. */
    weightDecay: z.number().nonnegative().default(1e-4),
    /** The same for batch norms and biases; null: as all other weights, as in the methods' papers. */
    normWeightDecay: z.number().nonnegative().nullable().default(null),
    /** The same for all of FFL's fusion module. */
    fusionWeightDecay: z.number().nonnegative().default(1e-5),
    /** Of every cross-entropy in training, as PyTorch defines it: so much of the target is spread evenly over all classes. */
    labelSmoothing: z.number().min(0).lt(1).default(0),
    /** Beside the weights, an average of them: e = decay e + (1 - decay) w after every update, from the first weights on. */
    ema: z
      .strictObject({
        decay: z.number().gt(0).lt(1).default(0.9999),
        /** Every classifier is evaluated twice, the averages' as `ema.<name>`; or by the averages alone. */
        evaluate: z.enum(['beside', 'instead']).default('beside'),
      })
      .nullable()
      .default(null),
    /** Stages whose activations are computed anew in backward in place of being kept, by name; true: all of them. */
    recompute: z.union([z.boolean(), z.array(z.string())]).default(false),
    /** `bf16` and `f16`: convolutions and activations in 16 bits, weights, statistics and losses in f32. */
    precision: z.enum(['f32', 'bf16', 'f16']).default('f32'),
    /** Of f16: what losses are multiplied by before they are differentiated (core/loss-scale.ts). */
    lossScale: z
      .strictObject({
        initial: z
          .number()
          .min(1)
          .max(MAX_LOSS_SCALE)
          .refine((scale) => Number.isInteger(Math.log2(scale)), 'must be a power of two')
          .default(65536),
        /** It is doubled after so many updates in a row whose gradients do not overflow. */
        growthInterval: positiveInt.default(2000),
      })
      .prefault({}),
    /** A loss or gradient that is NaN or infinite ends the run, or its step is left out and counted. */
    nonFinite: z.enum(['stop', 'skip']).default('stop'),
    /** A .safetensors file with the first weights, PyTorch names and layouts; null: drawn from the seed. */
    initialWeights: z.string().nullable().default(null),
  }),
  evaluation: z
    .strictObject({
      /** Samples a run of the evaluation graph. */
      batch: positiveInt.max(MAX_BATCH).default(250),
      everyEpochs: positiveInt.default(1),
    })
    .prefault({}),
  cluster: z
    .strictObject({
      /** `together`: one worker holds a whole replica. `split`: one worker a branch, the coordinator hosts the method. */
      placement: z.enum(['together', 'split']).default('together'),
      replicas: positiveInt.default(1),
      /** With fewer than these the run waits for others to join; from these on it goes on. null: `replicas`. */
      minReplicas: positiveInt.nullable().default(null),
      /** Workers that join while it trains are taken up to these. null: `replicas`. */
      maxReplicas: positiveInt.nullable().default(null),
      /** TensorFlow threads of each worker; null: this machine's cores divided by its workers, at least 1. */
      threads: positiveInt.nullable().default(null),
      /** Threads of each worker that decode and augment. */
      inputThreads: positiveInt.max(MAX_INPUT_THREADS).default(1),
      /**
       * Of the coordinator, in `split`: each runs the method for some of the replicas and exchanges features and cotangents
       * with their workers. Whatever their number, the result is the same. null: half of its cores, at most one a replica.
       */
      methodThreads: positiveInt.max(MAX_METHOD_THREADS).nullable().default(null),
      /** Batches prepared ahead of need. */
      prefetch: positiveInt.max(MAX_PREFETCH).default(2),
      /** How long the coordinator waits for workers to join, at first and when some have gone. */
      joinTimeoutSeconds: z.number().positive().default(120),
      /** Gradients between workers. `bf16`: half the bytes, for slow links; each is rounded, and so is their sum. */
      wire: z.enum(['f32', 'bf16']).default('f32'),
      /** In `split`, feature maps and their cotangents while it trains. `bf16`: half the bytes, each rounded to the nearest once. */
      featureWire: z.enum(['f32', 'bf16']).default('f32'),
      /** How long one phase of a step may take before the worker is given up. */
      stepTimeoutSeconds: z.number().positive().default(600),
      /** A worker is asked for a sign of life this often ... */
      heartbeatSeconds: z.number().positive().default(2),
      /** ... and given up when it has missed this many. */
      heartbeatMisses: positiveInt.default(5),
      /** Attempts at one step, each with whoever is left, before the run ends. */
      attempts: positiveInt.default(5),
    })
    .prefault({}),
  checkpoint: z
    .strictObject({
      /** 0: only at the end. */
      everySteps: count.default(0),
      /** How many of the newest to keep. */
      keep: positiveInt.default(3),
      /** Beside those, every checkpoint after a multiple of so many steps is kept for good; 0: none. */
      keepEverySteps: count.default(0),
      /** Where they are kept: null: in the run's folder; s3://bucket/prefix: in S3-compatible storage, under that prefix. */
      store: z
        .string()
        .regex(/^s3:\/\/[a-z0-9][a-z0-9.-]+\/[\w./-]*[\w-]$/, 'expected s3://bucket/prefix')
        .nullable()
        .default(null),
      /** Of an s3:// store. Keys come from the environment alone (AWS_ACCESS_KEY_ID, ...), as what is null here does. */
      s3: z
        .strictObject({
          /** Of a server that is not Amazon's; null: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or Amazon's own. */
          endpoint: z
            .url({ protocol: /^https?$/ })
            .refine((url) => !/^\w+:\/\/[^/]*@|\?/.test(url), 'keys come from the environment, not from here')
            .nullable()
            .default(null),
          /** null: AWS_REGION. */
          region: z.string().nullable().default(null),
          /** https://host/bucket in place of https://bucket.host; null: wherever an endpoint is given. */
          pathStyle: z.boolean().nullable().default(null),
        })
        .prefault({}),
    })
    .prefault({}),
  metrics: z
    .strictObject({
      /** Where metrics and health are served: whoever reaches it can read them, and do nothing else. */
      host: z.string().min(1).default('127.0.0.1'),
      /** 0: any free one. */
      port: z.number().int().min(0).max(65535).default(0),
      /** Where gRPC's health service is, on the same host; 0: any free one, null: nowhere. */
      healthPort: z.number().int().min(0).max(65535).nullable().default(null),
      /** Steps between two lines of metrics.jsonl. */
      logEverySteps: positiveInt.default(20),
    })
    .prefault({}),
  tracing: z
    .strictObject({
      /** An OpenTelemetry collector (OTLP over gRPC): http://host:4317, or https:// for TLS; null: nothing is traced. */
      endpoint: z
        .url({ protocol: /^https?$/ })
        .nullable()
        .default(null),
      /** One trace every so many steps. */
      everySteps: positiveInt.default(1),
    })
    .prefault({}),
});

export type Recipe = z.infer<typeof recipeSchema>;
type WithoutCount<T> = T extends unknown ? Omit<T, 'count'> : never;
export type Branch = WithoutCount<Recipe['branches'][number]>;
export type ResizedCrop = z.infer<typeof resizedCropSchema>;
export type MethodRecipe<Name extends Recipe['method']['name']> = Extract<Recipe['method'], { name: Name }>;
export type RampUp = z.infer<typeof rampUpSchema>;

const layers = (from: number, to: number, name: string) =>
  Array.from({ length: to - from + 1 }, (_, i) => `${name}${from + i}`);

/** A network's stages in order, by what `shareUntil` calls them: nn/models builds these very stages. */
export const STAGES: Record<Branch['network'], readonly string[]> = {
  resnet: ['stem', ...layers(1, 3, 'layer')],
  wrn: ['stem', ...layers(1, 3, 'layer')],
  vgg: layers(1, 5, 'stage'),
  densenet: ['stem', ...layers(1, 3, 'dense')],
  mobilenetv2: ['stem', ...layers(1, 7, 'stage'), 'top'],
  'imagenet-resnet': ['stem', ...layers(1, 4, 'layer')],
  'imagenet-mobilenetv2': ['stem', ...layers(1, 7, 'stage'), 'top'],
};

/** One entry a branch: `count` unrolled. */
export function branchesOf(recipe: Pick<Recipe, 'branches'>): Branch[] {
  return recipe.branches.flatMap(({ count, ...branch }) => Array.from({ length: count }, () => branch as Branch));
}

/** How many workers the recipe takes: one a replica (`together`) or one a branch of each replica (`split`). */
export function workersOf(recipe: Pick<Recipe, 'branches' | 'cluster'>): number {
  const { placement, replicas } = recipe.cluster;
  return placement === 'together' ? replicas : replicas * branchesOf(recipe).length;
}

/** TensorFlow threads for each of `workers` workers on this machine. */
export function threadsOf(recipe: Pick<Recipe, 'branches' | 'cluster'>): number {
  return recipe.cluster.threads ?? Math.max(1, Math.floor(availableParallelism() / workersOf(recipe)));
}

/**
 * Reads, changes and checks a recipe.
 * @param overrides `path=value` each, the value in YAML: `training.epochs=3`, `branches.0.depth=8`
 * @throws BraidError INVALID_RECIPE with every problem found, each with its path
 */
export function loadRecipe(file: string, overrides: string[] = []): Recipe {
  return checkRecipe(overrides.reduce(applyOverride, readRecipe(file)), file);
}

/** A recipe's YAML as it stands, unchecked. @throws BraidError INVALID_RECIPE when it cannot be read */
export function readRecipe(file: string): unknown {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new BraidError('INVALID_RECIPE', `cannot read the recipe ${file}: ${(cause as Error).message}`, {
      remedy: 'Name a YAML file, for example recipes/quickstart.yaml.',
      cause,
    });
  }
  try {
    return parse(text);
  } catch (cause) {
    throw new BraidError('INVALID_RECIPE', `${file} is not YAML: ${(cause as Error).message}`, { cause });
  }
}

/** Checks a recipe that is already an object; `source` names it in errors. */
export function checkRecipe(raw: unknown, source = 'recipe'): Recipe {
  const parsed = recipeSchema.safeParse(raw);
  const problems = parsed.success ? contradictions(parsed.data) : parsed.error.issues.flatMap((i) => describe(i, raw));
  if (problems.length > 0) {
    throw new BraidError('INVALID_RECIPE', `${source}:\n${problems.map((p) => `  ${p}`).join('\n')}`, {
      remedy: 'Mend the recipe, or override the value with --set path=value.',
    });
  }
  return parsed.data!;
}

export function formatRecipe(recipe: Recipe): string {
  return stringify(recipe);
}

/** What the schema cannot say of one value alone. */
function contradictions(recipe: Recipe): string[] {
  const problems: string[] = [];
  const branches = branchesOf(recipe);
  const { batch } = recipe.training;
  const { replicas, minReplicas, maxReplicas } = recipe.cluster;
  branches.forEach((branch, i) => {
    const problem = depthProblem(branch);
    if (problem !== null) problems.push(`branches: branch ${i} has ${problem}`);
  });
  if (recipe.trunk === 'shared' && branches.some((b) => JSON.stringify(b) !== JSON.stringify(branches[0]))) {
    problems.push('trunk: branches of different networks cannot share a trunk: set trunk to none');
  }
  if (recipe.shareUntil !== null) {
    for (const network of new Set(branches.map((branch) => branch.network))) {
      const stages = STAGES[network].slice(0, -1);
      if (!stages.includes(recipe.shareUntil))
        problems.push(`shareUntil: ${network} has no stage ${recipe.shareUntil} before its last: ${stages.join(', ')}`);
    }
  }
  const { recompute } = recipe.training;
  const known = [...new Set(branches.flatMap(({ network }) => STAGES[network]))];
  for (const stage of typeof recompute === 'boolean' ? [] : recompute) {
    if (!known.includes(stage)) problems.push(`training.recompute: there is no stage ${stage}: ${known.join(', ')}`);
  }
  problems.push(...methodProblems(recipe, branches.length));
  if (branches.length > 5) problems.push(`branches: ${branches.length} branches, 5 are the most`);
  if (batch % replicas !== 0) {
    problems.push(
      `training.batch: ${batch} is not divisible by ${replicas} replicas (cluster.replicas): use ${Math.ceil(batch / replicas) * replicas}`,
    );
  }
  if (minReplicas !== null && minReplicas > replicas)
    problems.push(`cluster.minReplicas: ${minReplicas} is more than cluster.replicas, ${replicas}`);
  if (maxReplicas !== null && maxReplicas < replicas)
    problems.push(`cluster.maxReplicas: ${maxReplicas} is less than cluster.replicas, ${replicas}`);
  if (maxReplicas !== null && maxReplicas > batch)
    problems.push(`cluster.maxReplicas: ${maxReplicas} replicas cannot share a batch of ${batch}`);
  if (recipe.data.mean.length !== recipe.data.std.length) {
    problems.push(`data.std: ${recipe.data.std.length} values, but data.mean has ${recipe.data.mean.length}`);
  }
  const { everySteps, keepEverySteps } = recipe.checkpoint;
  if (keepEverySteps > 0 && (everySteps === 0 || keepEverySteps % everySteps !== 0)) {
    problems.push(
      `checkpoint.keepEverySteps: ${keepEverySteps} is not a multiple of checkpoint.everySteps, which is ${everySteps}`,
    );
  }
  recipe.data.std.forEach((s, i) => {
    if (!(s > 0)) problems.push(`data.std.${i}: ${s} is not above 0`);
  });
  const { format, testPath } = recipe.data;
  const ofFiles = IMAGE_FILES.includes(format);
  if (ofFiles && testPath === undefined) problems.push(`data.testPath: required with format ${format}`);
  if (!ofFiles && testPath !== undefined) problems.push(`data.testPath: only for format ${IMAGE_FILES.join(' and ')}`);
  const { epochs, warmUp } = recipe.training;
  if (warmUp.epochs >= epochs)
    problems.push(`training.warmUp.epochs: ${warmUp.epochs}, but the run has ${epochs}: nothing is left to train`);
  if (recipe.data.perBranch && recipe.trunk === 'shared') {
    problems.push(
      'data.perBranch: branches that share a trunk see the same pixels: set trunk to none, or perBranch to false',
    );
  }
  if (recipe.data.send === 'ids' && format !== 'indexed') {
    problems.push(`data.send: ids, but format ${format} has no index: set format to indexed, or send to bytes`);
  }
  problems.push(...resizedCropProblems(recipe.data));
  return problems;
}

/** Formats of JPEG and PNG files. */
const IMAGE_FILES: readonly string[] = ['folder', 'indexed'];

function resizedCropProblems({ resizedCrop, format, augment, mean }: Recipe['data']): string[] {
  if (resizedCrop === null) return [];
  const problems: string[] = [];
  const { size, area, ratio, evaluationResize } = resizedCrop;
  if (!IMAGE_FILES.includes(format)) {
    problems.push(`data.resizedCrop: only for format ${IMAGE_FILES.join(' and ')}, here is ${format}`);
  }
  if (augment.pad !== 0) {
    problems.push(`data.augment.pad: ${augment.pad}, but data.resizedCrop takes the crop: set pad to 0`);
  }
  if (mean.length !== 3) {
    problems.push(`data.mean: ${mean.length} value(s), but data.resizedCrop makes images of 3 channels`);
  }
  if (area[0] > area[1]) problems.push(`data.resizedCrop.area: from ${area[0]} to ${area[1]}: put the smaller first`);
  if (ratio[0] > ratio[1])
    problems.push(`data.resizedCrop.ratio: from ${ratio[0]} to ${ratio[1]}: put the smaller first`);
  if (evaluationResize < size) {
    problems.push(
      `data.resizedCrop.evaluationResize: ${evaluationResize} is less than the size that is cut from it, ${size}`,
    );
  }
  return problems;
}

function depthProblem(branch: Branch): string | null {
  const rule = (base: number, step: number) =>
    `depth ${'depth' in branch && branch.depth}, which is not ${step}n+${base} (${base + step}, ${base + 2 * step}, ...)`;
  switch (branch.network) {
    case 'resnet': {
      const step = branch.block === 'basic' ? 6 : 9;
      return (branch.depth - 2) % step === 0 && branch.depth > 2 ? null : rule(2, step);
    }
    case 'wrn':
    case 'densenet':
      return (branch.depth - 4) % 6 === 0 && branch.depth > 4 ? null : rule(4, 6);
    default:
      return null;
  }
}

function methodProblems({ method, trunk }: Recipe, branches: number): string[] {
  const problems: string[] = [];
  if (method.name !== 'vanilla' && branches < 2) {
    problems.push(
      `method.name: ${method.name} needs at least 2 branches, here is ${branches}: add count: 2 to branches.0, or use vanilla`,
    );
  }
  if (method.name === 'dualnet') {
    if (branches > 2) problems.push(`method.name: dualnet takes 2 branches, here are ${branches}`);
    if (Object.values(method.phases).every((part) => part === 0)) problems.push('method.phases: at least one above 0');
  }
  if (method.name === 'one' && method.gateBlocks > 0 && trunk === 'none') {
    problems.push(
      'method.gateBlocks: blocks before the gate need a shared trunk: set trunk to shared, or gateBlocks to 0',
    );
  }
  if (method.name === 'dml' && method.update === 'alternate' && trunk === 'shared') {
    problems.push('method.update: networks that learn one after another cannot share a trunk: set trunk to none');
  }
  if (method.name === 'ffl' && method.fusion === null && method.ensembleToFused) {
    problems.push('method.ensembleToFused: there is no fused classifier to teach with fusion null: set it to false');
  }
  return problems;
}

function applyOverride(raw: unknown, override: string): unknown {
  const equals = override.indexOf('=');
  if (equals < 1) {
    throw new BraidError('INVALID_RECIPE', `--set ${override}: expected path=value`, {
      remedy: 'For example: --set training.epochs=3',
    });
  }
  const path = override.slice(0, equals).split('.');
  let value: unknown;
  try {
    value = parse(override.slice(equals + 1));
  } catch (cause) {
    throw new BraidError('INVALID_RECIPE', `--set ${override}: the value is not YAML`, { cause });
  }
  const root = structuredClone(raw ?? {}) as Record<string, unknown>;
  let at = root;
  for (const key of path.slice(0, -1)) {
    if (typeof at[key] !== 'object' || at[key] === null) at[key] = {};
    at = at[key] as Record<string, unknown>;
  }
  at[path.at(-1)!] = value;
  return root;
}

function describe(issue: z.core.$ZodIssue, raw: unknown): string[] {
  const path = issue.path.join('.');
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const known = nearest(key, keysAt(issue.path, raw));
      return `${[...issue.path, key].join('.')}: unknown key${known === undefined ? '' : `, did you mean ${known}?`}`;
    });
  }
  const given = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], raw);
  const found = given === undefined ? 'missing' : `${JSON.stringify(given)}`;
  return [`${path === '' ? '(top)' : path}: ${found}: ${issue.message}`];
}

/** The keys that the schema knows at a path: what an unknown one may have been meant as. */
function keysAt(path: PropertyKey[], raw: unknown): string[] {
  let schema: unknown = recipeSchema;
  let value: unknown = raw;
  for (const key of path) {
    schema = typeof key === 'number' ? unwrap(schema, value, 'element') : unwrap(schema, value, 'shape')[key as string];
    value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  }
  return Object.keys(unwrap(schema, value, 'shape') ?? {});
}

// biome-ignore lint/suspicious/noExplicitAny: walks zod's schema objects, whose types are not public
function unwrap(schema: any, value: unknown, what: 'shape' | 'element'): any {
  let at = schema;
  while (at?._zod?.def?.innerType !== undefined) at = at._zod.def.innerType;
  if (at?._zod?.def?.options !== undefined) {
    const { discriminator, options } = at._zod.def;
    const wanted = (value as Record<string, unknown> | undefined)?.[discriminator];
    at =
      options.find((o: { shape: Record<string, { value?: unknown }> }) => o.shape[discriminator]?.value === wanted) ??
      options[0];
  }
  return at?.[what];
}
