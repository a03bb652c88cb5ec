/**
 * What a branch gives the method, as one flat vector: the logits, then what the method reads of it. Between the processes of
 * `split` it travels like that, and so do its cotangents.
 */
import type { Recipe } from '../core/recipe.ts';
import type { Branches } from './branches.ts';
import type { ImageSize } from './feeds.ts';
import { cast, packBf16, unpackBf16 } from './graph/ops.ts';
import type { BranchOutputs, Method } from './methods/method.ts';
import { shapeAfter } from './models/network.ts';
import { type Tensor, tf } from './tensorflow.ts';

/** Of branch `k` and `n` samples each. */
export class Outputs {
  private readonly recipe: Recipe;
  private readonly image: ImageSize;
  private readonly classes: number;
  private readonly method: Method;
  private readonly branches: Branches;

  constructor(recipe: Recipe, image: ImageSize, classes: number, method: Method, branches: Branches) {
    this.recipe = recipe;
    this.image = image;
    this.classes = classes;
    this.method = method;
    this.branches = branches;
  }

  /** @returns f32 of one branch, for its samples */
  flatten(outputs: BranchOutputs, k: number): Tensor {
    const { precision } = this.recipe.training;
    const parts = this.shapes(k, 1).map(([name]) => {
      const tensor = name === 'map' ? cast(outputs.map!, precision, 'f32') : outputs[name]!;
      return tf.reshape(tensor, [tensor.size]);
    });
    return parts.length === 1 ? parts[0]! : tf.concat(parts);
  }

  unflatten(flat: Tensor, k: number, n: number): BranchOutputs {
    const shapes = this.shapes(k, n);
    const sizes = shapes.map(([, shape]) => sizeOf(shape));
    const parts = shapes.length === 1 ? [flat] : tf.split(flat, sizes);
    const named = shapes.map(([name, shape], i) => {
      const tensor = tf.reshape(parts[i]!, shape);
      return [name, name === 'map' ? cast(tensor, 'f32', this.recipe.training.precision) : tensor] as const;
    });
    return Object.fromEntries(named) as unknown as BranchOutputs;
  }

  /** f32 elements. */
  length(k: number, n: number): number {
    return this.shapes(k, n).reduce((sum, [, shape]) => sum + sizeOf(shape), 0);
  }

  /**
   * Flat outputs, or their cotangents, as they travel in training: with `featureWire: bf16` two values of the map in each f32's
   * place, the last one with a zero where they are odd. The rest is small, and stays f32.
   */
  pack(flat: Tensor, k: number, n: number): Tensor {
    const sizes = this.wireSizes(k, n);
    if (sizes.every(({ packed }) => !packed)) return flat;
    const parts = tf.split(
      flat,
      sizes.map(({ size }) => size),
    );
    const wired = sizes.map(({ size, packed }, i) => {
      const part = parts[i]!;
      if (!packed) return part;
      return packBf16(size % 2 === 0 ? part : tf.concat([part, tf.zeros([1])]));
    });
    return wired.length === 1 ? wired[0]! : tf.concat(wired);
  }

  unpack(wired: Tensor, k: number, n: number): Tensor {
    const sizes = this.wireSizes(k, n);
    if (sizes.every(({ packed }) => !packed)) return wired;
    const parts = tf.split(
      wired,
      sizes.map(({ words }) => words),
    );
    return tf.concat(
      sizes.map(({ size, packed }, i) => (packed ? tf.slice(unpackBf16(parts[i]!), 0, size) : parts[i]!)),
    );
  }

  /** f32 elements as they travel in training. */
  wireLength(k: number, n: number): number {
    return this.wireSizes(k, n).reduce((sum, { words }) => sum + words, 0);
  }

  /** What branch k's flat outputs hold, in order. */
  private shapes(k: number, n: number): [keyof BranchOutputs, number[]][] {
    const { image, classes, branches } = this;
    const { reads } = this.method;
    const { network, cut } = branches.cuts[k]!;
    const [height, width, channels] = shapeAfter(network.stages, image);
    const shapes: [keyof BranchOutputs, number[]][] = [['logits', [n, classes]]];
    if (reads.includes('map')) shapes.push(['map', [n, height, width, channels]]);
    if (reads.includes('pooled')) shapes.push(['pooled', [n, channels]]);
    if (branches.hasGate(k)) shapes.push(['gate', [n, shapeAfter(cut.trunk, image)[2]]]);
    return shapes;
  }

  private wireSizes(k: number, n: number): { size: number; packed: boolean; words: number }[] {
    const bf16 = this.recipe.cluster.featureWire === 'bf16';
    return this.shapes(k, n).map(([name, shape]) => {
      const size = sizeOf(shape);
      const packed = bf16 && name === 'map';
      return { size, packed, words: packed ? Math.ceil(size / 2) : size };
    });
  }
}

function sizeOf(shape: number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
