/** All workers as one trainer of one network, whatever the placement: what step.ts and run.ts talk to. */
import type { Score } from '../nn/scores.ts';
import type { TensorMap, VariableSpec } from '../nn/variables.ts';
import type { BadSample, Position } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { Decision, Update } from './plan.ts';

/** A whole network's state, by PyTorch name. */
export interface NetworkState {
  weights: TensorMap;
  /** Absent: all zero. */
  momenta?: TensorMap;
  /** Absent or empty: those of the weights, where they are kept. */
  averages?: TensorMap;
}

/** A flat state (nn/variables.ts) and what lies in it. A few of them make up a network. */
export interface FlatState {
  variables: VariableSpec[];
  state: Float32Array;
}

export interface GradientSum {
  /** L2; not finite where an element is not. */
  norm: number;
  /** Where it is not finite: the ranks whose own gradients are not. */
  culprits: number[];
}

export interface Group {
  /** Of the whole network, each name once. */
  readonly variables: VariableSpec[];
  /** By rank: where training is on a worker that has kept its state from an earlier generation; null elsewhere. */
  readonly held: (Position | null)[];
  /**
   * Fills those who do not hold the state of `at` from those who do. Changes nothing where they do not have it all.
   * @returns whether everybody has it now   @throws BraidError REPLICAS_DIVERGED when those who hold it differ
   */
  fill(at: Position, signal: AbortSignal): Promise<boolean>;
  /** Forward and method on the step's shards. @returns the loss terms over the global batch. Changes no weight. */
  forward(update: Update, signal: AbortSignal): Promise<{ losses: Losses; bad: BadSample[] }>;
  /** The gradients of those losses, left on the workers. Changes no weight. */
  backward(update: Update, signal: AbortSignal): Promise<void>;
  /** Sums the gradients over the replicas. Changes no weight. */
  reduce(update: Update, signal: AbortSignal): Promise<GradientSum>;
  /**
   * Applies the sum everywhere: the first call of an update that changes a weight. Once all have reduced, an update is
   * decided: where this fails, it is asked for again of those who are left (`settle`), and changes nothing twice.
   */
  commit(update: Decision, signal: AbortSignal): Promise<void>;
  /** Finishes a decided update on the members that are still here. @returns whether any of them has it */
  settle(update: Decision, crew: Crew, signal: AbortSignal): Promise<boolean>;
  /** The whole test set, by classifier. `step`: steps committed so far, here and below. */
  evaluate(step: number, signal: AbortSignal): Promise<Score[]>;
  write(at: Position, state: NetworkState, signal: AbortSignal): Promise<void>;
  /** @throws BraidError REPLICAS_DIVERGED when what must be identical is not */
  read(step: number, signal: AbortSignal, crew?: Crew): Promise<FlatState[]>;
}
