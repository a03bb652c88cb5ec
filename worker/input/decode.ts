/** JPEG and PNG files to pixels. Not with TensorFlow: its eager operations are not safe in several threads at once. */
import { PNG } from 'pngjs';
import type { ImageShape } from '../../input/dataset.ts';
import { type ImageHeader, readImageHeader } from '../../input/image-header.ts';
import { type Allocate, decodeJpeg, type JpegPart } from './jpeg.ts';
import type { Rectangle } from './view.ts';

/**
 * Decodes one file of exactly this shape; grey files become colour where the shape has 3 channels.
 * @param target receives u8[H*W*C]
 * @throws Error saying what is wrong with the file
 */
export function decodeImage(file: Uint8Array, image: ImageShape, target: Uint8Array): void {
  const header = headerOf(file);
  if (header.height !== image.height || header.width !== image.width) {
    throw new Error(`an image of ${header.height}x${header.width}, not ${image.height}x${image.width}`);
  }
  if (header.channels > image.channels) throw new Error('a colour image among grey ones');
  decodeWhole(file, header, image.channels === 1 ? 1 : 3, (bytes) => {
    if (bytes === target.length) return target;
    throw new Error(`${bytes} bytes of pixels, not ${target.length}`);
  });
}

/** Decodes a file of any size to the end. @throws Error saying what is wrong with it */
export function checkImage(file: Uint8Array): void {
  decodeWhole(file, headerOf(file), 3, (bytes) => new Uint8Array(bytes));
}

function decodeWhole(file: Uint8Array, header: ImageHeader, channels: 1 | 3, allocate: Allocate): void {
  const wanted = { top: 0, left: 0, height: header.height, width: header.width };
  decodePart(file, header, { wanted, shrink: 1, channels }, allocate);
}

/** @throws Error saying what is wrong with the file */
export function headerOf(file: Uint8Array): ImageHeader {
  const header = readImageHeader(file);
  if (header === null) throw new Error('a truncated image');
  return header;
}

/**
 * Decodes a part of a file; `shrink` is for JPEG only.
 * @param allocate for u8[height, width, channels] of the rectangle that is returned
 * @returns what was decoded: `wanted` and possibly more around it
 * @throws Error saying what is wrong with the file
 */
export function decodePart(file: Uint8Array, header: ImageHeader, part: JpegPart, allocate: Allocate): Rectangle {
  try {
    return header.kind === 'jpeg' ? decodeJpeg(file, part, allocate) : decodePng(file, part, allocate);
  } catch (cause) {
    throw new Error(`a damaged ${header.kind.toUpperCase()} (${(cause as Error).message})`, { cause });
  }
}

function decodePng(file: Uint8Array, { wanted, channels }: JpegPart, allocate: Allocate) {
  const { data, width } = PNG.sync.read(Buffer.from(file.buffer, file.byteOffset, file.length)); // RGBA; alpha is dropped
  const target = allocate(wanted.height * wanted.width * channels);
  let to = 0;
  for (let y = wanted.top; y < wanted.top + wanted.height; y++) {
    for (let x = wanted.left; x < wanted.left + wanted.width; x++) {
      const from = (y * width + x) * 4;
      for (let channel = 0; channel < channels; channel++) target[to++] = data[from + channel]!;
    }
  }
  return wanted;
}
