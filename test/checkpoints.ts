/** For tests of checkpoints: small ones, and what happens to them. */
import { readFileSync, writeFileSync } from 'node:fs';
import type { CheckpointFacts } from '../coordinator/checkpoints-manifest.ts';
import type { FlatState } from '../coordinator/group.ts';
import type { TensorMap, VariableSpec } from '../nn/variables.ts';

export const KEEP_ALL = { keep: 100, keepEverySteps: 0 };

export function factsOf(step: number): CheckpointFacts {
  return { run: 'r-1', step, epoch: 0, network: { classes: 10 }, sampling: { seed: 1 }, recipe: { name: 'r' } };
}

/** @param value of all that matters   @param size more elements, to take time and room */
export function stateOf(value: number, size = 0) {
  return { weights: tensorsOf(value, size), momenta: tensorsOf(-value, size), averages: new Map() };
}

function tensorsOf(value: number, size: number): TensorMap {
  return new Map([
    ['trunk.0.conv1.weight', { shape: [2, 1, 1, 2], data: Float32Array.of(value, -0, 1e-40, 3) }],
    ['branch.0.fc.bias', { shape: [1], data: Float32Array.of(value) }],
    ['branch.0.fc.weight', { shape: [size], data: new Float32Array(size).fill(value) }],
  ]);
}

export function flipLastBit(file: string): void {
  const bytes = readFileSync(file);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(file, bytes);
}

/** The same as it comes from workers, with the bias alone. */
export function flatOf(value: number, size = 1): FlatState[] {
  const variable: VariableSpec = {
    name: 'branch.0.fc.bias',
    shape: [size],
    kind: 'vector',
    trainable: true,
    segment: 'branch',
    initialiser: { kind: 'constant', value: 0 },
    offset: 0,
    size,
    momentumOffset: size,
  };
  return [{ variables: [variable], state: new Float32Array(2 * size).fill(value) }];
}
