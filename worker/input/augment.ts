/**
 * Pad, flip, crop: He et al. 2016, section 4.2, with FFL's reflected padding, in the order of its code. Works on u8, before
 * normalisation, and writes the crop straight from the source: the padded image never exists.
 */
import type { Recipe } from '../../core/recipe.ts';
import type { ImageShape } from '../../input/dataset.ts';
import { augmentRandom, type Eye } from './eye.ts';

export type AugmentOptions = Recipe['data']['augment'];

/** One draw. */
export interface Crop {
  /** Of the crop's corner in the padded, flipped image: 0 to 2 * pad. */
  top: number;
  left: number;
  flip: boolean;
}

const OUTSIDE = -1; // in a map: a padded pixel that has no source and is 0

/**
 * The draw that belongs to a sample in an epoch: the same on every worker. Top, left and flip are drawn in this order.
 * @param eye whose draw it is
 */
export function drawCrop(
  { pad, flip }: AugmentOptions,
  seed: number,
  epoch: number,
  sampleId: number,
  eye: Eye = 'all',
): Crop {
  const random = augmentRandom(seed, epoch, sampleId, eye);
  const top = random.int(2 * pad + 1);
  const left = random.int(2 * pad + 1);
  return { top, left, flip: random.int(2) === 1 && flip };
}

/** Copies images of one shape into place, augmented or, without options, as they are. */
export class Augmenter {
  private readonly image: ImageShape;
  private readonly options: AugmentOptions;
  /** [top][y] -> source row; [flip][left][x] -> source column. */
  private readonly rows: Int32Array[];
  private readonly columns: [Int32Array[], Int32Array[]];
  private readonly identity: Crop;

  constructor(image: ImageShape, options: AugmentOptions | null) {
    this.image = image;
    this.options = options ?? { pad: 0, padMode: 'zero', flip: false };
    const { pad, padMode } = this.options;
    this.rows = maps(image.height, pad, padMode, false);
    this.columns = [maps(image.width, pad, padMode, false), maps(image.width, pad, padMode, true)];
    this.identity = { top: pad, left: pad, flip: false };
  }

  /**
   * @param source u8[H*W*C] (`hwc`) or u8[C*H*W] (`chw`)
   * @param target receives u8[H*W*C] from `offset` on
   * @param crop absent: the image as it is
   */
  write(
    source: Uint8Array,
    layout: 'hwc' | 'chw',
    target: Uint8Array,
    offset: number,
    crop: Crop = this.identity,
  ): void {
    const { height, width, channels } = this.image;
    const rows = this.rows[crop.top]!;
    const columns = this.columns[crop.flip ? 1 : 0][crop.left]!;
    const [pixelStride, channelStride] = layout === 'hwc' ? [channels, 1] : [1, height * width];
    let at = offset;
    for (let y = 0; y < height; y++) {
      const row = rows[y]!;
      if (row === OUTSIDE) {
        target.fill(0, at, at + width * channels);
        at += width * channels;
        continue;
      }
      const rowStart = row * width * pixelStride;
      if (channels === 3) {
        for (let x = 0; x < width; x++, at += 3) {
          const column = columns[x]!;
          if (column === OUTSIDE) {
            target[at] = 0;
            target[at + 1] = 0;
            target[at + 2] = 0;
          } else {
            const from = rowStart + column * pixelStride;
            target[at] = source[from]!;
            target[at + 1] = source[from + channelStride]!;
            target[at + 2] = source[from + 2 * channelStride]!;
          }
        }
      } else {
        for (let x = 0; x < width; x++) {
          const column = columns[x]!;
          for (let channel = 0; channel < channels; channel++, at++) {
            target[at] = column === OUTSIDE ? 0 : source[rowStart + column * pixelStride + channel * channelStride]!;
          }
        }
      }
    }
  }
}

/** For every corner from 0 to 2 * pad: which source line each line of the crop shows. */
function maps(size: number, pad: number, padMode: AugmentOptions['padMode'], flip: boolean): Int32Array[] {
  const padded = size + 2 * pad;
  return Array.from({ length: 2 * pad + 1 }, (_, corner) =>
    Int32Array.from({ length: size }, (_, line) => {
      const at = corner + line;
      const source = (flip ? padded - 1 - at : at) - pad;
      if (source >= 0 && source < size) return source;
      if (padMode === 'zero') return OUTSIDE;
      return source < 0 ? -source : 2 * (size - 1) - source; // reflected about the edge pixel, which is not repeated
    }),
  );
}
