/**
 * What a run tells Prometheus. Names follow its conventions: base units, `_total` for counters, `_seconds`, `_bytes`.
 * One registry a run, so that two runs in one process never mix.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

/** From a small network's step on a GPU to a large one's on a few cores. */
const STEP_BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const CHECKPOINT_BUCKETS_SECONDS = [0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60];

export type Metrics = ReturnType<typeof createMetrics>;

export function createMetrics() {
  const registry = new Registry();
  const registers = [registry];
  const gauge = <Label extends string = never>(name: string, help: string, labelNames: Label[] = []) =>
    new Gauge({ name, help, labelNames, registers });
  const counter = <Label extends string = never>(name: string, help: string, labelNames: Label[] = []) =>
    new Counter({ name, help, labelNames, registers });
  const histogram = <Label extends string = never>(
    name: string,
    help: string,
    buckets: number[],
    labelNames: Label[],
  ) => new Histogram({ name, help, buckets, labelNames, registers });
  return {
    registry,
    info: gauge('braid_run_info', 'Always 1; its labels name the run.', ['run', 'version', 'method', 'placement']),
    step: gauge('braid_step', 'Steps committed.'),
    steps: gauge('braid_steps', 'Steps that the run has in all.'),
    epoch: gauge('braid_epoch', 'Epoch of the last committed step, from 0.'),
    generation: gauge('braid_generation', 'Number of the current membership.'),
    members: gauge('braid_members', 'Workers by state.', ['state']),
    stepSeconds: histogram('braid_step_seconds', 'Time of a whole training step.', STEP_BUCKETS_SECONDS, []),
    phaseSeconds: histogram(
      'braid_phase_seconds',
      'Time of one phase of a step, over all workers.',
      STEP_BUCKETS_SECONDS,
      ['phase'],
    ),
    deviceSeconds: counter('braid_device_seconds_total', 'Time that devices computed in training steps.', ['rank']),
    inputSeconds: counter('braid_input_wait_seconds_total', 'Time that devices waited for decoded images.', ['rank']),
    images: counter('braid_images_total', 'Training images of committed steps.'),
    imagesPerSecond: gauge('braid_images_per_second', 'Training images a second since the last line of metrics.jsonl.'),
    loss: gauge('braid_loss', 'Loss terms of the last committed step, nats, mean over the batch.', ['term']),
    gradientNorm: gauge('braid_gradient_norm', 'L2 norm of the reduced gradient of the last committed step.'),
    learningRate: gauge('braid_learning_rate', 'Learning rate of the last committed step.'),
    distillWeight: gauge('braid_distill_weight', 'Ramp-up weight of the distillation terms.'),
    accuracy: gauge('braid_accuracy_ratio', 'Accuracy on the whole test set.', ['classifier', 'top']),
    testLoss: gauge('braid_test_loss', 'Mean cross-entropy on the whole test set, nats.', ['classifier']),
    evaluationSeconds: gauge('braid_evaluation_seconds', 'Time of the last evaluation.'),
    bytes: counter('braid_bytes_total', 'Payload bytes that workers sent or received.', ['kind', 'direction']),
    checkpointSeconds: histogram(
      'braid_checkpoint_seconds',
      'Time from reading a state to its checkpoint being there to stay.',
      CHECKPOINT_BUCKETS_SECONDS,
      [],
    ),
    checkpointStep: gauge('braid_checkpoint_step', 'Step of the newest checkpoint.'),
    checkpointBytes: counter('braid_checkpoint_bytes_total', 'Bytes of checkpoints that were written.'),
    checkpointStallSeconds: counter(
      'braid_checkpoint_stall_seconds_total',
      'Time that training stood still to read states for checkpoints, or for one that was still being written.',
    ),
    checkpointWaits: counter('braid_checkpoint_waits_total', 'Checkpoints that waited for the one before.'),
    retries: counter('braid_retries_total', 'Generations that ended by a fault and were followed by another.'),
    workersLost: counter('braid_workers_lost_total', 'Workers that went while the run needed them.'),
    badSamples: counter('braid_bad_samples_total', 'Samples of committed steps that could not be used.'),
    skippedSteps: counter('braid_skipped_steps_total', 'Steps left out because they were not finite.'),
    stragglerSeconds: gauge(
      'braid_straggler_seconds',
      'Median time of a member that holds a phase up, while it does.',
      ['rank', 'phase'],
    ),
    errors: counter('braid_errors_total', 'What ended or disturbed the run, by error code.', ['code']),
  };
}

const WORKER_STATES = ['joining', 'waiting', 'training'] as const;

export interface WorkerProgress {
  /** waiting: it has joined, and has no state yet. */
  state: (typeof WORKER_STATES)[number];
  /** Steps committed. */
  step: number;
  generation: number;
}

/** What a worker tells, asked for when it is scraped. */
export function createWorkerMetrics(progress: () => WorkerProgress): { registry: Registry } {
  const registry = new Registry();
  const registers = [registry];
  new Gauge({
    name: 'braid_worker_state',
    help: '1 for the state that the worker is in.',
    labelNames: ['state'],
    registers,
    collect() {
      for (const state of WORKER_STATES) this.set({ state }, progress().state === state ? 1 : 0);
    },
  });
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  gauge('braid_worker_step', 'Steps committed.', () => progress().step);
  gauge(
    'braid_worker_generation',
    'Number of the latest membership that the worker was told of.',
    () => progress().generation,
  );
  return { registry };
}
