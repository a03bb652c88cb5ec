/** Images of any size: what is seen of them, and that it is torchvision's to the bit. */
import { readdirSync, readFileSync } from 'node:fs';
import turbo from '@julusian/jpeg-turbo';
import test from 'ava';
import fc from 'fast-check';
import { PNG } from 'pngjs';
import { checkRecipe, type ResizedCrop } from '../core/recipe.ts';
import type { EncodedShard } from '../input/shard.ts';
import { compileKernels } from '../worker/build-kernels.ts';
import { checkImage, decodePart, headerOf } from '../worker/input/decode.ts';
import { KERNELS_WASM_BASE64 } from '../worker/input/kernels.wasm.ts';
import { InputPool } from '../worker/input/pool.ts';
import { Resizer } from '../worker/input/resize.ts';
import { drawView, evaluationView, type Jitter, type Rectangle, type View } from '../worker/input/view.ts';

const FOLDER = new URL('./fixtures/torchvision/', import.meta.url).pathname;

interface FixtureView {
  /** null: evaluation's. */
  box: Rectangle | null;
  mirrored: boolean;
  jitter: Jitter[];
}
const fixtures: { size: number; evaluationResize: number; views: Record<string, FixtureView[]> } = JSON.parse(
  readFileSync(`${FOLDER}views.json`, 'utf8'),
);
const { size: SIZE } = fixtures;
const IMAGE_BYTES = SIZE * SIZE * 3;
const square = { height: SIZE, width: SIZE };

function optionsOf(resizedCrop: object = {}): ResizedCrop {
  return recipeOf({ resizedCrop: { size: SIZE, evaluationResize: fixtures.evaluationResize, ...resizedCrop } })
    .resizedCrop!;
}

function recipeOf(data: object) {
  return checkRecipe({
    name: 'x',
    data: {
      ...{ format: 'folder', path: 'p', testPath: 't', mean: [1, 1, 1], std: [1, 1, 1], augment: { pad: 0 } },
      ...data,
    },
    branches: [{ network: 'resnet', depth: 8 }],
    method: { name: 'vanilla' },
    training: {},
  }).data;
}

function viewOf({ box, ...rest }: FixtureView, image: { height: number; width: number }): View {
  if (box === null) return evaluationView(optionsOf(), image);
  return { box, resized: square, window: { top: 0, left: 0, ...square }, ...rest };
}

function picture(name: string): Uint8Array {
  return readFileSync(`${FOLDER}${name}`);
}

/** u8[size, size, 3] */
function seen(file: Uint8Array, view: (image: { height: number; width: number }) => View, scaled = false): Uint8Array {
  const pixels = new Uint8Array(IMAGE_BYTES);
  new Resizer().write(file, view, scaled, pixels);
  return pixels;
}

// ---------------------------------------------------------------- torchvision

const pictures = Object.keys(fixtures.views);

for (const name of pictures) {
  // No tolerance: both decode by libjpeg's exact integer transform and resize in the same fixed point.
  test(`${name}: whole, middle, parts and jittered parts are torchvision's, to the bit`, (t) => {
    const expected = PNG.sync.read(readFileSync(`${FOLDER}${name}.expected.png`)).data;
    fixtures.views[name]!.forEach((view, i) => {
      const got = seen(picture(name), (image) => viewOf(view, image));
      const wanted = Uint8Array.from({ length: IMAGE_BYTES }, (_, at) => {
        const pixel = i * SIZE * SIZE + Math.floor(at / 3);
        return expected[4 * pixel + (at % 3)]!;
      });
      t.deepEqual(got, wanted, `view ${i}`);
    });
  });
}

