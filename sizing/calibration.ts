/** The efficiency of a device, measured: a recipe's own training step in one process, beside its roofline. */
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { Random } from '../core/random.ts';
import type { Recipe } from '../core/recipe.ts';
import { alignedSharedBuffer } from '../core/shared-buffer.ts';
import { Device, deviceName } from '../nn/device.ts';
import { trainingPhase } from '../nn/phases.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import type { DeviceSpec } from './devices.ts';
import { roofline } from './model.ts';
import type { Work } from './work.ts';

const entrySchema = z.strictObject({
  /** As `--gpu` names it. */
  device: z.string(),
  /** What the machine says it is. */
  machine: z.string(),
  /** ISO 8601. */
  date: z.string(),
  recipe: z.string(),
  precision: z.enum(['f32', 'bf16', 'f16']),
  samples: z.number().int().positive(),
  /** Median of a step's compute phase. */
  seconds: z.number().positive(),
  /** Roofline over seconds. */
  efficiency: z.number().positive(),
});
export type Calibration = z.infer<typeof entrySchema>;

/** Made on the machine that Braid was written on; test and bench runs are compared with it. */
const COMMITTED = new URL('./calibration.json', import.meta.url).pathname;

const WARM_UP_STEPS = 3;
const STEPS = 9;

/** @throws BraidError INVALID_DATA */
export function readCalibrations(file: string = COMMITTED): Calibration[] {
  try {
    return z.array(entrySchema).parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (cause) {
    throw new BraidError('INVALID_DATA', `${file} is no calibration: ${(cause as Error).message}`, {
      remedy: 'Make one with `braid plan <recipe> --calibrate <file>`.',
      cause,
    });
  }
}

/** The device with what was measured of it; as it is where nothing was. */
export function calibrated(device: DeviceSpec, entries: Calibration[]): DeviceSpec {
  const own = entries.filter((entry) => entry.device === device.name);
  if (own.length === 0) return device;
  const efficiency = Object.fromEntries(own.map((entry) => [entry.precision, entry.efficiency]));
  const from = own.map(({ date, machine, recipe }) => `measured on ${date.slice(0, 10)} on ${machine}, ${recipe}`);
  return {
    ...device,
    efficiency: { ...device.efficiency, ...efficiency },
    efficiencyFrom: [...new Set(from)].join('; '),
  };
}

export interface CalibrateOptions {
  recipe: Recipe;
  work: Work;
  device: DeviceSpec;
  samples: number;
  /** TensorFlow's. */
  threads: number;
  /** Seconds, monotonic. */
  now(): number;
  date: Date;
}

/** @throws BraidError CAPTURE or DEVICE */
export async function calibrate(options: CalibrateOptions): Promise<Calibration> {
  const { recipe, work, device, samples, threads, now, date } = options;
  const { precision } = recipe.training;
  const whole = { ...recipe, training: { ...recipe.training, microBatches: 1 } };
  const { image, classes } = work.shape;
  const role = { kind: 'replica' } as const;
  await using open = new AsyncDisposableStack();
  const running = await Device.open({ recipe: whole, role, image, classes, shardSizes: [samples], threads });
  open.defer(() => running.close());
  const { variables, rounds } = running.program;
  await running.run('write', { state: fromTensors(variables, initialWeights(variables, recipe.seed)) });
  const random = new Random(1);
  const shared = (bytes: number) => new SharedArrayBuffer(bytes);
  const pixels = samples * image.height * image.width * image.channels;
  const feeds = {
    images: new Uint8Array(shared(pixels)).map(() => random.int(256)),
    labels: new Int32Array(shared(4 * samples)).map(() => random.int(classes)),
    distillWeight: 1,
    shardWeight: 1,
  };
  const { gradientLength } = rounds[0]!;
  const gradient = new Float32Array(alignedSharedBuffer(4 * gradientLength), 0, gradientLength);
  const taken: number[] = [];
  for (let n = 0; n < WARM_UP_STEPS + STEPS; n++) {
    const start = now();
    await running.run(trainingPhase('compute', 0, samples), feeds, { gradient });
    if (n >= WARM_UP_STEPS) taken.push(now() - start);
  }
  const seconds = taken.sort((a, b) => a - b)[STEPS >> 1]!;
  const { forwardFlops, backwardFlops, traffic } = work.replica;
  const ideal = roofline({ device, precision, cores: threads }, 1, {
    flops: samples * (forwardFlops + backwardFlops),
    bytes: traffic.forward(samples),
  });
  return {
    device: device.name,
    machine: deviceName() === 'CPU' ? cpuModel() : deviceName(),
    date: date.toISOString(),
    recipe: recipe.name,
    precision,
    samples,
    seconds,
    efficiency: ideal / seconds,
  };
}

function cpuModel(): string {
  return /^model name\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'CPU';
}
