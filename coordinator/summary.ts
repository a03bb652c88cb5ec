/** summary.json: what came out of a run. docs/summary.md has every field. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { VERSION } from '../proto/version.ts';
import type { ClassifierResult } from './evaluation.ts';
import type { Losses } from './events.ts';
import type { Seat } from './membership.ts';
import type { Plan } from './plan.ts';
import type { Recorder } from './recorder.ts';
import type { RunFolder } from './run-folder.ts';

export interface Summary {
  run: string;
  name: string;
  braid: string;
  method: string;
  placement: 'together' | 'split';
  branches: number;
  workers: number;
  devices: string[];
  /** Trainable elements of all branches and the method. */
  parameters: number;
  steps: number;
  epochs: number;
  trainSamples: number;
  testSamples: number;
  /** On the whole test set after the last step: each branch, their mean ("branches"), "ensemble", "fused". */
  results: ClassifierResult[];
  /** Means over the last `lossSteps` steps. */
  losses: Losses;
  lossSteps: number;
  /** Of this start of the run, from the first step on: all, and training steps alone. */
  seconds: number;
  trainSeconds: number;
  /** Training images over trainSeconds. */
  imagesPerSecond: number;
  medianStepSeconds: number;
  paths: { folder: string; recipe: string; metrics: string; checkpoint: string; summary: string };
}

export interface Outcome {
  run: string;
  plan: Plan;
  members: Seat[];
  parameters: number;
  seconds: number;
  recorder: Recorder;
  folder: RunFolder;
  /** Path of the last one. */
  checkpoint: string;
}

export function summaryOf({ run, plan, members, parameters, seconds, recorder, folder, checkpoint }: Outcome): Summary {
  const { recipe } = plan;
  return {
    run,
    name: recipe.name,
    braid: VERSION,
    method: recipe.method.name,
    placement: recipe.cluster.placement,
    branches: plan.branches,
    workers: plan.workers,
    devices: members.map(({ joined }) => joined.device),
    parameters,
    steps: plan.steps,
    epochs: Math.ceil(plan.steps / plan.stepsPerEpoch),
    trainSamples: plan.train.length,
    testSamples: plan.test.length,
    results: recorder.results,
    seconds,
    ...recorder.totals(),
    paths: {
      folder: folder.path,
      recipe: folder.recipe,
      metrics: folder.metrics,
      checkpoint,
      summary: folder.summary,
    },
  };
}

/** Of a run that has finished; null where none has. */
export function readSummary(folder: RunFolder): Summary | null {
  try {
    return JSON.parse(readFileSync(folder.summary, 'utf8'));
  } catch {
    return null;
  }
}

export function writeSummary(summary: Summary): void {
  const { paths } = summary;
  writeFileSync(`${paths.summary}.aside`, `${JSON.stringify(summary, null, 2)}\n`);
  renameSync(`${paths.summary}.aside`, paths.summary);
}
