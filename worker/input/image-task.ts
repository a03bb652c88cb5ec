/** What a thread of the image pool does: one image file at a time. */
import turbo from '@julusian/jpeg-turbo';
import type { ImageShape } from '../../input/dataset.ts';
import { readImageHeader } from '../../input/image-header.ts';
import { checkImage, decodeImage, headerOf } from './decode.ts';
import { Resizer } from './resize.ts';
import type { View } from './view.ts';

export interface CheckTask {
  file: Uint8Array;
  /** What it must be; null: any size will do. */
  image: ImageShape | null;
}

/** Decodes all of a file. @returns what is wrong with it, or null */
export function check({ file, image }: CheckTask): string | null {
  try {
    if (image === null) checkImage(file);
    else decodeImage(file, image, new Uint8Array(image.height * image.width * image.channels));
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

export interface ShrinkTask {
  file: Uint8Array;
  /** Pixels. What is smaller already stays as large as it is. */
  shortSide: number;
  /** Of JPEG, 1 to 100. */
  quality: number;
}

/** A JPEG of the size that was asked for, or the file as it was: where it is no larger, and where it cannot be decoded. */
export interface Shrunk {
  file: Uint8Array;
  suffix: 'jpg' | 'png';
  /** Why it could not be decoded; null: it could. */
  problem: string | null;
}

const CHANNELS = 3;
let resizer: Resizer | undefined;

/** Antialiased, as in training; 4:2:0. */
export function shrink({ file, shortSide, quality }: ShrinkTask): Shrunk {
  try {
    const { height, width, kind } = headerOf(file);
    const scale = Math.min(1, shortSide / Math.min(height, width));
    const size = { height: Math.round(height * scale), width: Math.round(width * scale) };
    const whole: View = {
      box: { top: 0, left: 0, height, width },
      resized: size,
      window: { top: 0, left: 0, ...size },
      mirrored: false,
      jitter: [],
    };
    resizer ??= new Resizer();
    const pixels = Buffer.alloc(size.height * size.width * CHANNELS);
    resizer.write(file, () => whole, false, pixels);
    const options = { ...size, quality, format: turbo.FORMAT_RGB, subsampling: turbo.SAMP_420 };
    const shrunk = turbo.compressSync(pixels, options);
    const better = scale < 1 || shrunk.length < file.length;
    return better ? { file: shrunk, suffix: 'jpg', problem: null } : { file, suffix: suffixOf(kind), problem: null };
  } catch (error) {
    return { file, suffix: suffixOf(kindOf(file)), problem: (error as Error).message };
  }
}

function kindOf(file: Uint8Array): 'jpeg' | 'png' {
  try {
    return readImageHeader(file)?.kind ?? 'jpeg';
  } catch {
    return 'jpeg';
  }
}

function suffixOf(kind: 'jpeg' | 'png'): Shrunk['suffix'] {
  return kind === 'jpeg' ? 'jpg' : 'png';
}
