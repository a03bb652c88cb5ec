/**
 * What a coordinator and a worker tell Prometheus: every metric, in one place. Names follow its conventions: base units,
 * `_total` for counters, `_seconds`, `_bytes`. docs/metrics.md is made of this: `npm run docs:metrics`.
 *
 * What there is one of for each worker is on the worker's own endpoint; the coordinator tells of all of them together
 * (`stat`), so that a thousand workers make it no longer.
 */
import { counter, gauge, histogram, type Instruments, instruments } from './instruments.ts';

/** From a small network's step on a GPU to a large one's on a few cores. */
const STEP_BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const CHECKPOINT_BUCKETS_SECONDS = [0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300];

/** Over all workers. */
const STAT = ['min', 'median', 'max'] as const;
const DIRECTION = ['sent', 'received'] as const;
const LINK = ['gradients', 'shards', 'outputs', 'cotangents', 'state'] as const;
const MEMBER_STATES = ['training', 'waiting', 'leaving'] as const;
const RUN_STATES = ['waiting', 'training', 'evaluating'] as const;
/** disconnected: its connection ended. frozen: no sign of life. timeout: a call took far too long. failed: its device did. */
const LOSSES_OF_WORKERS = ['disconnected', 'frozen', 'timeout', 'failed'] as const;
const WORKER_STATES = ['joining', 'waiting', 'training'] as const;
const GPU = { gpu: "the worker's one, as CUDA_VISIBLE_DEVICES names it" } as const;
/** Members whose silence is told one by one: the longest. */
export const SILENT_MEMBERS = 10;

export type Stat = (typeof STAT)[number];
export type Direction = (typeof DIRECTION)[number];
export type Link = (typeof LINK)[number];
export type RunState = (typeof RUN_STATES)[number];
export type LossOfWorker = (typeof LOSSES_OF_WORKERS)[number];
export type WorkerState = (typeof WORKER_STATES)[number];

const phase =
  'of a step: compute (together); forward, method, backward (split); reduce, commit; and what comes between';

export const COORDINATOR_METRICS = {
  info: gauge('braid_run_info', 'Always 1; its labels name the run.', {
    run: 'the run',
    version: "Braid's",
    method: 'of the recipe',
    placement: 'of the recipe',
  }),
  runState: gauge('braid_run_state', '1 for what the run is doing; waiting: for workers.', { state: RUN_STATES }),
  step: gauge('braid_step', 'Steps committed.'),
  steps: gauge('braid_steps', 'Steps that the run has in all.'),
  epoch: gauge('braid_epoch', 'Epoch of the last committed step, from 0.'),
  epochs: gauge('braid_epochs', 'Epochs that the run has in all.'),
  secondsLeft: gauge('braid_seconds_left', 'For the remaining training steps, at the present rate.'),
  images: counter('braid_images_total', 'Training images of committed steps.'),
  imagesPerSecond: gauge('braid_images_per_second', 'Training images a second since the last line of metrics.jsonl.'),
  testImages: counter('braid_test_images_total', 'Test images that were evaluated.'),
  stepSeconds: histogram('braid_step_seconds', 'Time of a whole training step.', STEP_BUCKETS_SECONDS),
  phaseSeconds: histogram('braid_phase_seconds', 'Time of one phase, over all workers.', STEP_BUCKETS_SECONDS, {
    phase,
  }),
  memberPhaseSeconds: gauge(
    'braid_member_phase_seconds',
    'Time that members took for the last call of a phase, as the coordinator saw it.',
    { phase: 'compute, forward, backward, reduce, commit', stat: STAT },
  ),
  loss: gauge('braid_loss', 'Loss terms of the last committed step, nats, mean over the batch.', {
    term: "the method's: ce.0, fkd.0, ..., total",
  }),
  gradientNorm: gauge('braid_gradient_norm', 'L2 norm of the reduced gradient of the last committed step.'),
  learningRate: gauge('braid_learning_rate', 'Learning rate of the last committed step.'),
  distillWeight: gauge('braid_distill_weight', 'Ramp-up weight of the distillation terms.'),
  accuracy: gauge('braid_accuracy_ratio', 'Accuracy on the whole test set, after the last evaluation.', {
    classifier: "the network's: branch.0, ..., branches, ensemble, fused, ...",
    top: '1, 5',
  }),
  testLoss: gauge('braid_test_loss', 'Mean cross-entropy on the whole test set, nats.', { classifier: 'as above' }),
  evaluationSeconds: gauge('braid_evaluation_seconds', 'Time of the last evaluation.'),
  lossScale: gauge(
    'braid_loss_scale',
    'What the next losses are multiplied by before they are differentiated: 1 but in f16.',
  ),
  overflows: counter(
    'braid_overflows_total',
    'Updates left out because f16 gradients overflowed at their loss scale, which was halved.',
  ),
  skippedSteps: counter('braid_skipped_steps_total', 'Steps left out because they were not finite.'),
  badSamples: counter('braid_bad_samples_total', 'Samples of committed steps that could not be used.'),

  generation: gauge('braid_generation', 'Number of the current membership.'),
  members: gauge('braid_members', 'Workers by state; waiting: for the next generation.', { state: MEMBER_STATES }),
  membersWanted: gauge('braid_members_wanted', 'Workers that the recipe takes.'),
  retries: counter('braid_retries_total', 'Generations that ended by a fault and were followed by another.'),
  workersLost: counter('braid_workers_lost_total', 'Workers that went without having asked to.', {
    reason: LOSSES_OF_WORKERS,
  }),
  errors: counter('braid_errors_total', 'What ended or disturbed the run.', {
    code: 'of docs/troubleshooting.md',
  }),
  stragglerSeconds: gauge(
    'braid_straggler_seconds',
    'Median time of the member that holds a phase up, while it does.',
    {
      rank: 'one at a time',
      phase: 'compute, forward, backward',
    },
  ),
  longestSilence: gauge(
    'braid_longest_silence_seconds',
    'Since the last sign of life of the member that has been silent for longest: above cluster.heartbeatSeconds it may be frozen.',
  ),
  silence: gauge('braid_member_silent_seconds', 'Since the last sign of life of a member that has missed one.', {
    member: `its number; the ${SILENT_MEMBERS} most silent`,
    host: 'where it is',
  }),
  memberResident: gauge('braid_member_resident_bytes', "Members' memory, by their last signs of life.", { stat: STAT }),
  memberReadyShards: gauge('braid_member_ready_shards', "Shards that wait, decoded, for members' devices.", {
    stat: STAT,
  }),
  memberLag: gauge(
    'braid_member_event_loop_lag_seconds',
    "Longest lag of members' event loops between signs of life.",
    {
      stat: STAT,
    },
  ),
  deviceSeconds: counter('braid_device_seconds_total', "Time that all workers' devices computed in training steps."),
  inputSeconds: counter('braid_input_wait_seconds_total', "Time that all workers' devices waited for decoded images."),

  bytes: counter('braid_bytes_total', 'Payload bytes that workers sent or received.', {
    link: LINK,
    direction: DIRECTION,
  }),
  calls: gauge('braid_calls_in_flight', 'Calls to workers that have not been answered.'),
  shardStreams: gauge('braid_shard_streams', 'Streams of shards that workers are reading.'),

  checkpointSeconds: histogram(
    'braid_checkpoint_seconds',
    'Time from reading a state to its checkpoint being there to stay.',
    CHECKPOINT_BUCKETS_SECONDS,
  ),
  checkpointStep: gauge('braid_checkpoint_step', 'Step of the newest checkpoint.'),
  checkpointTime: gauge(
    'braid_checkpoint_timestamp_seconds',
    'When the newest checkpoint was written, Unix time; before the first, when training began: its age is time() less this.',
  ),
  checkpointInterval: gauge(
    'braid_checkpoint_interval_seconds',
    'Time between two checkpoints by the recipe, at the present rate; 0: there is only one, at the end.',
  ),
  checkpointSize: gauge('braid_checkpoint_size_bytes', 'Size of the newest checkpoint.'),
  checkpointBytes: counter('braid_checkpoint_bytes_total', 'Bytes of checkpoints that were written.'),
  checkpointFailures: counter('braid_checkpoint_failures_total', 'Checkpoints that could not be written.'),
  checkpointStallSeconds: counter(
    'braid_checkpoint_stall_seconds_total',
    'Time that training stood still to read states for checkpoints, or for one that was still being written.',
  ),
  checkpointWaits: counter('braid_checkpoint_waits_total', 'Checkpoints that waited for the one before.'),
};

