/**
 * Layers over named variables: what models and methods are written with.
 *
 * A builder belongs to one phase. By `batch`, batch norms normalise with the batch's statistics and leave them in
 * `statistics`; by `running`, in evaluation and in networks held fixed, with the running ones; by `averages`, with these,
 * and all weights are averages, too.
 */
import { BraidError } from '../core/errors.ts';
import { flatLength, flatOffsets } from './flat.ts';
import type { Capture, Variable } from './graph/capture.ts';
import { layer } from './graph/capture.ts';
import { conv2d, depthwiseConv2d } from './graph/convolutions.ts';
import { batchNormInference, batchNormTraining, cast, type Precision } from './graph/ops.ts';
import { recomputed } from './recompute.ts';
import { type Tensor, tf } from './tensorflow.ts';
import type { Initialiser, VariableSpec } from './variables.ts';

const BATCH_NORM_EPSILON = 1e-5; // PyTorch's default, as every recipe of methods.md assumes

const ZERO: Initialiser = { kind: 'constant', value: 0 };
const ONE: Initialiser = { kind: 'constant', value: 1 };

interface LinearInitialisers {
  weight?: Initialiser;
  bias?: Initialiser;
}

/** As torchvision initialises the classifiers of VGG and MobileNetV2; others only take the bias. */
export const SMALL_NORMAL: LinearInitialisers = { weight: { kind: 'normal', std: 0.01 }, bias: ZERO };
export const ZERO_BIAS: LinearInitialisers = { bias: ZERO };

type Kind = VariableSpec['kind'];

/** The variables of a program, in the order in which its evaluation first asked for them. */
export class VariableStore {
  readonly specs: VariableSpec[] = [];
  private readonly c: Capture;
  private readonly segmentOf: (name: string) => VariableSpec['segment'];
  private readonly byName = new Map<string, Variable>();
  /** Of all variables, where they are kept. */
  private readonly averages = new Map<string, Variable>();
  private readonly averaged: boolean;

  /** @param averaged whether every variable's average is kept */
  constructor(c: Capture, segmentOf: (name: string) => VariableSpec['segment'], averaged = false) {
    this.c = c;
    this.segmentOf = segmentOf;
    this.averaged = averaged;
  }

  declare(name: string, shape: number[], kind: Kind, initialiser: Initialiser): void {
    if (this.byName.has(name)) return;
    this.byName.set(name, this.c.variable(name, shape));
    if (this.averaged) this.averages.set(name, this.c.variable(`${name}/average`, shape));
    const trainable = kind !== 'running_mean' && kind !== 'running_var';
    const size = shape.reduce((a, b) => a * b, 1);
    const offset = flatLength(this.specs.map((v) => v.size));
    const segment = this.segmentOf(name);
    this.specs.push({ name, shape, kind, trainable, segment, initialiser, offset, size, momentumOffset: -1 });
  }

  /** Gives momenta and averages their places, once all variables are declared. */
  close(): void {
    const trainable = this.specs.filter((v) => v.trainable);
    const copies = [...this.specs, ...trainable, ...(this.averaged ? this.specs : [])];
    const offsets = flatOffsets(copies.map((v) => v.size)).slice(this.specs.length);
    for (const [i, spec] of trainable.entries()) spec.momentumOffset = offsets[i]!;
    if (!this.averaged) return;
    for (const [i, spec] of this.specs.entries()) spec.averageOffset = offsets[trainable.length + i]!;
  }

  average(name: string): Variable {
    return this.averages.get(name)!;
  }

  get(name: string): Variable {
    const variable = this.byName.get(name);
    if (variable === undefined) throw new BraidError('INTERNAL', `variable ${name} is used in training only`);
    return variable;
  }

  /** The value of every trainable variable, as the tensors to differentiate with respect to. */
  readTrainable(): Map<string, Tensor> {
    return new Map(this.specs.filter((v) => v.trainable).map(({ name }) => [name, this.get(name).read()]));
  }
}

export class Builder {
  readonly precision: Precision;
  /** f32[C] by the name of the running statistic that follows them. */
  readonly statistics = new Map<string, Tensor>();
  /** Of convolutions and linear layers, for the whole batch: what papers count (batch norms and pooling are left out). */
  multiplyAdds = 0;
  private readonly store: VariableStore;
  private readonly normaliseBy: 'batch' | 'running' | 'averages';
  /** Values that may be differentiated by; variables that are not here are read. */
  private readonly values: Map<string, Tensor>;

  constructor(
    store: VariableStore,
    precision: Precision,
    normaliseBy: 'batch' | 'running' | 'averages',
    values: Map<string, Tensor> = new Map(),
  ) {
    this.store = store;
    this.precision = precision;
    this.normaliseBy = normaliseBy;
    this.values = values;
  }

