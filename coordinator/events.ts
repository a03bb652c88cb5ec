/** What a run tells whoever shows its progress: plain data, in the order in which it happens. */
import type { ClassifierResult } from './evaluation.ts';
import type { Summary } from './summary.ts';

/** Loss terms by name, nats, mean over the global batch. */
export type Losses = Record<string, number>;

export type RunEvent =
  | { kind: 'listening'; address: string; metrics: string; workers: number }
  | { kind: 'joined'; member: number; host: string; pid: number; device: string; joined: number; workers: number }
  /** A generation has ended by a fault; the run goes on. */
  | { kind: 'disturbed'; step: number; code: string; message: string }
  | { kind: 'regrouped'; generation: number; workers: number; step: number }
  /** A step's update was not finite and has been left out. */
  | { kind: 'skipped'; step: number }
  | { kind: 'started'; run: string; totals: RunTotals }
  | { kind: 'step'; progress: StepProgress }
  | { kind: 'evaluating'; epoch: number; step: number }
  | { kind: 'epoch'; epoch: number; step: number; results: ClassifierResult[]; seconds: number }
  | { kind: 'checkpoint'; step: number; path: string; bytes: number; seconds: number }
  | { kind: 'done'; summary: Summary };

export interface RunTotals {
  /** Steps of the whole run, and the one that this start begins with (above 0 after a resume). */
  steps: number;
  firstStep: number;
  stepsPerEpoch: number;
  epochs: number;
  trainSamples: number;
  testSamples: number;
  workers: number;
  /** Trainable elements of all branches and the method. */
  parameters: number;
  runFolder: string;
}

export interface StepProgress {
  /** The step just committed, from 0. */
  step: number;
  epoch: number;
  losses: Losses;
  learningRate: number;
  distillWeight: number;
  /** What losses were multiplied by before they were differentiated: 1 but in f16. */
  lossScale: number;
  /** L2 norm of the reduced gradient, batch statistics included. */
  gradientNorm: number;
  /** Over the steps since the last line of metrics.jsonl. */
  imagesPerSecond: number;
  /** Of training steps still to come, at that rate; evaluations and checkpoints not counted. */
  secondsLeft: number;
  /** Of this step, by phase. */
  phaseSeconds: Record<string, number>;
}
