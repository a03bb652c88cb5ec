/** comparison.json: every system's figures over its seeds. docs/compare.md has every field. */
import type { Complexity, Cost } from '../nn/complexity.ts';
import { VERSION } from '../proto/version.ts';
import { inOrder } from './classifiers.ts';
import { type Difference, differencesOf } from './comparable.ts';
import { type Calibration, type FinishedRun, type Result, wallTime } from './finished-run.ts';
import { type Statistic, statisticOf } from './statistics.ts';

/** What is compared: the runs of one system, a seed each. */
export interface System {
  label: string;
  complexity: Complexity | null;
  runs: FinishedRun[];
}

/** A run that ended with an error. */
export interface Failure {
  system: string;
  seed: number;
  error: string;
}

export interface Comparison {
  name: string;
  braid: string;
  systems: SystemFigures[];
  differences: Difference[];
  /** What else a reader should know before reading the tables. */
  notes: string[];
  failures: Failure[];
}

export interface SystemFigures {
  label: string;
  method: string | null;
  /** Trainable elements in training; null: not known. */
  parameters: number | null;
  /** Of one image through all branches and the method; null: not known. */
  multiplyAdds: number | null;
  branches: Cost[];
  runs: RunFigures[];
  /** null: of no run. */
  seconds: Statistic | null;
  imagesPerSecond: Statistic | null;
  /** After the last step. */
  last: Score[];
  /** Each classifier at its best epoch on the test set: test-selected. null: not asked for. */
  best: Score[] | null;
}

export interface RunFigures {
  seed: number;
  folder: string;
  epochs: number | null;
  /** null: not known. */
  seconds: number | null;
  /** Whether `seconds` was worked out from the last start of a run that was resumed. */
  secondsEstimated: boolean;
  imagesPerSecond: number | null;
  devices: string[];
}

/** A classifier's error over the seeds. */
export interface Score {
  classifier: string;
  top1: Rate;
  top5: Rate;
  /** Expected calibration error; null: not known. */
  ece: Statistic | null;
}

export interface Rate extends Statistic {
  seeds: {
    seed: number;
    correct: number;
    samples: number;
    error: number;
    /** Of a test-selected score. */
    epoch?: number;
  }[];
}

export interface ComparisonOptions {
  name: string;
  systems: System[];
  failures: Failure[];
  /** Also each classifier's best epoch. */
  best: boolean;
}

export function comparisonOf({ name, systems, failures, best }: ComparisonOptions): Comparison {
  return {
    name,
    braid: VERSION,
    systems: systems.map((system) => figuresOf(system, best)),
    differences: differencesOf(new Map(systems.map(({ label, runs }) => [label, runs]))),
    notes: notesOf(systems),
    failures,
  };
}

function figuresOf({ label, complexity, runs }: System, best: boolean): SystemFigures {
  const figures = runs.map(runFigures);
  const over = (field: 'seconds' | 'imagesPerSecond') => {
    const known = figures.map((run) => run[field]).filter((value) => value !== null);
    return known.length === 0 ? null : statisticOf(known);
  };
  return {
    label,
    method: runs[0]?.recipe?.method.name ?? runs[0]?.summary.method ?? null,
    parameters: complexity?.parameters ?? runs[0]?.summary.parameters ?? null,
    multiplyAdds: complexity?.multiplyAdds ?? null,
    branches: complexity?.branches ?? [],
    runs: figures,
    seconds: over('seconds'),
    imagesPerSecond: over('imagesPerSecond'),
    last: scoresOf(runs, lastOf),
    best: best ? scoresOf(runs, bestOf) : null,
  };
}

function runFigures(run: FinishedRun): RunFigures {
  const time = wallTime(run);
  const { epochs, imagesPerSecond, devices } = run.summary;
  return {
    seed: run.seed,
    folder: run.folder,
    epochs: epochs ?? null,
    seconds: time?.seconds ?? null,
    secondsEstimated: time?.estimated ?? false,
    // 0 where the last start only evaluated.
    imagesPerSecond: imagesPerSecond ? imagesPerSecond : null,
    devices: devices ?? [],
  };
}

/** A classifier's result in a run, and its epoch where that was chosen; undefined: the run has no such classifier. */
type Choose = (run: FinishedRun, classifier: string) => { result: Result; epoch?: number } | undefined;

const lastOf: Choose = ({ summary }, classifier) => {
  const result = resultIn(summary.results, classifier);
  return result && { result };
};

/** The first of the epochs with the fewest errors. */
const bestOf: Choose = ({ epochs }, classifier) => {
  const seen = epochs.flatMap(({ epoch, results }) => {
    const result = resultIn(results, classifier);
    return result === undefined ? [] : [{ result, epoch }];
  });
  return seen.reduce<(typeof seen)[number] | undefined>(
    (best, at) => (best === undefined || errorOf(at.result) < errorOf(best.result) ? at : best),
    undefined,
  );
};

function scoresOf(runs: FinishedRun[], choose: Choose): Score[] {
  const classifiers = inOrder(runs.flatMap(({ summary }) => summary.results.map(({ classifier }) => classifier)));
  return classifiers.flatMap((classifier) => {
    const chosen = runs.flatMap((run) => {
      const choice = choose(run, classifier);
      return choice === undefined ? [] : [{ seed: run.seed, ...choice }];
    });
    if (chosen.length === 0) return [];
    const rate = (field: 'top1Correct' | 'top5Correct'): Rate => {
      const seeds = chosen.map(({ seed, result, epoch }) => ({
        seed,
        correct: result[field],
        samples: result.samples,
        error: 1 - result[field] / result.samples,
        ...(epoch !== undefined && { epoch }),
      }));
      return { ...statisticOf(seeds.map(({ error }) => error)), seeds };
    };
    const eces = chosen.flatMap(({ result }) => (result.calibration === undefined ? [] : [result.calibration.ece]));
    return [
      {
        classifier,
        top1: rate('top1Correct'),
        top5: rate('top5Correct'),
        ece: eces.length === 0 ? null : statisticOf(eces),
      },
    ];
  });
}

/** The bins of several runs taken together. */
export function pooledBins(calibrations: Calibration[]): Calibration['bins'] {
  const bins = Math.max(0, ...calibrations.map(({ bins }) => bins.length));
  return Array.from({ length: bins }, (_, i) => {
    const parts = calibrations.flatMap(({ bins }) => bins[i] ?? []);
    const samples = parts.reduce((sum, part) => sum + part.samples, 0);
    const mean = (field: 'confidence' | 'accuracy') =>
      samples === 0 ? 0 : parts.reduce((sum, part) => sum + part[field] * part.samples, 0) / samples;
    return { samples, confidence: mean('confidence'), accuracy: mean('accuracy') };
  });
}

export function errorOf({ top1Correct, samples }: Result): number {
  return 1 - top1Correct / samples;
}

function resultIn(results: Result[], classifier: string): Result | undefined {
  return results.find((result) => result.classifier === classifier);
}

function notesOf(systems: System[]): string[] {
  const notes = [];
  const counts = new Set(systems.map(({ runs }) => runs.length));
  if (counts.size > 1) {
    const each = systems.map(({ label, runs }) => `${label} ${runs.length}`).join(', ');
    notes.push(`The systems have different numbers of finished seeds: ${each}.`);
  }
  const strangers = systems.filter(({ runs }) => runs.some(({ recipe }) => recipe === null));
  if (strangers.length > 0) {
    const labels = strangers.map(({ label }) => label).join(', ');
    notes.push(`No recipe is known of ${labels}: whether they were trained alike could not be checked.`);
  }
  return notes;
}
