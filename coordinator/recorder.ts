/** Keeps account of a run: metrics, metrics.jsonl, events for the progress view, and the figures of the summary. */
import type { Metrics } from '../core/metrics.ts';
import type { Written } from './checkpoints.ts';
import type { ClassifierResult } from './evaluation.ts';
import type { Losses, RunEvent, StepProgress } from './events.ts';
import type { BadSamples, Journal } from './journal.ts';
import type { Meter } from './meter.ts';
import type { Decision, Plan } from './plan.ts';
import type { StepResult } from './step.ts';
import type { EventFile, Scalars } from './tensorboard.ts';

/** Steps whose losses the summary averages: one alone is noise. */
const SUMMARY_LOSS_STEPS = 20;

export interface RecorderOptions {
  plan: Plan;
  journal: Journal;
  events: EventFile;
  badSamples: BadSamples;
  metrics: Metrics;
  meter: Meter;
  onEvent(event: RunEvent): void;
}

export class Recorder {
  results: ClassifierResult[] = [];
  private readonly options: RecorderOptions;
  /** Since the last line of the journal. */
  private window = { images: 0, seconds: 0 };
  private images = 0;
  private begunAt = 0;
  private decidedAt = 0;
  /** Of the step that was decided last; null before the first. */
  private progress: StepProgress | null = null;
  private readonly stepSeconds: number[] = [];
  private readonly recentLosses: Losses[] = [];

  constructor(options: RecorderOptions) {
    this.options = options;
  }

  /** Training goes on from after `step` steps: what was written of later ones is no longer so. */
  goTo(step: number): void {
    this.options.journal.goTo(step);
    this.options.events.goTo(step);
    this.window = { images: 0, seconds: 0 };
  }

  evaluatedAfter(step: number): boolean {
    return this.options.journal.evaluatedAfter(step);
  }

  /** A step begins, or goes on. */
  begin(): void {
    this.begunAt = this.options.meter.now();
  }

  /**
   * The step that has begun will be committed. Its line is written before any worker changes a weight: should this process
   * die, workers never hold a step that the journal does not.
   */
  decided(step: Decision, { losses, gradientNorm }: StepResult): void {
    const { plan, journal, events, metrics, meter } = this.options;
    this.decidedAt = meter.now();
    this.window.images += step.samples;
    this.window.seconds += this.decidedAt - this.begunAt;
    const imagesPerSecond = this.window.images / this.window.seconds;
    const secondsAStep = plan.train.length / plan.stepsPerEpoch / imagesPerSecond;
    this.progress = {
      step: step.step,
      epoch: step.epoch,
      losses,
      learningRate: step.learningRate,
      distillWeight: step.distillWeight,
      lossScale: step.lossScale,
      gradientNorm,
      imagesPerSecond,
      secondsLeft: (plan.steps - step.step - 1) * secondsAStep,
      phaseSeconds: meter.take(),
    };
    metrics.checkpointInterval.set(plan.recipe.checkpoint.everySteps * secondsAStep);
    if ((step.step + 1) % plan.recipe.metrics.logEverySteps !== 0 && step.step + 1 !== plan.steps) return;
    journal.write({ kind: 'step', ...this.progress });
    events.scalars(step.step + 1, {
      ...named('loss', losses),
      ...named('seconds', this.progress.phaseSeconds),
      'train/learning_rate': step.learningRate,
      'train/distill_weight': step.distillWeight,
      'train/gradient_norm': gradientNorm,
      ...(plan.recipe.training.precision === 'f16' && { 'train/loss_scale': step.lossScale }),
      'train/images_per_second': imagesPerSecond,
    });
    this.window = { images: 0, seconds: 0 };
  }

