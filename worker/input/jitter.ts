/** Colour jitter as torchvision's ColorJitter does it on uint8 images: in f32, each step cut off to whole grey levels. */
import type { Jitter } from './view.ts';

/** @param pixels u8[n, 3], RGB; changed in place */
export function applyJitter(pixels: Uint8Array, steps: Jitter[]): void {
  for (const { kind, factor } of steps) {
    if (kind === 'brightness') blend(pixels, factor, () => 0);
    else if (kind === 'contrast') blendAll(pixels, factor);
    else blend(pixels, factor, greyOf);
  }
}

/** Away from the mean of the image's grey levels, or towards it. */
function blendAll(pixels: Uint8Array, factor: number): void {
  let sum = 0;
  for (let at = 0; at < pixels.length; at += 3) sum += greyOf(pixels[at]!, pixels[at + 1]!, pixels[at + 2]!);
  const mean = Math.fround(sum / (pixels.length / 3));
  blend(pixels, factor, () => mean);
}

/** factor * pixel + (1 - factor) * other(pixel), clamped. */
function blend(pixels: Uint8Array, factor: number, other: (r: number, g: number, b: number) => number): void {
  const rest = Math.fround(1 - factor);
  for (let at = 0; at < pixels.length; at += 3) {
    const add = rest * other(pixels[at]!, pixels[at + 1]!, pixels[at + 2]!);
    for (let channel = at; channel < at + 3; channel++) {
      const value = Math.fround(Math.fround(pixels[channel]! * factor) + add);
      pixels[channel] = value < 0 ? 0 : Math.min(value, 255);
    }
  }
}

const [RED, GREEN, BLUE] = [0.2989, 0.587, 0.114].map(Math.fround) as [number, number, number];

/** A whole grey level. */
function greyOf(r: number, g: number, b: number): number {
  return Math.floor(Math.fround(Math.fround(Math.fround(r * RED) + g * GREEN) + b * BLUE));
}
