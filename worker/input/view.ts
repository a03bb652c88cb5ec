/**
 * Which part of an image of any size the network sees: in training torchvision's RandomResizedCrop, RandomHorizontalFlip
 * and ColorJitter, in evaluation its Resize and CenterCrop. Draws are pure functions of (seed, epoch, sample) and the
 * image's size, so that all branches and replicas see the same; with data.perBranch of the branch as well.
 */
import type { Random } from '../../core/random.ts';
import type { ResizedCrop } from '../../core/recipe.ts';
import { augmentRandom, type Eye } from './eye.ts';

export interface Size {
  height: number;
  width: number;
}

/** Pixels, from the upper left corner. */
export interface Rectangle extends Size {
  top: number;
  left: number;
}

export interface View {
  /** Of the image. */
  box: Rectangle;
  /** What the box is resized to. */
  resized: Size;
  /** What is kept of that. */
  window: Rectangle;
  mirrored: boolean;
  /** In this order. */
  jitter: Jitter[];
}

export interface Jitter {
  kind: 'brightness' | 'contrast' | 'saturation' | 'hue';
  /** f32; 1 changes nothing. Of hue: turns of the colour circle, 0 changes nothing. */
  factor: number;
}

const TRIES = 10; // torchvision's, before it takes the middle

export function drawView(
  options: ResizedCrop,
  flip: boolean,
  seed: number,
  epoch: number,
  sampleId: number,
  image: Size,
  eye: Eye = 'all',
): View {
  const random = augmentRandom(seed, epoch, sampleId, eye);
  const box = drawBox(options, random, image);
  const mirrored = random.int(2) === 1 && flip;
  const size = { height: options.size, width: options.size };
  return { box, resized: size, window: { top: 0, left: 0, ...size }, mirrored, jitter: drawJitter(options, random) };
}

/** Resize(evaluationResize), then CenterCrop(size). */
export function evaluationView({ size, evaluationResize }: ResizedCrop, image: Size): View {
  const { height, width } = image;
  const long = Math.floor((evaluationResize * Math.max(height, width)) / Math.min(height, width));
  const resized =
    width <= height ? { height: long, width: evaluationResize } : { height: evaluationResize, width: long };
  const corner = (side: number) => roundHalfEven((side - size) / 2);
  return {
    box: { top: 0, left: 0, height, width },
    resized,
    window: { top: corner(resized.height), left: corner(resized.width), height: size, width: size },
    mirrored: false,
    jitter: [],
  };
}

/** A part of the image of a random area and, on a logarithmic scale, a random ratio of width to height. */
function drawBox({ area, ratio }: ResizedCrop, random: Random, image: Size): Rectangle {
  const [logFrom, logTo] = [Math.log(ratio[0]), Math.log(ratio[1])];
  for (let attempt = 0; attempt < TRIES; attempt++) {
    const pixels = image.height * image.width * uniform(random, area[0], area[1]);
    const aspect = Math.exp(uniform(random, logFrom, logTo));
    const width = Math.round(Math.sqrt(pixels * aspect));
    const height = Math.round(Math.sqrt(pixels / aspect));
    if (width < 1 || height < 1 || width > image.width || height > image.height) continue;
    const top = random.int(image.height - height + 1);
    const left = random.int(image.width - width + 1);
    return { top, left, height, width };
  }
  const aspect = image.width / image.height;
  const { height, width } =
    aspect < ratio[0]
      ? { width: image.width, height: Math.min(image.height, Math.round(image.width / ratio[0])) }
      : aspect > ratio[1]
        ? { height: image.height, width: Math.min(image.width, Math.round(image.height * ratio[1])) }
        : image;
  const middle = (whole: number, part: number) => Math.floor((whole - part) / 2);
  return { top: middle(image.height, height), left: middle(image.width, width), height, width };
}

function drawJitter({ jitter }: ResizedCrop, random: Random): Jitter[] {
  const steps: Jitter[] = [];
  for (const kind of ['brightness', 'contrast', 'saturation', 'hue'] as const) {
    const strength = jitter[kind];
    if (strength === 0) continue;
    const [from, to] = kind === 'hue' ? [-strength, strength] : [Math.max(0, 1 - strength), 1 + strength];
    const factor = Math.fround(uniform(random, from, to));
    steps.splice(random.int(steps.length + 1), 0, { kind, factor }); // every order equally likely
  }
  return steps;
}

function uniform(random: Random, from: number, to: number): number {
  return from + (to - from) * random.next();
}

/** Python's round. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}
