/** JPEG and PNG files to pixels. Not with TensorFlow: its eager operations are not safe in several threads at once. */
import turbo from '@julusian/jpeg-turbo';
import { PNG } from 'pngjs';
import type { ImageShape } from '../../input/dataset.ts';
import { readImageHeader } from '../../input/image-header.ts';

/**
 * Decodes one file of exactly this shape; grey files become colour where the shape has 3 channels.
 * @param target receives u8[H*W*C]
 * @throws Error saying what is wrong with the file
 */
export function decodeImage(file: Uint8Array, image: ImageShape, target: Uint8Array): void {
  const header = readImageHeader(file);
  if (header === null) throw new Error('a truncated image');
  if (header.height !== image.height || header.width !== image.width) {
    throw new Error(`an image of ${header.height}x${header.width}, not ${image.height}x${image.width}`);
  }
  if (header.channels > image.channels) throw new Error('a colour image among grey ones');
  try {
    if (header.kind === 'jpeg') decodeJpeg(file, image, target);
    else decodePng(file, image, target);
  } catch (cause) {
    const said = (cause as Error).message;
    // the library says "No error" for what libjpeg calls a warning: bytes that end early or make no sense
    throw new Error(`a damaged ${header.kind.toUpperCase()}${said === 'No error' ? '' : ` (${said})`}`, { cause });
  }
}

function decodeJpeg(file: Uint8Array, { channels }: ImageShape, target: Uint8Array): void {
  const format = channels === 1 ? turbo.FORMAT_GRAY : turbo.FORMAT_RGB;
  turbo.decompressSync(asBuffer(file), asBuffer(target), { format });
}

function decodePng(file: Uint8Array, { height, width, channels }: ImageShape, target: Uint8Array): void {
  const { data } = PNG.sync.read(asBuffer(file)); // always RGBA; alpha is dropped
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < channels; channel++)
      target[pixel * channels + channel] = data[pixel * 4 + channel]!;
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}
