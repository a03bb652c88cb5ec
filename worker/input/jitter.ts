/** Colour jitter as torchvision's ColorJitter does it on uint8 images: in f32, each step cut off to whole grey levels. */
import type { Jitter } from './view.ts';

/** @param pixels u8[n, 3], RGB; changed in place */
export function applyJitter(pixels: Uint8Array, steps: Jitter[]): void {
  for (const { kind, factor } of steps) {
    if (kind === 'brightness') blend(pixels, factor, () => 0);
    else if (kind === 'contrast') blendAll(pixels, factor);
    else if (kind === 'hue') turnHue(pixels, factor);
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

const [BYTE, LEVELS, SIXTH] = [1 / 255, 256 - 1e-3, 1 / 6].map(Math.fround) as [number, number, number];

/** By so many turns of the colour circle, through HSV. @param turns -0.5 to 0.5 */
function turnHue(pixels: Uint8Array, turns: number): void {
  const { fround } = Math;
  for (let at = 0; at < pixels.length; at += 3) {
    const r = fround(pixels[at]! * BYTE);
    const g = fround(pixels[at + 1]! * BYTE);
    const b = fround(pixels[at + 2]! * BYTE);
    const v = Math.max(r, g, b);
    const range = fround(v - Math.min(r, g, b));
    if (range === 0) continue; // grey
    const s = fround(range / v);
    const [fromR, fromG, fromB] = [
      fround(fround(v - r) / range),
      fround(fround(v - g) / range),
      fround(fround(v - b) / range),
    ];
    const sixths =
      v === r ? fromB - fromG : v === g ? fround(fround(fromR + 2) - fromB) : fround(fround(fromG + 4) - fromR);
    const hue = withinOne(fround(withinOne(fround(fround(fround(sixths) * SIXTH) + 1)) + turns));
    const six = fround(hue * 6);
    const sector = Math.floor(six);
    const part = fround(s * fround(six - sector));
    const rest = fround(1 - s);
    const p = fround(rest * v);
    const q = fround(fround(1 - part) * v);
    const t = Math.min(1, fround(fround(part + rest) * v));
    const [red, green, blue] = SECTORS[sector % 6]!;
    const vpqt = [v, p, q, t];
    pixels[at] = fround(vpqt[red]! * LEVELS);
    pixels[at + 1] = fround(vpqt[green]! * LEVELS);
    pixels[at + 2] = fround(vpqt[blue]! * LEVELS);
  }
}

/** By sixth of the circle: which of v, p, q and t is red, green and blue (A. R. Smith, "Color gamut transform pairs", 1978). */
const SECTORS = [
  [0, 3, 1],
  [2, 0, 1],
  [1, 0, 3],
  [1, 2, 0],
  [3, 1, 0],
  [0, 1, 2],
] as const;

/** What is over a whole turn. @param turns f32, above -1 and below 2 */
function withinOne(turns: number): number {
  return turns < 0 ? Math.fround(turns + 1) : turns >= 1 ? turns - 1 : turns;
}