  /** Whether it is training: batch norms have gradients. */
  get learns(): boolean {
    return this.normaliseBy === 'batch';
  }

  /** A variable's, as it may be differentiated by. */
  value(name: string): Tensor {
    return this.values.get(name) ?? this.read(name);
  }

  /**
   * Convolution without bias. Initialised as N(0, sqrt(2 / (k k O))): He et al. 2015 by fan-out, as the authors of FFL,
   * wide ResNets and DenseNets do, and torchvision.
   */
  conv(name: string, x: Tensor, kernel: number, channels: number, stride = 1): Tensor {
    return layer(name, () => {
      const std = Math.sqrt(2 / (kernel * kernel * channels));
      const weight = this.weight(`${name}.weight`, [kernel, kernel, x.shape[3]!, channels], 'conv', {
        kind: 'normal',
        std,
      });
      const y = conv2d(x, cast(weight, 'f32', this.precision), stride, this.precision);
      this.multiplyAdds += y.size * kernel * kernel * x.shape[3]!;
      return y;
    });
  }

  /** Depthwise 3x3 without bias, initialised with fan-out 9 C: what the FFL authors' and torchvision's code comes to. */
  depthwise(name: string, x: Tensor, stride = 1): Tensor {
    return layer(name, () => {
      const channels = x.shape[3]!;
      const std = Math.sqrt(2 / (9 * channels));
      const weight = this.weight(`${name}.weight`, [3, 3, channels, 1], 'depthwise', { kind: 'normal', std });
      const y = depthwiseConv2d(x, cast(weight, 'f32', this.precision), stride);
      this.multiplyAdds += y.size * 9;
      return y;
    });
  }

  batchNorm(name: string, x: Tensor): Tensor {
    return layer(name, () => {
      const shape = [x.shape.at(-1)!];
      const scale = this.weight(`${name}.weight`, shape, 'vector', ONE);
      const offset = this.weight(`${name}.bias`, shape, 'vector', ZERO);
      this.store.declare(`${name}.running_mean`, shape, 'running_mean', ZERO);
      this.store.declare(`${name}.running_var`, shape, 'running_var', ONE);
      if (this.normaliseBy !== 'batch') {
        const mean = this.read(`${name}.running_mean`);
        const variance = this.read(`${name}.running_var`);
        return batchNormInference(x, scale, offset, mean, variance, BATCH_NORM_EPSILON);
      }
      const { y, mean, variance } = batchNormTraining(x, scale, offset, BATCH_NORM_EPSILON);
      this.statistics.set(`${name}.running_mean`, tf.keep(mean));
      this.statistics.set(`${name}.running_var`, tf.keep(variance));
      return y;
    });
  }

  /**
   * forward(this, x), of which only x is kept for backward where this trains.
   * @param weights names of those that forward reads   @param differentiable whether x has a gradient
   */
  anew(x: Tensor, weights: string[], forward: (b: Builder, x: Tensor) => Tensor, differentiable = true): Tensor {
    if (!this.learns) return forward(this, x);
    const values = weights.map((name) => this.value(name));
    // What the second time finds of batch statistics is what the first one has found.
    const silent = () => new Builder(this.store, this.precision, this.normaliseBy, this.values);
    return recomputed(x, values, differentiable, (input, again) => forward(again ? silent() : this, input));
  }

  /** Fully connected with bias, in f32. What no initialiser is given for is U(-1/sqrt(I), 1/sqrt(I)), PyTorch's default. */
  linear(name: string, x: Tensor, outputs: number, initialisers: LinearInitialisers = {}): Tensor {
    return layer(name, () => {
      const inputs = x.shape[1]!;
      const usual: Initialiser = { kind: 'uniform', bound: 1 / Math.sqrt(inputs) };
      const weight = this.weight(`${name}.weight`, [inputs, outputs], 'linear', initialisers.weight ?? usual);
      const bias = this.weight(`${name}.bias`, [outputs], 'vector', initialisers.bias ?? usual);
      this.multiplyAdds += x.size * outputs;
      return tf.add(tf.matMul(x as TensorOfRank2, weight as TensorOfRank2), bias);
    });
  }

  private weight(name: string, shape: number[], kind: Kind, initialiser: Initialiser): Tensor {
    this.store.declare(name, shape, kind, initialiser);
    return this.value(name);
  }

  private read(name: string): Tensor {
    return (this.normaliseBy === 'averages' ? this.store.average(name) : this.store.get(name)).read();
  }
}

type TensorOfRank2 = ReturnType<typeof tf.tensor2d>;
