/**
 * The recipe: everything a run is made of, as one strict schema. Every default lives here and in recipe/, and nowhere else.
 *
 * A recipe is read from YAML, changed by `--set path=value`, checked as a whole, and written back resolved into the
 * run's folder, so that a run can be repeated from its own folder alone.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { parse, stringify } from 'yaml';
import { z } from 'zod';
import { BraidError } from './errors.ts';
import { dataProblems, dataSchema } from './recipe/data.ts';
import { methodProblems, methodSchema } from './recipe/methods.ts';
import { branchesOf, branchSchema, networkProblems } from './recipe/networks.ts';
import { count, positiveInt } from './recipe/numbers.ts';
import { describe } from './recipe/problems.ts';
import { MAX_BATCH, trainingSchema } from './recipe/training.ts';

export type { ResizedCrop } from './recipe/data.ts';
export type { MethodRecipe, RampUp } from './recipe/methods.ts';
export { type Branch, branchesOf, STAGES } from './recipe/networks.ts';

/** Workers take these of a coordinator: far above what helps, and nothing that a machine could not bear. */
const MAX_INPUT_THREADS = 256;
const MAX_METHOD_THREADS = 256;
const MAX_PREFETCH = 256;

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
  data: dataSchema,
  branches: z.array(branchSchema).min(1),
  /** `shared`: the first stages are one for all branches. `none`: every branch is a whole network. */
  trunk: z.enum(['shared', 'none']).default('shared'),
  /** The last stage of the trunk; null: the network's own default (CIFAR: all but the last stage; ImageNet: all but two). */
  shareUntil: z.string().nullable().default(null),
  method: methodSchema,
  training: trainingSchema,
  evaluation: z
    .strictObject({
      /** Samples a run of the evaluation graph; null: as many as a worker trains on at a time, from 32 to 250. */
      batch: positiveInt.max(MAX_BATCH).nullable().default(null),
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
      /**
       * In `together`: gradients of what is above the trunks are summed while the trunks' backward still runs. It takes memory
       * for the trunks' activations once more; docs/recipes.md says what it brought where.
       */
      overlap: z.boolean().default(false),
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

/** How many workers the recipe takes: one a replica (`together`) or one a branch of each replica (`split`). */
export function workersOf(recipe: Pick<Recipe, 'branches' | 'cluster'>): number {
  const { placement, replicas } = recipe.cluster;
  return placement === 'together' ? replicas : replicas * branchesOf(recipe).length;
}

/** TensorFlow threads for each of `workers` workers on this machine. */
export function threadsOf(recipe: Pick<Recipe, 'branches' | 'cluster'>): number {
  return recipe.cluster.threads ?? Math.max(1, Math.floor(availableParallelism() / workersOf(recipe)));
}

/** Samples a run of the evaluation graph: by default it takes no more memory than training. */
export function evaluationBatchOf({ evaluation, training, cluster }: Recipe): number {
  const trained = Math.ceil(training.batch / cluster.replicas / training.microBatches);
  return evaluation.batch ?? Math.min(250, Math.max(32, trained));
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
  const problems = parsed.success
    ? contradictions(parsed.data)
    : parsed.error.issues.flatMap((i) => describe(i, recipeSchema, raw));
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
  const branches = branchesOf(recipe);
  const { method, data, trunk, training } = recipe;
  const problems = [
    ...networkProblems(branches, trunk, recipe.shareUntil, training.recompute),
    ...methodProblems(method, trunk, branches.length),
    ...dataProblems(data, trunk),
  ];
  const { batch, epochs, warmUp } = training;
  const { replicas, minReplicas, maxReplicas } = recipe.cluster;
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
  if (recipe.cluster.overlap && recipe.cluster.placement === 'split')
    problems.push('cluster.overlap: only with placement together: set it to false');
  if (recipe.cluster.overlap && recipe.training.microBatches > 1)
    problems.push(
      'cluster.overlap: not with training.microBatches, whose gradients are added up first: set one to its default',
    );
  if (warmUp.epochs >= epochs)
    problems.push(`training.warmUp.epochs: ${warmUp.epochs}, but the run has ${epochs}: nothing is left to train`);
  const { everySteps, keepEverySteps } = recipe.checkpoint;
  if (keepEverySteps > 0 && (everySteps === 0 || keepEverySteps % everySteps !== 0)) {
    problems.push(
      `checkpoint.keepEverySteps: ${keepEverySteps} is not a multiple of checkpoint.everySteps, which is ${everySteps}`,
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
