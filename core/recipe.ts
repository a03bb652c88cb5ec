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

const positiveInt = z.number().int().positive();
const count = z.number().int().nonnegative();

const branchSchema = z.strictObject({
  /** CIFAR-style ResNet of depth 6n+2 with basic blocks (He et al. 2016, section 4.2). */
  network: z.literal('resnet').default('resnet'),
  depth: positiveInt.default(32),
  /** Channels of the first stage; the second and third have 2 and 4 times as many. */
  width: positiveInt.default(16),
  /** How many branches of this very kind. */
  count: positiveInt.default(1),
});

const rampUpSchema = z.discriminatedUnion('kind', [
  /** w(e) = exp(-5 (1 - clip(e, 0, epochs) / epochs)^2), e the 0-based epoch. */
  z.strictObject({ kind: z.literal('exponential'), epochs: positiveInt.default(80) }),
  z.strictObject({ kind: z.literal('constant'), value: z.number().nonnegative().default(1) }),
]);

const vanillaSchema = z.strictObject({ name: z.literal('vanilla') });

const fflSchema = z.strictObject({
  name: z.literal('ffl'),
  /** T of the softened distributions. */
  temperature: z.number().positive().default(3),
  /** Added to every teacher probability, without renormalising: 1e-7 in the authors' code. */
  teacherEpsilon: z.number().nonnegative().default(1e-7),
  rampUp: rampUpSchema.default({ kind: 'exponential', epochs: 80 }),
  /** Channels N after the fusion module's pointwise convolution; null: the widest branch's. */
  fusionChannels: positiveInt.nullable().default(null),
});

const perChannel = z.array(z.number()).min(1).max(3);

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
    format: z.enum(['cifar10', 'cifar100', 'idx', 'folder']),
    /** Folder with the files of the format. For `folder`: the training images, a folder or .tar with a sub-folder a class. */
    path: z.string().min(1),
    /** A data set that `braid data fetch` knows: brought into `path` when its files are not there. */
    fetch: z.string().nullable().default(null),
    /** For `folder` only: the test images. */
    testPath: z.string().min(1).optional(),
    /** How many classes the networks tell apart; null: as many as the format has. */
    classes: positiveInt.nullable().default(null),
    shuffle: z.boolean().default(true),
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
  }),
  branches: z.array(branchSchema).min(1),
  /** `shared`: the stem and the stages before the last are one for all branches. `none`: every branch is a whole network. */
  trunk: z.enum(['shared', 'none']).default('shared'),
  method: z.discriminatedUnion('name', [vanillaSchema, fflSchema]),
  training: z.strictObject({
    epochs: positiveInt.default(300),
    /** Stop after this many steps, whatever the epoch; null: after the last epoch. */
    maxSteps: positiveInt.nullable().default(null),
    /** Global batch: it is sharded over the replicas. */
    batch: positiveInt.default(128),
    learningRate: z.number().positive().default(0.1),
    /** 0-based epochs from which the learning rate is multiplied by `gamma` once more. */
    milestones: z.array(positiveInt).default([150, 225]),
    gamma: z.number().positive().default(0.1),
    momentum: z.number().min(0).max(1).default(0.9),
    nesterov: z.boolean().default(true),
    /** Coupled L2 on every weight of the networks, batch norms and biases included. */
    weightDecay: z.number().nonnegative().default(1e-4),
    /** The same for the fusion module. */
    fusionWeightDecay: z.number().nonnegative().default(1e-5),
    /** `bf16`: convolutions and activations in bfloat16, weights, statistics and losses in f32. */
    precision: z.enum(['f32', 'bf16']).default('f32'),
    /** A .safetensors file with the first weights, PyTorch names and layouts; null: drawn from the seed. */
    initialWeights: z.string().nullable().default(null),
  }),
  evaluation: z
    .strictObject({
      /** Samples a run of the evaluation graph. */
      batch: positiveInt.default(250),
      everyEpochs: positiveInt.default(1),
    })
    .prefault({}),
  cluster: z
    .strictObject({
      /** `together`: one worker holds a whole replica. `split`: one worker a branch, the coordinator hosts the method. */
      placement: z.enum(['together', 'split']).default('together'),
      replicas: positiveInt.default(1),
      /** TensorFlow threads of each worker; null: this machine's cores divided by its workers, at least 1. */
      threads: positiveInt.nullable().default(null),
      /** Threads of each worker that decode and augment. */
      inputThreads: positiveInt.default(1),
      /** Batches prepared ahead of need. */
      prefetch: positiveInt.default(2),
      /** How long the coordinator waits for all workers to join. */
      joinTimeoutSeconds: z.number().positive().default(120),
      /** How long one phase of a step may take before the worker is given up. */
      stepTimeoutSeconds: z.number().positive().default(600),
    })
    .prefault({}),
  checkpoint: z
    .strictObject({
      /** 0: only at the end. */
      everySteps: count.default(0),
      /** How many of the newest to keep. */
      keep: positiveInt.default(3),
    })
    .prefault({}),
  metrics: z
    .strictObject({
      /** Port of the Prometheus endpoint; 0: any free one. */
      port: z.number().int().min(0).max(65535).default(0),
      /** Steps between two lines of metrics.jsonl. */
      logEverySteps: positiveInt.default(20),
    })
    .prefault({}),
});

export type Recipe = z.infer<typeof recipeSchema>;
export type Branch = Omit<Recipe['branches'][number], 'count'>;
export type RampUp = z.infer<typeof rampUpSchema>;

/** One entry a branch: `count` unrolled. */
export function branchesOf(recipe: Pick<Recipe, 'branches'>): Branch[] {
  return recipe.branches.flatMap(({ count, ...branch }) => Array.from({ length: count }, () => branch));
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
  const { replicas } = recipe.cluster;
  branches.forEach(({ depth }, i) => {
    if ((depth - 2) % 6 !== 0 || depth < 8)
      problems.push(`branches: branch ${i} has depth ${depth}, which is not 6n+2 (8, 14, 20, 32, ...)`);
  });
  if (recipe.trunk === 'shared' && branches.some((b) => JSON.stringify(b) !== JSON.stringify(branches[0]))) {
    problems.push('trunk: branches of different networks cannot share a trunk: set trunk to none');
  }
  if (recipe.method.name === 'ffl' && branches.length < 2) {
    problems.push(
      `method.name: ffl fuses at least 2 branches, here is ${branches.length}: add count: 2 to branches.0, or use vanilla`,
    );
  }
  if (branches.length > 5) problems.push(`branches: ${branches.length} branches, 5 are the most`);
  if (batch % replicas !== 0) {
    problems.push(
      `training.batch: ${batch} is not divisible by ${replicas} replicas (cluster.replicas): use ${Math.ceil(batch / replicas) * replicas}`,
    );
  }
  if (recipe.data.mean.length !== recipe.data.std.length) {
    problems.push(`data.std: ${recipe.data.std.length} values, but data.mean has ${recipe.data.mean.length}`);
  }
  recipe.data.std.forEach((s, i) => {
    if (!(s > 0)) problems.push(`data.std.${i}: ${s} is not above 0`);
  });
  if ((recipe.data.format === 'folder') !== (recipe.data.testPath !== undefined)) {
    problems.push(
      recipe.data.format === 'folder'
        ? 'data.testPath: required with format folder'
        : 'data.testPath: only for format folder',
    );
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
