/** braid plan: what a cluster would make of a recipe, predicted (sizing/model.ts); nothing is started. */
import { existsSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { methodThreadsOf } from '../coordinator/method.ts';
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import { openDataset } from '../input/dataset.ts';
import { BYTES_A_SAMPLE } from '../input/shard.ts';
import { calibrate, calibrated, readCalibrations } from '../sizing/calibration.ts';
import { type DeviceSpec, deviceNamed, netNamed } from '../sizing/devices.ts';
import { type Advice, advise, type Cluster, type Placement, type Prediction, predict } from '../sizing/model.ts';
import { type Shape, workOf } from '../sizing/work.ts';
import { parse, recipeOf, SET } from './options.ts';
import { columns } from './result-table.ts';

const USAGE =
  'braid plan <recipe.yaml> --gpus <n> [--gpu h100] [--net 100Gb] [--per-gpu <samples>] [--coordinator-cores <n>] [--json] [--calibration <file>] ' +
  '[--set path=value ...], or braid plan <recipe.yaml> [--gpu cpu] --calibrate <file>';

const OPTIONS = {
  ...SET,
  gpus: { type: 'string' },
  gpu: { type: 'string', default: 'h100' },
  net: { type: 'string', default: '100Gb' },
  'per-gpu': { type: 'string' },
  json: { type: 'boolean', default: false },
  'coordinator-cores': { type: 'string' },
  calibration: { type: 'string' },
  calibrate: { type: 'string' },
} as const;

/** Of a coordinator beside GPUs, where --coordinator-cores does not say it. */
const CORES = 32;

const PLACEMENTS: Placement[] = ['together', 'split'];
/** Of a JPEG: the 1,281,167 training images of ImageNet-1k are 138 GB. */
const JPEG_BYTES = 108_000;
/** Of images that are cropped to a size, where data.classes does not say it. */
const IMAGENET_CLASSES = 1000;

export async function plan(argv: string[]): Promise<number> {
  const { values, positionals } = parse('plan', argv, OPTIONS, USAGE);
  const known = deviceNamed(values.gpu);
  const net = netNamed(values.net);
  const recipe = recipeOf('plan', positionals, values.set, USAGE);
  const work = workOf(recipe, await shapeOf(recipe));
  const { precision, batch } = recipe.training;

  if (values.calibrate !== undefined) {
    const entries = existsSync(values.calibrate) ? readCalibrations(values.calibrate) : [];
    const entry = await calibrate({
      recipe,
      work,
      device: known,
      samples: numberOf('per-gpu', values['per-gpu']) ?? batch,
      threads: recipe.cluster.threads ?? availableParallelism(),
      now: () => performance.now() / 1000,
      date: new Date(),
    });
    const kept = entries.filter((other) => other.device !== entry.device || other.precision !== entry.precision);
    writeFileSync(values.calibrate, `${JSON.stringify([...kept, entry], null, 2)}\n`);
    const { efficiency, seconds, machine } = entry;
    process.stdout.write(
      `${known.name} (${machine}), ${precision}: ${ms(seconds)} ms a step, ${efficiency.toFixed(3)} of the roofline; wrote ${values.calibrate}\n`,
    );
    return 0;
  }

  const gpus = numberOf('gpus', values.gpus);
  if (gpus === undefined) throw wrong('--gpus is missing: how many?');
  const perGpu = numberOf('per-gpu', values['per-gpu']);
  const device = calibrated(known, readCalibrations(values.calibration));
  const cores =
    numberOf('coordinator-cores', values['coordinator-cores']) ?? (device.cores > 0 ? availableParallelism() : CORES);
  const clusterOf = (n: number): Cluster => ({
    device,
    net,
    gpus: n,
    batch: perGpu === undefined ? batch : perGpu * n,
    precision,
    wire: recipe.cluster.wire,
    methodThreads: methodThreadsOf(recipe, n, cores),
    microBatches: recipe.training.microBatches,
    overlap: recipe.cluster.overlap,
    cores,
  });
  const sizes = [...new Set([...powersOfTwo(gpus), gpus])];
  const rows = sizes.map((n) => ({ gpus: n, ...both((placement) => predict(work, clusterOf(n), placement)) }));
  const advice = advise(work, clusterOf(gpus), sizes);
  if (advice === null) {
    throw wrong(
      `${gpus} GPUs cannot share a batch of ${clusterOf(gpus).batch}: raise training.batch, or say --per-gpu`,
    );
  }
  const asked = rows.at(-1)!;
  if (values.json) {
    const { name, source, efficiencyFrom } = device;
    const assumed = { device: name, source, efficiency: device.efficiency[precision], efficiencyFrom, net: net.name };
    process.stdout.write(
      `${JSON.stringify({ predicted: true, recipe: recipe.name, ...assumed, advice, sizes: rows })}\n`,
    );
  } else process.stdout.write(asText(recipe, device, clusterOf(gpus), asked, rows, advice));
  return 0;
}

type Row = { gpus: number } & Record<Placement, Prediction | null>;

function asText(
  recipe: Recipe,
  device: DeviceSpec,
  { net, batch, precision }: Cluster,
  asked: Row,
  rows: Row[],
  advice: Advice,
): string {
  const phases = [...new Set(PLACEMENTS.flatMap((placement) => Object.keys(asked[placement]?.phases ?? {})))];
  const line = (title: string, of: (prediction: Prediction) => string) => [
    title,
    ...PLACEMENTS.map((placement) => (asked[placement] === null ? '-' : of(asked[placement]))),
  ];
  const table = [
    [`${asked.gpus} x ${device.name}, batch ${batch}`, ...PLACEMENTS],
    line('samples a worker', ({ shard }) => String(shard)),
    line('images/s', ({ imagesPerSecond }) => count(imagesPerSecond)),
    line('step, ms', ({ seconds }) => ms(seconds)),
    ...phases.map((phase) => line(`  ${phase}`, (p) => (p.phases[phase] === undefined ? '' : ms(p.phases[phase])))),
    line('memory a worker, GB', ({ memoryBytes }) => gigabytes(memoryBytes)),
    line("a worker's link, MB a step", ({ linkBytes }) => megabytes(linkBytes)),
    line("coordinator's link, MB a step", ({ coordinator }) => megabytes(coordinator.linkBytes)),
    line("coordinator's thread, busy", ({ coordinator }) => percent(coordinator.busy)),
  ];
  const first = rows[0]!;
  const scaling = (row: Row, placement: Placement) => {
    const prediction = row[placement];
    const alone = first.together!;
    if (prediction === null) return ['-', '-'];
    const efficiency = prediction.imagesPerSecond / (row.gpus * alone.imagesPerSecond);
    return [count(prediction.imagesPerSecond), percent(efficiency)];
  };
  const sizes = [
    ['GPUs', 'together, images/s', 'scaling', 'split, images/s', 'scaling'],
    ...rows.map((row) => [String(row.gpus), ...PLACEMENTS.flatMap((placement) => scaling(row, placement))]),
  ];
  const { placement, microBatches, wire, topology, togetherFrom, savings } = advice;
  const from =
    togetherFrom === null
      ? `up to ${asked.gpus} GPUs split is faster`
      : `together is the faster one from ${togetherFrom} GPU${togetherFrom === 1 ? '' : 's'} on`;
  const waits = PLACEMENTS.some((each) => asked[each]?.phases['wait for samples'] !== undefined);
  const samples = waits
    ? '        the coordinator is the wall: it sends samples no faster; smaller images on disk help\n'
    : '';
  return `Predicted, not measured: ${recipe.name}, ${precision}, ${net.name} between machines
${device.name}: ${device.source}
efficiency ${device.efficiency[precision].toFixed(2)} of the roofline: ${device.efficiencyFrom}

${columns(table)}
${columns(sizes)}
advice  placement ${placement}, ${microBatches === 1 ? 'whole shards' : `training.microBatches=${microBatches} (memory)`}, wire ${wire}, ${topology}; ${from}
${samples}${saved(savings, asked)}        on a machine of the kind: braid plan <recipe> --gpu ${device.name} --calibrate <file>, then --calibration <file>
        what is left out, and how far off it was: docs/sizing.md
`;
}

function saved({ overlap, microBatches, featureWire }: Advice['savings'], { together, split }: Row): string {
  const line = (seconds: number, of: Prediction | null, what: string) =>
    seconds > 0 ? [`        ${what} at most ${ms(seconds)} ms, ${percent(seconds / of!.seconds)} of a step\n`] : [];
  return [
    ...line(featureWire, split, 'split: cluster.featureWire=bf16 spares'),
    ...line(microBatches, split, 'split: training.microBatches=2 hides gather, method and scatter for'),
    ...line(overlap, together, 'together: cluster.overlap=true hides'),
  ].join('');
}

/** Where workers read samples themselves, their numbers are all that is sent. */
async function shapeOf(recipe: Recipe): Promise<Shape> {
  const shape = await whole(recipe);
  return recipe.data.send === 'ids' ? { ...shape, sampleBytes: BYTES_A_SAMPLE } : shape;
}

/** Of what the network sees. Data are opened only where the recipe does not say it all, and need not be here for ImageNet's. */
async function whole({ data }: Recipe): Promise<Shape> {
  if (data.format === 'cifar10' || data.format === 'cifar100') {
    const classes = data.classes ?? (data.format === 'cifar10' ? 10 : 100);
    return { image: { height: 32, width: 32, channels: 3 }, classes, sampleBytes: 3 * 32 * 32 };
  }
  const { resizedCrop } = data;
  if (resizedCrop !== null) {
    const { size } = resizedCrop;
    const classes = data.classes ?? IMAGENET_CLASSES;
    return { image: { height: size, width: size, channels: 3 }, classes, sampleBytes: JPEG_BYTES };
  }
  try {
    const dataset = await openDataset(data, 'train');
    const { image, encoding, recordBytes } = dataset;
    dataset.close();
    return { image, classes: dataset.classes, sampleBytes: encoding === 'image-file' ? JPEG_BYTES : recordBytes };
  } catch (cause) {
    throw new BraidError('INVALID_DATA', `plan: the recipe does not say it all, and ${(cause as Error).message}`, {
      remedy: 'Bring the data to data.path first.',
      cause,
    });
  }
}

function both<T>(of: (placement: Placement) => T): Record<Placement, T> {
  return { together: of('together'), split: of('split') };
}

function powersOfTwo(most: number): number[] {
  return Array.from({ length: Math.floor(Math.log2(most)) + 1 }, (_, i) => 2 ** i);
}

function numberOf(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (/^[1-9]\d{0,6}$/.test(text)) return Number(text);
  throw wrong(`--${option} ${text}: expected a whole number from 1`);
}

function wrong(message: string): BraidError {
  return new BraidError('INVALID_RECIPE', `plan: ${message}`, { remedy: USAGE });
}

const ms = (seconds: number) => (1000 * seconds).toFixed(seconds < 0.1 ? 2 : 1);
const count = (value: number) => Math.round(value).toLocaleString('en');
const gigabytes = (bytes: number) => (bytes / 1e9).toFixed(2);
const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
const percent = (part: number) => `${Math.round(100 * part)} %`;
