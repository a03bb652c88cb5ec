/**
 * How long a step takes, predicted. Each formula is here, with its source; docs/sizing.md says what is left out.
 *
 *   compute     max(FLOPs / peak, bytes moved / memory bandwidth) / efficiency      roofline: Williams, Waterman, Patterson,
 *               CACM 2009. FLOPs: 2 a multiply-add forward, 4 backward              "Roofline"
 *   all-reduce  mesh: 2 alpha + 2 (p-1)/p n / beta                                  Thakur, Rabenseifner, Gropp, IJHPCA 2005,
 *               ring: 2 (p-1) alpha + 2 (p-1)/p n / beta                            in the alpha-beta model (Hockney 1994)
 *   calls       a call to each worker costs the coordinator's thread CALL_SECONDS   `npm run bench -- scale`
 *   gather      all outputs over the coordinator's one link, or its threads'        as is scatter, of cotangents
 *
 * Phases follow one another and a step is their sum: what overlaps makes it shorter.
 */
import { topologyOf } from '../coordinator/prepare.ts';
import type { Recipe } from '../core/recipe.ts';
import type { DeviceSpec, NetSpec } from './devices.ts';
import type { RoleWork, Work } from './work.ts';

export type Placement = Recipe['cluster']['placement'];

export interface Cluster {
  device: DeviceSpec;
  net: NetSpec;
  /** Workers, each with a GPU; the coordinator has another one of the kind. With `cpu` all share the machine's cores. */
  gpus: number;
  /** Global batch. */
  batch: number;
  precision: Recipe['training']['precision'];
  wire: Recipe['cluster']['wire'];
  methodThreads: number;
  /** That a shard is computed in: less memory, the same work. */
  microBatches: number;
  /** Whether the sum of gradients is behind backward already. */
  overlap: boolean;
  /** Of the machine, for a device that is a core. */
  cores: number;
}

export interface Prediction {
  placement: Placement;
  gpus: number;
  /** The most samples that a worker has. */
  shard: number;
  seconds: number;
  /** Seconds of a step, in order. */
  phases: Record<string, number>;
  imagesPerSecond: number;
  memoryBytes: number;
  topology: 'mesh' | 'ring';
  /** Bytes of a step over a worker's link, in and out. */
  linkBytes: number;
  coordinator: { linkBytes: number; busy: number };
}

/** Of the coordinator's thread for one call to one worker: see docs/sizing.md for when and where it was measured. */
const CALL_SECONDS = 300e-6;
const CALLS = { together: 3, split: 5 };
/** What one thread brings through gRPC, with its checksums and copies: 0.3 to 0.5 GB a second of its time, over loopback. */
const THREAD_BYTES_A_SECOND = 0.45e9;
const F32_BYTES = 4;

/** @returns null where so many GPUs make no whole replica, or have less than a sample each */
export function predict(work: Work, cluster: Cluster, placement: Placement): Prediction | null {
  const { gpus, batch } = cluster;
  const replicas = placement === 'together' ? gpus : gpus / work.branches;
  if (!Number.isInteger(replicas) || replicas < 1 || replicas > batch) return null;
  const shard = Math.ceil(batch / replicas);
  const topology = topologyOf(gpus) === 'TOPOLOGY_RING' ? 'ring' : 'mesh';
  const common = { placement, gpus, shard, topology } as const;
  return placement === 'together' ? together(work, cluster, common) : split(work, cluster, common, replicas);
}

type Common = Pick<Prediction, 'placement' | 'gpus' | 'shard' | 'topology'>;

function together(work: Work, cluster: Cluster, common: Common): Prediction {
  const { replica } = work;
  const { gpus, batch } = cluster;
  const elements = Object.values(replica.segments).reduce((a, b) => a + b, 0);
  const phases = {
    compute: compute(cluster, gpus, common.shard, replica, 'both'),
    reduce: allReduce(cluster, gpus, elements),
    commit: memoryBound(cluster, gpus, replica.traffic.apply),
    calls: callSeconds(cluster, 'together'),
  };
  const coordinatorBytes = batch * work.shape.sampleBytes;
  const linkBytes = 2 * reducedBytes(cluster, gpus, elements) + common.shard * work.shape.sampleBytes;
  return finish(work, cluster, common, {
    phases,
    linkBytes,
    coordinatorBytes,
    memory: replica.memory(pieceOf(cluster, common.shard)),
  });
}

