/**
 * What a worker's memory holds while it trains, told from the captured graph before anything runs; and the error for a batch
 * that does not fit.
 *
 * On a GPU all but `runtime` and `exchange` is the GPU's. Not counted: what kernels need for themselves (cuDNN's workspaces),
 * and shards that wait decoded.
 */
import { BraidError } from '../core/errors.ts';
import { evaluationBatchOf } from '../core/recipe.ts';
import type { Graph } from './graph/capture.ts';
import { phaseMemory } from './graph/memory.ts';
import { buildProgram, type Program, type ProgramOptions } from './program.ts';
import type { VariableSpec } from './variables.ts';

/** All in bytes. */
export interface Memory {
  /** Weights and running statistics. */
  weights: number;
  momenta: number;
  /** Of weights and running statistics, where the recipe keeps them. */
  averages: number;
  /** What forward keeps for backward, where these are two runs (`split`); 0 in `together`, where `activations` has it. */
  stash: number;
  /** The most that a phase holds besides: activations, gradients, what it is fed. */
  activations: number;
  /** The gradient on its way to other workers, and their sum. */
  exchange: number;
  /** Node and TensorFlow themselves. */
  runtime: number;
  total: number;
}

type Options = Omit<ProgramOptions, 'shardSizes'>;

/** Resident bytes of a process whose device has opened, before it has a state: measured on Linux x86-64, CPU build. */
const RUNTIME_BYTES = 450 * 2 ** 20;

/**
 * For a shard of so many samples.
 * @throws BraidError CAPTURE as buildProgram does
 */
export function memoryOf(options: Options, samples: number): Memory {
  const { graph, program } = buildProgram({ ...options, shardSizes: [samples] });
  return memoryOfProgram(graph, program);
}

/** Of a program that has been built: for the largest of its shards. */
export function memoryOfProgram(graph: Graph, { variables, rounds }: Program): Memory {
  const phases = [...phaseMemory(graph).values()];
  const most = (which: 'peak' | 'stashed') => Math.max(...phases.map((phase) => phase[which]));
  const stash = most('stashed');
  const parts = {
    weights: bytesOf(variables),
    momenta: bytesOf(variables.filter(({ trainable }) => trainable)),
    averages: bytesOf(variables.filter(({ averageOffset }) => averageOffset !== undefined)),
    stash,
    activations: most('peak') - stash,
    exchange: 2 * 4 * Math.max(...rounds.map(({ gradientLength }) => gradientLength)),
    runtime: RUNTIME_BYTES,
  };
  return { ...parts, total: Object.values(parts).reduce((a, b) => a + b) };
}

function bytesOf(variables: VariableSpec[]): number {
  return 4 * variables.reduce((sum, { size }) => sum + size, 0);
}

/** The largest shard whose memory is within `bytes`; 0: not even one sample's is. */
export function largestShard(options: Options, bytes: number): number {
  const [low, high] = SAMPLED.map((samples) => memoryOf(options, samples).total) as [number, number];
  const each = (high - low) / (SAMPLED[1] - SAMPLED[0]); // memory grows linearly with the samples
  return Math.max(0, Math.floor(SAMPLED[0] + (bytes - low) / each));
}

const SAMPLED = [32, 64] as const;

/**
 * @param available bytes that there are for the largest shard beside the runtime; null: not known
 * @throws BraidError OUT_OF_MEMORY when they are too few
 */
export function requireMemory(graph: Graph, program: Program, options: ProgramOptions, available: number | null): void {
  const { total, runtime } = memoryOfProgram(graph, program);
  if (available !== null && total - runtime > available) throw outOfMemory(graph, program, options, available);
}

/** What is needed, what there is, and what would fit. @param why what TensorFlow said; absent: nothing has run yet */
export function outOfMemory(
  graph: Graph,
  program: Program,
  options: ProgramOptions,
  available: number | null,
  why?: string,
): BraidError {
  const samples = Math.max(...options.shardSizes);
  const { runtime, total, ...parts } = memoryOfProgram(graph, program);
  const needed = total - runtime;
  const list = Object.entries(parts).flatMap(([name, bytes]) => (bytes === 0 ? [] : `${name} ${mebibytes(bytes)}`));
  const there = available === null ? '' : `, there are ${mebibytes(available)}`;
  const fits = available === null ? null : largestShard(options, available + runtime);
  const message = `${samples} samples need about ${mebibytes(needed)} (${list.join(', ')})${there}${why === undefined ? '' : `; ${why}`}`;
  return new BraidError('OUT_OF_MEMORY', message, {
    remedy: remedyFor(samples, fits, evaluationBatchOf(options.recipe)),
    details: { samples, needed, available, fits },
  });
}

function remedyFor(samples: number, fits: number | null, evaluated: number): string {
  if (fits === null || fits >= samples)
    return 'Use more replicas, a smaller training.batch, or a smaller evaluation.batch.';
  if (fits === 0) {
    return `Not even one sample fits beside evaluation.batch, ${evaluated}: lower that first, or use a machine with more memory.`;
  }
  return `${fits} samples would fit: use at least ${Math.ceil(samples / fits)} times as many replicas, or set training.batch to at most ${fits} a replica; or the same batch in training.microBatches, or with training.recompute.`;
}

function mebibytes(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20).toLocaleString('en')} MiB`;
}
