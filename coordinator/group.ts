/** All workers as one trainer of one network, whatever the placement: what step.ts and run.ts talk to. */
import type { Score } from '../nn/scores.ts';
import type { TensorMap, VariableSpec } from '../nn/variables.ts';
import type { Losses } from './events.ts';
import type { Update } from './plan.ts';

/** A whole network's weights and momenta, by PyTorch name. */
export interface NetworkState {
  weights: TensorMap;
  /** Absent: all zero. */
  momenta?: TensorMap;
}

export interface Group {
  /** Of the whole network, each name once. */
  readonly variables: VariableSpec[];
  /** Forward and method on the step's shards. @returns the loss terms over the global batch. Changes no weight. */
  forward(update: Update, signal: AbortSignal): Promise<Losses>;
  /** The gradients of those losses, left on the workers. Changes no weight. */
  backward(update: Update, signal: AbortSignal): Promise<void>;
  /** Sums the gradients over the replicas. @returns L2 norm of the sum. Changes no weight. */
  reduce(update: Update, signal: AbortSignal): Promise<number>;
  /** Applies the sum everywhere. The first call of an update that changes a weight. */
  commit(update: Update, signal: AbortSignal): Promise<void>;
  /** The whole test set, by classifier. `step`: steps committed so far, here and below. */
  evaluate(step: number, signal: AbortSignal): Promise<Score[]>;
  write(step: number, state: NetworkState, signal: AbortSignal): Promise<void>;
  /** @throws BraidError REPLICAS_DIVERGED when what must be identical is not */
  read(step: number, signal: AbortSignal): Promise<Required<NetworkState>>;
  /** Frees what the coordinator itself holds. */
  close(): Promise<void>;
}
