import test from 'ava';
import fc from 'fast-check';
import { Augmenter, type AugmentOptions, type Crop, drawCrop } from '../worker/input/augment.ts';

interface Case {
  image: { height: number; width: number; channels: number };
  options: AugmentOptions;
  crop: Crop;
  pixels: Uint8Array;
}

const cases: fc.Arbitrary<Case> = fc
  .record({
    height: fc.integer({ min: 2, max: 7 }),
    width: fc.integer({ min: 2, max: 7 }),
    channels: fc.integer({ min: 1, max: 4 }),
    padMode: fc.constantFrom('reflect' as const, 'zero' as const),
    flip: fc.boolean(),
  })
  .chain(({ padMode, flip, ...image }) => {
    const most = padMode === 'reflect' ? Math.min(image.height, image.width) - 1 : 9;
    return fc.integer({ min: 0, max: most }).chain((pad) =>
      fc.record({
        image: fc.constant(image),
        options: fc.constant({ pad, padMode, flip }),
        crop: fc.record({ top: fc.nat(2 * pad), left: fc.nat(2 * pad), flip: fc.boolean() }),
        pixels: fc.uint8Array({
          minLength: image.height * image.width * image.channels,
          maxLength: image.height * image.width * image.channels,
        }),
      }),
    );
  });

test('augmented pixels are those of pad, then flip, then crop, one step after the other', (t) => {
  fc.assert(
    fc.property(cases, ({ image, options, crop, pixels }) => {
      const { height, width, channels } = image;
      const { pad } = options;
      let rows = grid(pixels, image);
      rows = padded(rows, pad, options.padMode, channels);
      if (crop.flip) rows = rows.map((row) => [...row].reverse());
      rows = rows.slice(crop.top, crop.top + height).map((row) => row.slice(crop.left, crop.left + width));
      const target = new Uint8Array(5 + pixels.length).fill(77);
      new Augmenter(image, options).write(pixels, 'hwc', target, 5, crop);
      t.deepEqual([...target], [77, 77, 77, 77, 77, ...rows.flat(2)]);
    }),
    { numRuns: 300 },
  );
});

test('planes become interleaved pixels, augmented as interleaved ones are', (t) => {
  fc.assert(
    fc.property(cases, ({ image, options, crop, pixels }) => {
      const { height, width, channels } = image;
      const planes = new Uint8Array(pixels.length);
      for (let p = 0; p < height * width; p++) {
        for (let c = 0; c < channels; c++) planes[c * height * width + p] = pixels[p * channels + c]!;
      }
      const augmenter = new Augmenter(image, options);
      const [a, b] = [new Uint8Array(pixels.length), new Uint8Array(pixels.length)];
      augmenter.write(pixels, 'hwc', a, 0, crop);
      augmenter.write(planes, 'chw', b, 0, crop);
      t.deepEqual(a, b);
    }),
  );
});

test('without a crop, or without options, an image stays as it is', (t) => {
  fc.assert(
    fc.property(cases, ({ image, options, pixels }) => {
      for (const augmenter of [new Augmenter(image, options), new Augmenter(image, null)]) {
        const target = new Uint8Array(pixels.length);
        augmenter.write(pixels, 'hwc', target, 0);
        t.deepEqual(target, pixels);
      }
    }),
  );
});

test('a draw is a function of seed, epoch and sample, within bounds, and never flips where that is off', (t) => {
  const options = (flip: boolean) => ({ pad: 4, padMode: 'reflect' as const, flip });
  fc.assert(
    fc.property(fc.nat(), fc.nat(500), fc.nat(), (seed, epoch, sample) => {
      const crop = drawCrop(options(true), seed, epoch, sample);
      t.deepEqual(drawCrop(options(true), seed, epoch, sample), crop);
      t.deepEqual(drawCrop(options(false), seed, epoch, sample), { ...crop, flip: false });
      return crop.top >= 0 && crop.top <= 8 && crop.left >= 0 && crop.left <= 8;
    }),
  );
  const draws = Array.from({ length: 8100 }, (_, sample) => drawCrop(options(true), 1, 0, sample));
  const share = (of: (crop: Crop) => boolean) => draws.filter(of).length / draws.length;
  t.true(Math.abs(share(({ flip }) => flip) - 0.5) < 0.025);
  for (let corner = 0; corner <= 8; corner++) {
    t.true(Math.abs(share(({ top }) => top === corner) - 1 / 9) < 0.015);
    t.true(Math.abs(share(({ left }) => left === corner) - 1 / 9) < 0.015);
  }
  t.notDeepEqual(
    draws.slice(0, 20),
    Array.from({ length: 20 }, (_, sample) => drawCrop(options(true), 1, 1, sample)),
  );
});

/** [row][column] -> the channels of a pixel. */
function grid(pixels: Uint8Array, { height, width, channels }: Case['image']): number[][][] {
  return Array.from({ length: height }, (_, y) =>
    Array.from({ length: width }, (_, x) => [
      ...pixels.subarray((y * width + x) * channels, (y * width + x + 1) * channels),
    ]),
  );
}

/** Adds `pad` pixels on every side, one ring after the other. */
function padded(rows: number[][][], pad: number, mode: 'reflect' | 'zero', channels: number): number[][][] {
  const zero = new Array<number>(channels).fill(0);
  const extend = <T>(line: T[], blank: T): T[] => {
    const before = Array.from({ length: pad }, (_, i) => (mode === 'zero' ? blank : line[pad - i]!));
    const after = Array.from({ length: pad }, (_, i) => (mode === 'zero' ? blank : line[line.length - 2 - i]!));
    return [...before, ...line, ...after];
  };
  const wide = rows.map((row) => extend(row, zero));
  return extend(wide, new Array<number[]>(wide[0]!.length).fill(zero));
}