test('crops have the areas, ratios and places that torchvision draws', (t) => {
  const n = 20_000;
  const tolerance = 0.015; // four deviations of a share among so many, and of torchvision's among 100,000
  type Deciles = [number, number][];
  const sizes: { height: number; width: number; area: Deciles; logRatio: Deciles; y: Deciles; x: Deciles }[] =
    JSON.parse(readFileSync(`${FOLDER}draws.json`, 'utf8'));
  for (const { height, width, ...deciles } of sizes) {
    const boxes = Array.from({ length: n }, (_, i) => drawView(optionsOf(), true, 1, 0, i, { height, width }).box);
    const figures = {
      area: boxes.map((box) => (box.height * box.width) / (height * width)),
      logRatio: boxes.map((box) => Math.log(box.width / box.height)),
      y: boxes.map((box) => (box.top + box.height / 2) / height),
      x: boxes.map((box) => (box.left + box.width / 2) / width),
    };
    for (const [name, values] of Object.entries(figures)) {
      for (const [at, share] of deciles[name as keyof typeof deciles]) {
        const ours = values.filter((value) => value <= at + 1e-9).length / n;
        t.true(Math.abs(ours - share) < tolerance, `${height}x${width} ${name} <= ${at}: ${ours}, not ${share}`);
      }
    }
  }
});

// ---------------------------------------------------------------- draws

const imageSizes = fc.record({ height: fc.integer({ min: 1, max: 3000 }), width: fc.integer({ min: 1, max: 3000 }) });

test('a view is a function of seed, epoch, sample and size, inside the image, and never mirrored where that is off', (t) => {
  const options = optionsOf({ jitter: { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 } });
  fc.assert(
    fc.property(imageSizes, fc.nat(), fc.nat(500), fc.nat(), (image, seed, epoch, sample) => {
      const view = drawView(options, true, seed, epoch, sample, image);
      t.deepEqual(drawView(options, true, seed, epoch, sample, image), view);
      const own = [0, 1, 1].map((branch) => drawView(options, true, seed, epoch, sample, image, branch).jitter);
      t.deepEqual(own[1], own[2]);
      t.notDeepEqual(own[0], own[1]);
      t.notDeepEqual(own[0], view.jitter);
      t.deepEqual(drawView(options, false, seed, epoch, sample, image), { ...view, mirrored: false });
      const { top, left, height, width } = view.box;
      t.true(top >= 0 && left >= 0 && height >= 1 && width >= 1);
      t.true(top + height <= image.height && left + width <= image.width);
      for (const { kind, factor } of view.jitter) {
        const [middle, strength] = kind === 'hue' ? [0, 0.1] : [1, 0.4];
        t.true(Math.abs(factor - middle) <= strength + 1e-7, `${kind} ${factor}`);
      }
      t.deepEqual(view.jitter.map(({ kind }) => kind).sort(), ['brightness', 'contrast', 'hue', 'saturation']);
    }),
  );
});

test('jitter comes in every order, mirroring half of the time, and neither unless asked for', (t) => {
  const n = 6000;
  const image = { height: 50, width: 60 };
  const options = optionsOf({ jitter: { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 } });
  const views = Array.from({ length: n }, (_, i) => drawView(options, true, 2, 3, i, image));
  const orders = new Map<string, number>();
  for (const { jitter } of views) {
    const order = jitter.map(({ kind }) => kind[0]).join('');
    orders.set(order, (orders.get(order) ?? 0) + 1);
  }
  t.is(orders.size, 24);
  for (const count of orders.values()) t.true(Math.abs(count / n - 1 / 24) < 0.0125);
  t.true(Math.abs(views.filter(({ mirrored }) => mirrored).length / n - 0.5) < 0.03);
  t.deepEqual(drawView(optionsOf(), true, 2, 3, 0, image).jitter, []);
});

// ---------------------------------------------------------------- decoding

const jpegs = pictures.filter((name) => name.endsWith('.jpg'));

test('a part of a JPEG is decoded to the same pixels as the whole', (t) => {
  for (const name of jpegs) {
    const file = picture(name);
    const header = headerOf(file);
    const decode = (wanted: Rectangle, shrink: number) => {
      let pixels = new Uint8Array(0);
      const part = decodePart(file, header, { wanted, shrink, channels: 3 }, (bytes) => {
        pixels = new Uint8Array(bytes);
        return pixels;
      });
      return { part, pixels };
    };
    for (const shrink of [1, 2, 4, 8]) {
      const [height, width] = [Math.ceil(header.height / shrink), Math.ceil(header.width / shrink)];
      const whole = decode({ top: 0, left: 0, height, width }, shrink).pixels;
      const ranges = (side: number) => fc.tuple(fc.nat(side - 1), fc.nat(side - 1)).map((pair) => pair.sort(byValue));
      fc.assert(
        fc.property(ranges(height), ranges(width), ([top, bottom], [left, right]) => {
          const wanted = { top: top!, left: left!, height: bottom! - top! + 1, width: right! - left! + 1 };
          const { part, pixels } = decode(wanted, shrink);
          for (let y = top!; y <= bottom!; y++) {
            const from = ((y - part.top) * part.width + left! - part.left) * 3;
            const row = pixels.subarray(from, from + wanted.width * 3);
            const expected = whole.subarray((y * width + left!) * 3, (y * width + right! + 1) * 3);
            if (Buffer.compare(row, expected) !== 0) return false;
          }
          return true;
        }),
        { numRuns: 25 },
      );
    }
    t.pass();
  }
});