  /** It has been committed. */
  step(step: Decision, { losses, gradientNorm, skipped, overflowed, bad }: StepResult): void {
    const { plan, metrics, meter, onEvent } = this.options;
    const now = meter.now();
    const seconds = now - this.begunAt;
    this.window.seconds += now - this.decidedAt;
    this.images += step.samples;
    this.stepSeconds.push(seconds);
    for (const { sample, reason } of bad) {
      metrics.badSamples.inc();
      this.options.badSamples.write({
        step: step.step,
        epoch: step.epoch,
        sample,
        where: plan.train.where(sample),
        reason,
      });
    }
    metrics.overflows.inc(overflowed);
    if (skipped > 0) {
      metrics.skippedSteps.inc();
      onEvent({ kind: 'skipped', step: step.step });
    } else this.recentLosses.push(losses);
    if (this.recentLosses.length > SUMMARY_LOSS_STEPS) this.recentLosses.shift();
    metrics.step.set(step.step + 1);
    metrics.epoch.set(step.epoch);
    metrics.stepSeconds.observe(seconds);
    metrics.images.inc(step.samples);
    metrics.imagesPerSecond.set(this.progress!.imagesPerSecond);
    metrics.secondsLeft.set(this.progress!.secondsLeft);
    metrics.gradientNorm.set(gradientNorm);
    metrics.learningRate.set(step.learningRate);
    metrics.distillWeight.set(step.distillWeight);
    metrics.lossScale.set(step.next.lossScale);
    for (const [term, loss] of Object.entries(losses)) metrics.loss.set({ term }, loss);
    onEvent({ kind: 'step', progress: this.progress! });
  }

  /** The test set has been evaluated after `step` steps. */
  evaluated(epoch: number, step: number, results: ClassifierResult[], seconds: number): void {
    const { plan, journal, events, metrics, meter, onEvent } = this.options;
    this.results = results;
    const scalars: Scalars = {};
    for (const { classifier, top1Accuracy, top5Accuracy, loss } of results) {
      metrics.accuracy.set({ classifier, top: '1' }, top1Accuracy);
      metrics.accuracy.set({ classifier, top: '5' }, top5Accuracy);
      metrics.testLoss.set({ classifier }, loss);
      scalars[`test_accuracy/${classifier}`] = top1Accuracy;
      scalars[`test_top5_accuracy/${classifier}`] = top5Accuracy;
      scalars[`test_loss/${classifier}`] = loss;
    }
    metrics.evaluationSeconds.set(seconds);
    metrics.testImages.inc(plan.test.length);
    meter.take(); // not the next step's
    journal.write({ kind: 'epoch', epoch, step, seconds, results });
    events.scalars(step, scalars);
    onEvent({ kind: 'epoch', epoch, step, seconds, results });
  }

  /** Training has stood still for a checkpoint: its state was read, after one that was being written where it `waited`. */
  stoodStill(seconds: number, waited: boolean): void {
    const { metrics, meter } = this.options;
    metrics.checkpointStallSeconds.inc(seconds);
    if (waited) metrics.checkpointWaits.inc();
    meter.take(); // not the next step's
  }

  /** A checkpoint is there to stay, `seconds` after its state began to be read. */
  checkpointed({ step, path, bytes }: Written, seconds: number): void {
    const { journal, metrics, onEvent } = this.options;
    metrics.checkpointSeconds.observe(seconds);
    metrics.checkpointStep.set(step);
    metrics.checkpointTime.setToCurrentTime();
    metrics.checkpointSize.set(bytes);
    metrics.checkpointBytes.inc(bytes);
    journal.write({ kind: 'checkpoint', step, path, bytes, seconds });
    onEvent({ kind: 'checkpoint', step, path, bytes, seconds });
  }

  /** What the summary says of the training steps. */
  totals() {
    const trainSeconds = this.stepSeconds.reduce((sum, seconds) => sum + seconds, 0);
    const sorted = [...this.stepSeconds].sort((a, b) => a - b);
    const losses: Losses = {};
    for (const each of this.recentLosses) {
      for (const [term, loss] of Object.entries(each)) {
        losses[term] = (losses[term] ?? 0) + loss / this.recentLosses.length;
      }
    }
    return {
      losses,
      lossSteps: this.recentLosses.length,
      trainSeconds,
      imagesPerSecond: trainSeconds > 0 ? this.images / trainSeconds : 0,
      medianStepSeconds: sorted[Math.floor(sorted.length / 2)] ?? 0,
    };
  }
}

function named(group: string, values: Record<string, number>): Scalars {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [`${group}/${name}`, value]));
}