function split(work: Work, cluster: Cluster, common: Common, replicas: number): Prediction {
  const { branch, method, branches } = work;
  const { gpus, batch } = cluster;
  const slowest = (seconds: (role: RoleWork) => number) => Math.max(...branch.map(seconds));
  const outputBytes = F32_BYTES * common.shard * branch.reduce((sum, { outputs }) => sum + outputs, 0);
  const moved = moveSeconds(cluster, replicas, outputBytes);
  const largest = (segment: string) => Math.max(...branch.map(({ segments }) => segments[segment] ?? 0));
  const [trunk, own] = [largest('trunk'), largest('branch')];
  const phases = {
    forward: slowest((role) => compute(cluster, gpus, common.shard, role, 'forward')),
    gather: moved,
    method: replicas * compute(cluster, 1, common.shard, method, 'both'),
    scatter: moved,
    backward: slowest((role) => compute(cluster, gpus, common.shard, role, 'backward')),
    reduce: allReduce(cluster, gpus, trunk) + allReduce(cluster, replicas, own),
    commit: slowest((role) => memoryBound(cluster, gpus, role.traffic.apply)),
    calls: callSeconds(cluster, 'split'),
  };
  const sampleBytes = common.shard * work.shape.sampleBytes;
  const reduced = reducedBytes(cluster, gpus, trunk) + reducedBytes(cluster, replicas, own);
  const linkBytes = 2 * reduced + (2 * outputBytes) / branches + sampleBytes;
  const coordinatorBytes = branches * batch * work.shape.sampleBytes + 2 * replicas * outputBytes;
  const memory = Math.max(...branch.map((role) => role.memory(pieceOf(cluster, common.shard))));
  return finish(work, cluster, common, { phases, linkBytes, coordinatorBytes, memory });
}

/** Outputs of all replicas to the coordinator, or their cotangents back. @param bytes of one */
function moveSeconds({ methodThreads, net }: Cluster, replicas: number, bytes: number): number {
  const threads = Math.min(methodThreads, replicas);
  return (replicas * bytes) / Math.min(net.bandwidth, threads * THREAD_BYTES_A_SECOND) + net.latency;
}

function pieceOf({ microBatches }: Cluster, shard: number): number {
  return Math.ceil(shard / microBatches);
}

interface Parts {
  phases: Record<string, number>;
  linkBytes: number;
  coordinatorBytes: number;
  memory: number;
}

function finish(work: Work, cluster: Cluster, common: Common, parts: Parts): Prediction {
  const { batch, net } = cluster;
  const { phases, linkBytes, coordinatorBytes, memory } = parts;
  const sum = Object.values(phases).reduce((a, b) => a + b, 0);
  // Samples go out ahead of need: they only count where they are what the step waits for.
  const copies = common.placement === 'together' ? 1 : work.branches;
  const sending = (copies * batch * work.shape.sampleBytes) / Math.min(net.bandwidth, THREAD_BYTES_A_SECOND);
  const waiting = Math.max(0, sending - sum);
  const seconds = sum + waiting;
  const busy = Math.min(1, (phases.calls! + sending) / seconds);
  return {
    ...common,
    seconds,
    phases: waiting > 0 ? { ...phases, 'wait for samples': waiting } : phases,
    imagesPerSecond: batch / seconds,
    memoryBytes: memory,
    linkBytes,
    coordinator: { linkBytes: coordinatorBytes, busy },
  };
}

/** The roofline, before what is reached of it. @param sharers workers that compute at once, where they share the cores */
export function roofline(
  { device, precision, cores }: Pick<Cluster, 'device' | 'precision' | 'cores'>,
  sharers: number,
  { flops, bytes }: { flops: number; bytes: number },
): number {
  const units = device.cores === 0 ? 1 : cores / sharers;
  return Math.max(flops / (units * device.flops[precision]), bytes / (units * device.bandwidth));
}

function compute(
  cluster: Cluster,
  sharers: number,
  samples: number,
  { forwardFlops, backwardFlops, traffic }: RoleWork,
  which: 'forward' | 'backward' | 'both',
): number {
  const forward = which === 'backward' ? 0 : 1;
  const backward = which === 'forward' ? 0 : 1;
  const flops = samples * (forward * forwardFlops + backward * backwardFlops);
  const bytes = forward * traffic.forward(samples) + backward * traffic.backward(samples);
  return roofline(cluster, sharers, { flops, bytes }) / cluster.device.efficiency[cluster.precision];
}

function memoryBound(cluster: Cluster, sharers: number, bytes: number): number {
  return roofline(cluster, sharers, { flops: 0, bytes }) / cluster.device.efficiency.f32;
}