const byValue = (a: number, b: number) => a - b;

test('decoded at a fraction of its size, a picture is nearly the same', (t) => {
  const file = picture('large-420.jpg');
  for (const box of [
    { top: 0, left: 0, height: 331, width: 402 },
    { top: 33, left: 71, height: 201, width: 180 },
    { top: 100, left: 3, height: 85, width: 97 },
  ]) {
    const view = (image: { height: number; width: number }) => viewOf({ box, mirrored: true, jitter: [] }, image);
    const [exact, scaled] = [seen(file, view), seen(file, view, true)];
    const differences = exact.map((value, i) => Math.abs(value - scaled[i]!));
    const mean = differences.reduce((sum, each) => sum + each, 0) / differences.length;
    t.true(mean > 0 && mean < 3, `${mean} grey levels`); // waves as fine as these pixels: photographs differ by 1
  }
  const small = { box: { top: 5, left: 9, height: 79, width: 200 }, mirrored: false, jitter: [] };
  const view = (image: { height: number; width: number }) => viewOf(small, image);
  t.deepEqual(seen(file, view, true), seen(file, view)); // not shrunk by 2 in both directions
});

test('a large photograph is seen, and one that claims to be larger than memory is refused by its header', (t) => {
  const [height, width] = [6000, 8000];
  const file = turbo.compressSync(Buffer.alloc(height * width * 3, 77), {
    ...{ format: turbo.FORMAT_RGB, width, height, subsampling: turbo.SAMP_420, quality: 50 },
  });
  for (const view of [
    evaluationView(optionsOf(), { height, width }),
    drawView(optionsOf(), true, 1, 1, 1, { height, width }),
  ]) {
    t.true(seen(file, () => view).every((value) => Math.abs(value - 77) <= 1));
  }
  const frame = file.indexOf(Buffer.from([0xff, 0xc0]));
  file.writeUInt16BE(65535, frame + 5);
  file.writeUInt16BE(65535, frame + 7);
  t.throws(() => headerOf(file), { message: /65535x65535 pixels, more than 134217728/ });
});