export const WORKER_METRICS = {
  info: gauge('braid_worker_info', 'Always 1; its labels name the worker. Absent before it has joined.', {
    run: 'the run',
    member: 'its number',
    rank: 'in the current generation, "" before the first',
    host: 'its machine',
    device: "CPU, or the GPU's name",
    version: "Braid's",
  }),
  state: gauge('braid_worker_state', '1 for the state that the worker is in; waiting: it has no weights yet.', {
    state: WORKER_STATES,
  }),
  step: gauge('braid_worker_step', 'Steps committed.'),
  generation: gauge('braid_worker_generation', 'Number of the latest membership that the worker was told of.'),
  rejoins: counter('braid_worker_rejoins_total', 'Times that the worker lost the coordinator and joined again.'),
  phaseSeconds: histogram('braid_worker_phase_seconds', 'Time of a call, on this worker.', STEP_BUCKETS_SECONDS, {
    phase: 'prepare, connect, compute, forward, backward, reduce, commit, evaluate',
  }),

  deviceSeconds: counter('braid_worker_device_seconds_total', 'Time in TensorFlow sessions.', {
    phase: 'of the program: compute, trunkBackward, forward, backward, apply, evaluate, forwardTest, read, write',
  }),
  tensors: gauge('braid_worker_tensors', 'Tensors that TensorFlow holds for the process: feeds and results under way.'),
  gpuMemoryUsed: gauge('braid_worker_gpu_memory_used_bytes', 'Memory in use on the GPU. Absent without a GPU.', GPU),
  gpuMemoryTotal: gauge('braid_worker_gpu_memory_total_bytes', 'Memory of the GPU. Absent without a GPU.', GPU),
  gpuUtilisation: gauge(
    'braid_worker_gpu_utilisation_ratio',
    'Part of the last sample period in which the GPU computed, by nvidia-smi. Absent without a GPU.',
    GPU,
  ),

  readyShards: gauge('braid_worker_ready_shards', 'Shards that wait, decoded, for the device.'),
  images: counter('braid_worker_decoded_images_total', 'Images decoded and augmented.'),
  decodeSeconds: counter('braid_worker_decode_seconds_total', 'Time that input threads decoded and augmented, summed.'),
  inputSeconds: counter('braid_worker_input_wait_seconds_total', 'Time that the device waited for decoded images.'),

  bytes: counter('braid_worker_bytes_total', 'Payload bytes that this worker sent or received.', {
    link: LINK,
    direction: DIRECTION,
  }),
};

export type Metrics = Instruments<typeof COORDINATOR_METRICS>;
export type WorkerMetrics = Instruments<typeof WORKER_METRICS>;

export const createMetrics = (): Metrics => instruments(COORDINATOR_METRICS);
export const createWorkerMetrics = (): WorkerMetrics => instruments(WORKER_METRICS);