function allReduce({ net, wire }: Cluster, ranks: number, elements: number): number {
  if (ranks < 2 || elements === 0) return 0;
  const messages = topologyOf(ranks) === 'TOPOLOGY_RING' ? 2 * (ranks - 1) : 2;
  return messages * net.latency + reducedBytes({ wire }, ranks, elements) / net.bandwidth;
}

/** One way over each rank's link. */
function reducedBytes({ wire }: Pick<Cluster, 'wire'>, ranks: number, elements: number): number {
  const bytes = elements * (wire === 'bf16' ? F32_BYTES / 2 : F32_BYTES);
  return (2 * (ranks - 1) * bytes) / ranks;
}

function callSeconds({ gpus, net }: Cluster, placement: Placement): number {
  return CALLS[placement] * (gpus * CALL_SECONDS + net.latency);
}

export interface Advice {
  placement: Placement;
  /** Smaller parts that a shard is cut into so that it fits the memory, one after another. */
  microBatches: number;
  wire: Cluster['wire'];
  topology: 'mesh' | 'ring';
  /** The number of GPUs from which on `together` is the faster one; null: up to `gpus` it is not. */
  togetherFrom: number | null;
  /** Seconds of a step that could be spared, at most. */
  savings: {
    /** In `together`: of reduce, behind backward, by `cluster.overlap`. */
    overlap: number;
    /** In `split`: of gather, method and scatter, behind forward and backward, by two micro-batches. 0: there are some. */
    microBatches: number;
    /** In `split`: of gather and scatter, by featureWire: bf16. */
    featureWire: number;
  };
}

/** Of the memory, what kernels, fragments and the runtime are left. */
const USABLE_MEMORY = 0.9;
/** With gradients taking more of the step than this, half of their bytes is worth their rounding. */
const MUCH_OF_A_STEP = 0.1;

/** @param sizes numbers of GPUs, ascending   @returns null where no placement can train on so many */
export function advise(work: Work, cluster: Cluster, sizes: number[]): Advice | null {
  const at = (gpus: number, placement: Placement) => predict(work, { ...cluster, gpus }, placement);
  const speed = (gpus: number, placement: Placement) => at(gpus, placement)?.imagesPerSecond ?? 0;
  const behind = sizes.findLastIndex((gpus) => speed(gpus, 'together') < speed(gpus, 'split'));
  const placement = speed(cluster.gpus, 'together') >= speed(cluster.gpus, 'split') ? 'together' : 'split';
  const best = at(cluster.gpus, placement);
  if (best === null) return null;
  const { device } = cluster;
  const roles = placement === 'together' ? [work.replica] : work.branch;
  const fits = (parts: number) =>
    device.memory === null ||
    roles.every(({ memory }) => memory(Math.ceil(best.shard / parts)) <= USABLE_MEMORY * device.memory!);
  let microBatches = 1;
  while (!fits(microBatches) && microBatches < best.shard) microBatches *= 2;
  return {
    placement,
    microBatches,
    wire: best.phases.reduce! > MUCH_OF_A_STEP * best.seconds ? 'bf16' : cluster.wire,
    topology: best.topology,
    togetherFrom: sizes[behind + 1] ?? null,
    savings: {
      overlap: hiddenReduce(work, cluster, at(cluster.gpus, 'together')),
      ...savedInSplit(work, cluster, at(cluster.gpus, 'split')),
    },
  };
}

function hiddenReduce({ replica }: Work, cluster: Cluster, together: Prediction | null): number {
  if (together === null || cluster.overlap) return 0;
  const { gpus, shard, phases } = together;
  return Math.min(phases.reduce!, compute(cluster, gpus, shard, replica, 'backward'));
}

/** @param prediction null: there can be no `split` */
function savedInSplit(
  { branch, branches }: Work,
  cluster: Cluster,
  prediction: Prediction | null,
): Pick<Advice['savings'], 'microBatches' | 'featureWire'> {
  if (prediction === null) return { microBatches: 0, featureWire: 0 };
  const { phases, shard, gpus } = prediction;
  const features = F32_BYTES * shard * branch.reduce((sum, role) => sum + role.features, 0);
  const outputs = F32_BYTES * shard * branch.reduce((sum, role) => sum + role.outputs, 0);
  const moved = (bytes: number) => 2 * moveSeconds(cluster, gpus / branches, bytes);
  const own = phases.forward! + phases.backward!;
  const others = phases.gather! + phases.method! + phases.scatter!;
  return {
    microBatches: cluster.microBatches > 1 ? 0 : Math.min(own, others) / 2, // that of one piece behind that of the other
    featureWire: moved(outputs) - moved(outputs - features / 2),
  };
}
