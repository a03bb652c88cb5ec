/**
 * What a program holds: its variables, where each lies in the flat state, and how it is called outside of TensorFlow.
 *
 * The flat state is one f32 vector (flat.ts): all variables in order, then the momenta of the trainable ones in the same order, then,
 * where the recipe keeps them (`training.ema`), the averages of all variables.
 * Outside (checkpoints, initial weights) tensors carry PyTorch's names and layouts, so that both sides can read them.
 */
import { BraidError } from '../core/errors.ts';
import { Random } from '../core/random.ts';
import { alignedLength } from '../core/shared-buffer.ts';

export type Initialiser =
  | { kind: 'normal'; std: number }
  | { kind: 'uniform'; bound: number }
  | { kind: 'constant'; value: number };

export interface VariableSpec {
  /** PyTorch's name: 'trunk.0.layer1.0.conv1.weight', 'branch.1.fc.bias', 'fusion.bn1.running_mean'. */
  name: string;
  /** TensorFlow's layout: convolutions HWIO, depthwise HWC1, linear in x out. */
  shape: number[];
  kind: 'conv' | 'depthwise' | 'linear' | 'vector' | 'running_mean' | 'running_var';
  /** Running statistics are not trained: they follow the batches. */
  trainable: boolean;
  /** Who shares its gradient in `split`: everyone, the workers of the same branch, or the coordinator alone. */
  segment: 'trunk' | 'branch' | 'method';
  initialiser: Initialiser;
  /** f32 elements, in the flat state. */
  offset: number;
  size: number;
  /** Where its momentum lies in the flat state; -1 when not trainable. */
  momentumOffset: number;
  /** Where its average lies in the flat state. Absent: none is kept. */
  averageOffset?: number | undefined;
}

/** Tensors by PyTorch name, in PyTorch's layout. */
export type TensorMap = Map<string, { shape: number[]; data: Float32Array }>;

/** What a flat state holds, by PyTorch name. */
export interface StateTensors {
  weights: TensorMap;
  momenta: TensorMap;
  /** Empty where none are kept. */
  averages: TensorMap;
}

/** The flat state, taken apart. */
export function toTensors(variables: VariableSpec[], state: Float32Array): StateTensors {
  const tensors: StateTensors = { weights: new Map(), momenta: new Map(), averages: new Map() };
  for (const v of variables) {
    const { toTorch, shape } = layoutOf(v);
    const take = (into: TensorMap, offset: number) =>
      into.set(v.name, { shape, data: toTorch(state.subarray(offset, offset + v.size)) });
    take(tensors.weights, v.offset);
    if (v.trainable) take(tensors.momenta, v.momentumOffset);
    if (v.averageOffset !== undefined) take(tensors.averages, v.averageOffset);
  }
  return tensors;
}

/**
 * The flat state, put together. Tensors that no variable asks for are left alone: a branch takes its own out of a whole
 * checkpoint. Momenta that are not given are zero, averages the weights. Another thread may have it without a copy.
 * @throws BraidError INVALID_CHECKPOINT naming a tensor that is missing or has another shape
 */
export function fromTensors(
  variables: VariableSpec[],
  weights: TensorMap,
  momenta?: TensorMap,
  averages?: TensorMap,
): Float32Array {
  const averaged = averages === undefined || averages.size === 0 ? weights : averages;
  const state = new Float32Array(new SharedArrayBuffer(4 * stateLength(variables)));
  for (const v of variables) {
    const place = (tensors: TensorMap, what: string, offset: number) => {
      const tensor = tensors.get(v.name);
      const { fromTorch, shape } = layoutOf(v);
      if (tensor === undefined || tensor.shape.join() !== shape.join()) {
        const found = tensor === undefined ? 'is missing' : `has shape [${tensor.shape}]`;
        throw new BraidError('INVALID_CHECKPOINT', `${what} ${v.name} ${found}, this network needs [${shape}]`, {
          remedy: 'Use weights of the same branches, depth, width and classes as the recipe.',
        });
      }
      state.set(fromTorch(tensor.data), offset);
    };
    place(weights, 'weight', v.offset);
    if (v.trainable && momenta !== undefined) place(momenta, 'momentum of', v.momentumOffset);
    if (v.averageOffset !== undefined) place(averaged, 'average of', v.averageOffset);
  }
  return state;
}

/** f32 elements of the flat state. */
export function stateLength(variables: VariableSpec[]): number {
  const copies = (v: VariableSpec) => 1 + (v.trainable ? 1 : 0) + (v.averageOffset === undefined ? 0 : 1);
  return variables.reduce((sum, v) => sum + alignedLength(v.size) * copies(v), 0);
}

/** Trainable elements: what papers call a network's parameters. */
export function parameterCount(variables: VariableSpec[]): number {
  return variables.reduce((sum, v) => sum + (v.trainable ? v.size : 0), 0);
}

/** First weights, each a pure function of (seed, its name): the same on every machine, whatever else a program holds. */
export function initialWeights(variables: VariableSpec[], seed: number): TensorMap {
  const weights: TensorMap = new Map();
  for (const v of variables) {
    const random = new Random(seed, ...Buffer.from(v.name));
    const data = new Float32Array(v.size);
    const { initialiser } = v;
    for (let i = 0; i < data.length; i++) {
      if (initialiser.kind === 'constant') data[i] = initialiser.value;
      else if (initialiser.kind === 'normal') data[i] = initialiser.std * random.normal();
      else data[i] = initialiser.bound * (2 * random.next() - 1);
    }
    weights.set(v.name, { shape: layoutOf(v).shape, data });
  }
  return weights;
}

interface Layout {
  /** PyTorch's shape. */
  shape: number[];
  toTorch(data: Float32Array): Float32Array;
  fromTorch(data: Float32Array): Float32Array;
}

function layoutOf({ kind, shape }: Pick<VariableSpec, 'kind' | 'shape'>): Layout {
  if (kind === 'conv' || kind === 'depthwise') {
    const [height, width, inputs, outputs] = shape as [number, number, number, number];
    // Conv HWIO <-> OIHW; depthwise HWC1 <-> C1HW. Either way: (pixels, channels) transposed, with O and I swapped.
    const rows = height * width;
    const torch = kind === 'conv' ? [outputs, inputs, height, width] : [inputs, outputs, height, width];
    const position = (o: number, i: number, p: number) =>
      kind === 'conv' ? (o * inputs + i) * rows + p : (i * outputs + o) * rows + p;
    const permute = (data: Float32Array, back: boolean) => {
      const out = new Float32Array(data.length);
      let at = 0;
      for (let p = 0; p < rows; p++) {
        for (let i = 0; i < inputs; i++) {
          for (let o = 0; o < outputs; o++, at++) {
            const to = position(o, i, p);
            if (back) out[at] = data[to]!;
            else out[to] = data[at]!;
          }
        }
      }
      return out;
    };
    return { shape: torch, toTorch: (data) => permute(data, false), fromTorch: (data) => permute(data, true) };
  }
  if (kind === 'linear') {
    const [inputs, outputs] = shape as [number, number];
    const transpose = (data: Float32Array, rows: number, columns: number) => {
      const out = new Float32Array(data.length);
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = data[r * columns + c]!;
      return out;
    };
    return {
      shape: [outputs, inputs],
      toTorch: (data) => transpose(data, inputs, outputs),
      fromTorch: (data) => transpose(data, outputs, inputs),
    };
  }
  return { shape, toTorch: (data) => data.slice(), fromTorch: (data) => data };
}
