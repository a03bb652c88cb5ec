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
    const { height, width, channels } = this.image;
    const { mean, std } = this.recipe.data;
    const shape: [number, number, number, number] = [n, height, width, channels];
    // By rows of pixels: TensorFlow is slow with operands as short as a pixel.
    const row = (values: number[]) =>
      tf.tensor1d(Array.from({ length: width * channels }, (_, i) => values[i % values.length]!));
    const rows = tf.reshape(this.c.feedBytes('images', shape), [n * height, width * channels]);
    const normal = tf.mul(tf.sub(rows, row(mean)), row(std.map((s) => 1 / s)));
    return cast(tf.reshape(normal, shape), 'f32', this.recipe.training.precision);
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
