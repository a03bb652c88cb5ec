/**
 * A finished run, read from its folder: Braid's own, or a peer's that writes the same files with fewer fields.
 *
 *     summary.json     required: `results`, each with its counts
 *     metrics.jsonl    for curves: lines of kind "step" and "epoch"
 *     recipe.yaml      for complexity, and to tell whether systems are comparable
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { loadRecipe, type Recipe } from '../core/recipe.ts';

const count = z.number().int().nonnegative();

const calibrationSchema = z.object({
  /** Expected calibration error: mean |confidence - accuracy| over the samples' bins. */
  ece: z.number(),
  bins: z.array(z.object({ samples: count, confidence: z.number(), accuracy: z.number() })),
});

const resultSchema = z.object({
  classifier: z.string().min(1),
  samples: count.positive(),
  top1Correct: count,
  top5Correct: count,
  calibration: calibrationSchema.optional(),
});

const summarySchema = z.object({
  results: z.array(resultSchema).min(1),
  method: z.string().optional(),
  parameters: count.optional(),
  steps: count.optional(),
  epochs: count.optional(),
  trainSamples: count.optional(),
  testSamples: count.optional(),
  seconds: z.number().optional(),
  trainSeconds: z.number().optional(),
  imagesPerSecond: z.number().optional(),
  devices: z.array(z.string()).optional(),
});

const lineSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('step'), step: count, losses: z.record(z.string(), z.number()) }),
  z.object({ kind: z.literal('epoch'), epoch: count, results: z.array(resultSchema) }),
]);

export type Calibration = z.infer<typeof calibrationSchema>;
export type Result = z.infer<typeof resultSchema>;
type Line = z.infer<typeof lineSchema>;

export interface FinishedRun {
  folder: string;
  seed: number;
  /** null: not there, or not one that this version reads. */
  recipe: Recipe | null;
  summary: z.infer<typeof summarySchema>;
  /** In order, each step once; empty without metrics.jsonl. */
  steps: Extract<Line, { kind: 'step' }>[];
  /** In order, each epoch once. */
  epochs: Extract<Line, { kind: 'epoch' }>[];
}

/**
 * @param seed where no recipe tells it
 * @throws BraidError INVALID_DATA when there is no summary.json, or it lacks what a table needs
 */
export function readRun(folder: string, seed: number): FinishedRun {
  const summary = readSummary(join(folder, 'summary.json'));
  const recipe = readRecipe(join(folder, 'recipe.yaml'));
  const lines = readLines(join(folder, 'metrics.jsonl'));
  // A run that was resumed may have evaluated an epoch twice: the later line stands.
  const steps = new Map(lines.flatMap((line) => (line.kind === 'step' ? [[line.step, line]] : [])));
  const epochs = new Map(lines.flatMap((line) => (line.kind === 'epoch' ? [[line.epoch, line]] : [])));
  return {
    folder,
    seed: recipe?.seed ?? seed,
    recipe,
    summary,
    steps: [...steps.values()].sort((a, b) => a.step - b.step),
    epochs: [...epochs.values()].sort((a, b) => a.epoch - b.epoch),
  };
}

/**
 * Seconds of the whole run. The summary has those of its last start alone: what earlier starts trained is added at the
 * same rate, and the result is `estimated` then. null: not known.
 */
export function wallTime({ summary, recipe }: FinishedRun): { seconds: number; estimated: boolean } | null {
  const { seconds, trainSeconds, imagesPerSecond, steps, trainSamples } = summary;
  if (seconds === undefined) return null;
  if (recipe === null || trainSeconds === undefined || imagesPerSecond === undefined)
    return { seconds, estimated: false };
  if (steps === undefined || trainSamples === undefined) return { seconds, estimated: false };
  const here = trainSeconds * imagesPerSecond;
  const all = imagesOf(steps, trainSamples, recipe.training.batch);
  if (here === 0) return null; // this start only evaluated
  const estimated = here < all - 0.5;
  return { seconds: estimated ? (seconds * all) / here : seconds, estimated };
}

/** Training images of the first `steps` steps. An epoch's last batch holds what is left. */
export function imagesOf(steps: number, trainSamples: number, batch: number): number {
  const stepsPerEpoch = Math.ceil(trainSamples / batch);
  return Math.floor(steps / stepsPerEpoch) * trainSamples + Math.min(trainSamples, (steps % stepsPerEpoch) * batch);
}

function readSummary(file: string): FinishedRun['summary'] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new BraidError('INVALID_DATA', `cannot read ${file}: ${(cause as Error).message}`, {
      remedy: 'Name the folder of a finished run: one that has a summary.json.',
      cause,
    });
  }
  const parsed = summarySchema.safeParse(jsonOf(text));
  if (parsed.success) return parsed.data;
  throw new BraidError('INVALID_DATA', `${file} is no summary of a run:\n${z.prettifyError(parsed.error)}`, {
    remedy: 'docs/compare.md has the fields that it needs.',
  });
}

function readRecipe(file: string): Recipe | null {
  try {
    return loadRecipe(file);
  } catch {
    return null; // a peer's, or an older version's
  }
}

function readLines(file: string): Line[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .split('\n')
    .flatMap((text) => {
      const parsed = lineSchema.safeParse(jsonOf(text)); // other kinds of lines are skipped
      return parsed.success ? [parsed.data] : [];
    });
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
