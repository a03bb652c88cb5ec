/**
 * JPEG with libjpeg-turbo, as exact as torchvision and Pillow decode it, and only as much of it as is needed.
 *
 * The library is the one that @julusian/jpeg-turbo brings, called through its own interface, TurboJPEG 3: the package's
 * functions decode whole images alone, no CMYK, and with the less exact of libjpeg's inverse transforms.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type Koffi from 'koffi';
import type { Rectangle } from './view.ts';

/** Of turbojpeg.h. */
const DECOMPRESS = 1;
const PARAMETER = { subsampling: 4, width: 5, height: 6, colorspace: 8 };
const CMYK_COLORSPACES = [3, 4]; // CMYK and YCCK
const FORMAT = { rgb: 0, grey: 6, cmyk: 11 };
/** Pixels across that are decoded at a time, by subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1. */
const BLOCK_WIDTHS = [8, 16, 16, 8, 8, 32, 8];
const WARNING = 0;

/** What the library takes for the whole. */
const NO_PART: Rectangle = { top: 0, left: 0, height: 0, width: 0 };

/** Columns more on either side: at the edges of a part, chroma is interpolated without what is beyond. */
const MARGIN = 2;

/** What libjpeg complains about in files that are whole: Pillow and torchvision take them, and ImageNet has some. */
const HARMLESS = /extraneous bytes before marker|Invalid SOS parameters|JFIF revision|Adobe color transform/;

interface Decoder {
  get(parameter: number): number;
  errorText(): string;
  errorCode(): number;
  readHeader(file: Uint8Array): number;
  setShrink(shrink: number): number;
  setPart(part: Rectangle): number;
  decode(file: Uint8Array, to: Uint8Array, format: number): number;
}

let loaded: Decoder | undefined;

/**
 * This thread's decoder, loaded with its first JPEG: a thread that is ended while it loads takes the process with it, and a
 * task is never ended so (pool.ts).
 */
function decoder(): Decoder {
  loaded ??= load();
  return loaded;
}

function load(): Decoder {
  const require = createRequire(import.meta.url);
  const koffi: typeof Koffi = require('koffi');
  const package_ = dirname(require.resolve('@julusian/jpeg-turbo/package.json'));
  const library = koffi.load(
    join(package_, `prebuilds/jpeg-turbo-${process.platform}-${process.arch}/libturbojpeg.so.0`),
  );
  koffi.struct('tjregion', { x: 'int', y: 'int', w: 'int', h: 'int' });
  koffi.struct('tjscalingfactor', { num: 'int', denom: 'int' });
  const get = library.func('int tj3Get(void *handle, int param)');
  const errorText = library.func('str tj3GetErrorStr(void *handle)');
  const errorCode = library.func('int tj3GetErrorCode(void *handle)');
  const readHeader = library.func('int tj3DecompressHeader(void *handle, const uint8_t *file, size_t bytes)');
  const setScale = library.func('int tj3SetScalingFactor(void *handle, tjscalingfactor factor)');
  const setPart = library.func('int tj3SetCroppingRegion(void *handle, tjregion part)');
  const decode = library.func(
    'int tj3Decompress8(void *handle, const uint8_t *file, size_t bytes, uint8_t *to, int pitch, int format)',
  );
  const handle: unknown = library.func('void *tj3Init(int kind)')(DECOMPRESS);
  return {
    get: (parameter) => get(handle, parameter),
    errorText: () => errorText(handle),
    errorCode: () => errorCode(handle),
    readHeader: (file) => readHeader(handle, file, file.length),
    setShrink: (shrink) => setScale(handle, { num: 1, denom: shrink }),
    setPart: ({ left: x, top: y, width: w, height: h }) => setPart(handle, { x, y, w, h }),
    decode: (file, to, format) => decode(handle, file, file.length, to, 0, format),
  };
}

export interface JpegPart {
  /** Of the image after `shrink`. */
  wanted: Rectangle;
  /** Decodes at 1 / shrink of the size, rounded up: 1, 2, 4 or 8. */
  shrink: number;
  channels: 1 | 3;
}

/** Gives room for so many bytes. */
export type Allocate = (bytes: number) => Uint8Array;

/**
 * Decodes a part of a file. CMYK becomes RGB as in Pillow, which takes it to be inverted, as Adobe writes it.
 * @param allocate for u8[height, width, channels] of the rectangle that is returned
 * @returns the part that was decoded: `wanted` and some columns beside it
 * @throws Error saying what libjpeg says
 */
export function decodeJpeg(file: Uint8Array, { wanted, shrink, channels }: JpegPart, allocate: Allocate): Rectangle {
  const turbo = decoder();
  check(turbo, turbo.readHeader(file));
  const sideOf = (parameter: number) => Math.ceil(turbo.get(parameter) / shrink);
  const whole = { top: 0, left: 0, height: sideOf(PARAMETER.height), width: sideOf(PARAMETER.width) };
  if (wanted.top + wanted.height > whole.height || wanted.left + wanted.width > whole.width) {
    throw new Error(`two sizes, one of them ${whole.height}x${whole.width}`);
  }
  check(turbo, turbo.setShrink(shrink));
  const part = decodable(wanted, whole, BLOCK_WIDTHS[turbo.get(PARAMETER.subsampling)], shrink);
  check(turbo, turbo.setPart(part === whole ? NO_PART : part));
  const pixels = part.height * part.width;
  if (CMYK_COLORSPACES.includes(turbo.get(PARAMETER.colorspace))) {
    const inks = new Uint8Array(4 * pixels);
    check(turbo, turbo.decode(file, inks, FORMAT.cmyk));
    cmykToRgb(inks, allocate(3 * pixels));
  } else {
    check(turbo, turbo.decode(file, allocate(channels * pixels), channels === 1 ? FORMAT.grey : FORMAT.rgb));
  }
  return part;
}

/**
 * Parts begin at whole blocks.
 * @param blockWidth undefined: the subsampling is an unusual one, of which there are no parts
 */
function decodable(
  { top, left, height, width }: Rectangle,
  whole: Rectangle,
  blockWidth: number | undefined,
  shrink: number,
): Rectangle {
  if (blockWidth === undefined) return whole;
  const step = Math.ceil(blockWidth / shrink);
  const start = Math.floor(Math.max(0, left - MARGIN) / step) * step;
  const end = Math.min(whole.width, left + width + MARGIN);
  return { top, left: start, height, width: end - start };
}

function check(turbo: Decoder, status: number): void {
  if (status === 0) return;
  const said = turbo.errorText();
  if (turbo.errorCode() === WARNING && HARMLESS.test(said)) return;
  throw new Error(said);
}

/** @param inks u8[pixels, 4], each 255 less than nothing   @param rgb u8[pixels, 3] */
function cmykToRgb(inks: Uint8Array, rgb: Uint8Array): void {
  for (let from = 0, to = 0; from < inks.length; from += 4, to += 3) {
    const light = inks[from + 3]!;
    for (let ink = 0; ink < 3; ink++) {
      const scaled = (255 - inks[from + ink]!) * light + 128;
      rgb[to + ink] = light - (((scaled >> 8) + scaled) >> 8);
    }
  }
}
