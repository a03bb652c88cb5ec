/** What the phases of a program are fed. */
import type { Recipe } from '../core/recipe.ts';
import type { Capture } from './graph/capture.ts';
import { cast } from './graph/ops.ts';
import { crossEntropy } from './losses.ts';
import type { TrainingInput } from './methods/method.ts';
import { type Tensor, tf } from './tensorflow.ts';

export interface ImageSize {
  height: number;
  width: number;
  channels: number;
}

/** What is multiplied, f32[] each. */
export interface Scale {
  /** All of the gradient, by the shard's part of the global batch. */
  shard: Tensor;
  /** The losses, before they are differentiated. Absent: by nothing. */
  loss?: Tensor;
}

export class Feeds {
  private readonly c: Capture;
  private readonly recipe: Recipe;
  private readonly image: ImageSize;

  constructor(c: Capture, recipe: Recipe, image: ImageSize) {
    this.c = c;
    this.recipe = recipe;
    this.image = image;
  }

  /** By branch: all see the same, or (data.perBranch) each what is augmented for it; a sample's images are one after another. */
  imagesOf(n: number, branches: number): Tensor[] {
    if (!this.recipe.data.perBranch) {
      const images = this.images(n);
      return Array.from({ length: branches }, () => images);
    }
    const images = this.images(n * branches);
    const shape: [number, number, number, number] = [n, ...(images.shape.slice(1) as [number, number, number])];
    const bySample = tf.reshape(images, [n, branches, images.size / (n * branches)]);
    return tf.split(bySample, branches, 1).map((seen) => tf.reshape(seen, shape));
  }

  /** Fed as bytes, normalised here: (x - mean) / std on the 0..255 scale. */
  images(n: number): Tensor {
    const { image, recipe } = this;
    const { mean, std } = recipe.data;
    const bytes = this.c.feedBytes('images', [n, image.height, image.width, image.channels]);
    const centred = tf.sub(bytes, tf.tensor1d(mean));
    return cast(tf.mul(centred, tf.tensor1d(std.map((s) => 1 / s))), 'f32', recipe.training.precision);
  }

  training(n: number): Pick<TrainingInput, 'crossEntropy' | 'distillWeight'> & { scale: Scale } {
    const { c } = this;
    const { labelSmoothing } = this.recipe.training;
    const labels = c.feed('labels', [n], 'int32');
    return {
      crossEntropy: (logits) => crossEntropy(logits, labels, labelSmoothing),
      distillWeight: c.feed('distillWeight', []),
      scale: this.scale(),
    };
  }

  scale(): Scale {
    const f16 = this.recipe.training.precision === 'f16';
    return { shard: this.c.feed('shardWeight', []), ...(f16 && { loss: this.c.feed('lossScale', []) }) };
  }
}