test('a file that ends early is damaged; one with stray bytes before its end is not', (t) => {
  const file = picture('420.jpg');
  t.throws(() => checkImage(file.subarray(0, 3000)), { message: /damaged JPEG \(.*[Pp]remature end/ });
  t.throws(() => seen(file.subarray(0, 3000), (image) => evaluationView(optionsOf(), image)), {
    message: /damaged JPEG/,
  });
  const stray = Buffer.concat([file.subarray(0, -2), Buffer.alloc(7, 1), file.subarray(-2)]);
  t.notThrows(() => checkImage(stray));
  t.throws(() => checkImage(picture('alpha.png').subarray(0, 5000)), { message: /damaged PNG/ });
});

test('a PNG of 16 bits a sample is rounded to 8', (t) => {
  const [height, width] = [SIZE, SIZE];
  const deep = Uint16Array.from({ length: height * width * 4 }, (_, i) =>
    i % 4 === 3 ? 0xffff : (i * 40503) & 0xffff,
  );
  const image = { height, width, data: Buffer.from(deep.buffer) } as unknown as PNG;
  const file = PNG.sync.write(image, { bitDepth: 16, colorType: 2, inputColorType: 6 });
  const box = { top: 0, left: 0, height, width };
  const got = seen(file, (size) => viewOf({ box, mirrored: false, jitter: [] }, size));
  const wanted = got.map((_, i) => Math.round(deep[Math.floor(i / 3) * 4 + (i % 3)]! / 257));
  t.deepEqual(got, wanted);
});

test('kernels.wasm.ts is kernels.wat, compiled', async (t) => {
  t.is(Buffer.from(await compileKernels('input')).toString('base64'), KERNELS_WASM_BASE64);
});

// ---------------------------------------------------------------- in the pool

const shard: EncodedShard = {
  step: 4,
  epoch: 2,
  encoding: 'image-file',
  image: { ...square, channels: 3 },
  sampleIds: Int32Array.from(pictures, (_, i) => 100 + i),
  labels: new Int32Array(pictures.length),
  records: pictures.map(picture),
};

test('a pool brings pictures of all kinds and sizes to one size, whatever its threads', async (t) => {
  const options = optionsOf({ jitter: { brightness: 0.2 } });
  const prepared = async (threads: number, training: boolean) => {
    const augment = training ? ({ pad: 0, padMode: 'zero', flip: true } as const) : null;
    const pool = new InputPool({ onBadSample: 'fail', threads, seed: 3, augment, resizedCrop: options, buffers: 1 });
    try {
      return (await pool.prepare(shard)).images.slice();
    } finally {
      await pool.close();
    }
  };
  const [one, three] = [await prepared(1, true), await prepared(3, true)];
  t.deepEqual(one, three);
  const evaluated = await prepared(2, false);
  pictures.forEach((name, i) => {
    const at = (images: Uint8Array) => images.slice(i * IMAGE_BYTES, (i + 1) * IMAGE_BYTES);
    const drawn = seen(picture(name), (image) => drawView(options, true, 3, 2, 100 + i, image));
    t.deepEqual(at(one), drawn, name);
    const middle = seen(picture(name), (image) => evaluationView(options, image));
    t.deepEqual(at(evaluated), middle, name);
  });
});

test('a pool may close while its threads start, load the decoder or decode', async (t) => {
  const turn = () => new Promise(setImmediate);
  for (const turns of [0, 30, 300, 3000, 30_000]) {
    const pool = new InputPool({
      onBadSample: 'fail',
      threads: 2,
      seed: 3,
      augment: null,
      resizedCrop: optionsOf(),
      buffers: 1,
    });
    const preparing = pool.prepare(shard).then(
      () => 'ready',
      ({ code }) => code,
    );
    for (let i = 0; i < turns; i++) await turn();
    await pool.close();
    t.true(['ready', 'CANCELLED'].includes(await preparing));
  }
});

// ---------------------------------------------------------------- recipes

test('what contradicts data.resizedCrop is refused by its path', (t) => {
  const refused = (data: object, message: RegExp) => {
    t.throws(() => recipeOf({ resizedCrop: {}, ...data }), { message });
  };
  t.like(recipeOf({ resizedCrop: {} }).resizedCrop, { size: 224, evaluationResize: 256, scaledDecode: false });
  t.is(recipeOf({}).resizedCrop, null);
  refused(
    { format: 'cifar10', testPath: undefined },
    /data\.resizedCrop: only for format folder and indexed, here is cifar10/,
  );
  refused({ augment: { pad: 4 } }, /data\.augment\.pad: 4, but data\.resizedCrop takes the crop: set pad to 0/);
  refused({ mean: [1], std: [1] }, /data\.mean: 1 value\(s\), but data\.resizedCrop makes images of 3 channels/);
  refused({ resizedCrop: { area: [0.9, 0.1] } }, /data\.resizedCrop\.area: from 0\.9 to 0\.1/);
  refused({ resizedCrop: { area: [0.9, 1.1] } }, /data\.resizedCrop\.area\.1/);
  refused({ resizedCrop: { ratio: [2, 1] } }, /data\.resizedCrop\.ratio: from 2 to 1/);
  refused({ resizedCrop: { size: 300 } }, /data\.resizedCrop\.evaluationResize: 256 is less than .*, 300/);
  refused({ resizedCrop: { jiter: {} } }, /data\.resizedCrop\.jiter: unknown key, did you mean jitter\?/);
});

test('every picture of the fixture folder has its views', (t) => {
  const files = readdirSync(FOLDER).filter((file) => /\.(jpg|png)$/.test(file) && !file.includes('.expected.'));
  t.deepEqual(files.sort(), pictures.sort());
});
