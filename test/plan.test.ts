/** What `braid plan` predicts: figures that can be worked out by hand, properties of the model, and its errors. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import { BraidError } from '../core/errors.ts';
import { checkRecipe } from '../core/recipe.ts';
import { complexityOf } from '../nn/complexity.ts';
import { buildProgram } from '../nn/program.ts';
import { calibrated } from '../sizing/calibration.ts';
import { deviceNamed, netNamed } from '../sizing/devices.ts';
import { advise, type Cluster, predict } from '../sizing/model.ts';
import { workOf } from '../sizing/work.ts';

const BRAID = fileURLToPath(new URL('../bin/braid.mjs', import.meta.url));
const RECIPE = fileURLToPath(new URL('../bench/recipe.yaml', import.meta.url));

const shape = { image: { height: 8, width: 8, channels: 3 }, classes: 4, sampleBytes: 192 };
const recipe = checkRecipe({
  name: 'plan',
  data: { format: 'cifar10', path: '/nowhere', mean: [0], std: [1] },
  branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
  method: { name: 'ffl' },
  training: {},
});
const work = workOf(recipe, shape);
const cluster: Cluster = {
  device: deviceNamed('h100'),
  net: netNamed('10Gb'),
  gpus: 4,
  batch: 1024,
  precision: 'bf16',
  wire: 'f32',
  methodThreads: 4,
  microBatches: 1,
  overlap: false,
  cores: 16,
};
const at = (changes: Partial<Cluster>, placement: 'together' | 'split' = 'together') =>
  predict(work, { ...cluster, ...changes }, placement);

test('FLOPs are three times those of classification, and what travels is what the programs say', (t) => {
  const { multiplyAdds } = complexityOf(recipe, shape.image, shape.classes);
  t.is(work.replica.forwardFlops + work.replica.backwardFlops, 3 * 2 * multiplyAdds);
  const options = { recipe, image: shape.image, classes: shape.classes, shardSizes: [64] };
  const whole = buildProgram({ ...options, role: { kind: 'replica' } }).program;
  t.deepEqual(work.replica.segments, { all: whole.rounds[0]!.gradientLength });
  const branch = buildProgram({ ...options, role: { kind: 'branch', branch: 1 } }).program;
  t.is(64 * work.branch[1]!.outputs, branch.outputLengths['train@64']!);
});

test('an all-reduce takes the bytes of its algorithm over the link: half of them in bf16, twice as long on half of the link', (t) => {
  const net = { ...cluster.net, latency: 0 };
  const bytes = 4 * work.replica.segments.all!;
  const seconds = (changes: Partial<Cluster>) => at({ net, ...changes })!.phases.reduce!;
  const close = (a: number, b: number) => t.true(Math.abs(a / b - 1) < 1e-12, `${a} ${b}`);
  close(seconds({}), (2 * (3 / 4) * bytes) / net.bandwidth);
  close(seconds({ wire: 'bf16' }), seconds({}) / 2);
  close(seconds({ net: { ...net, bandwidth: net.bandwidth / 2 } }), 2 * seconds({}));
  t.is(seconds({ gpus: 1 }), 0);
  t.is(at({ gpus: 16 })!.topology, 'mesh');
  t.is(at({ gpus: 32 })!.topology, 'ring');
});

test('phases make up the step, more samples take longer, and no cluster is faster than its GPUs', (t) => {
  for (const placement of ['together', 'split'] as const) {
    const alone = at({ gpus: placement === 'together' ? 1 : 2 }, placement)!;
    for (const gpus of [2, 4, 8, 64]) {
      const prediction = at({ gpus }, placement)!;
      const sum = Object.values(prediction.phases).reduce((a, b) => a + b, 0);
      t.true(Math.abs(sum / prediction.seconds - 1) < 1e-9);
      t.true(prediction.imagesPerSecond <= (gpus / alone.gpus) * alone.imagesPerSecond * 1.000001);
      t.true(at({ gpus, batch: 2048 }, placement)!.seconds > prediction.seconds);
      t.true(at({ gpus, batch: 2048 }, placement)!.memoryBytes >= prediction.memoryBytes);
    }
  }
});

test('more threads of the method take the coordinator out of the way, until its link is the wall', (t) => {
  const net = netNamed('100Gb');
  const gather = (methodThreads: number) => at({ gpus: 64, net, methodThreads }, 'split')!.phases.gather!;
  t.true(gather(2) < 0.6 * gather(1));
  t.true(gather(32) > 0.9 * gather(31));
});

test('what cannot be is not predicted: a part of a replica, less than a sample each', (t) => {
  t.is(at({ gpus: 3 }, 'split'), null);
  t.is(at({ gpus: 8, batch: 4 }), null);
});

test('advice: the faster placement, parts that fit the memory, half of the bytes where gradients are much of a step', (t) => {
  const sizes = [1, 2, 4];
  const slow = { ...cluster, net: netNamed('1Gb'), batch: 64 };
  t.like(advise(work, slow, sizes), { placement: 'together', microBatches: 1, togetherFrom: 1, wire: 'bf16' });
  const fast = { ...cluster, net: { ...netNamed('400Gb'), latency: 0 }, batch: 1 << 20 };
  t.is(advise(work, fast, sizes)!.wire, 'f32');
  t.true(at({ microBatches: 2 })!.memoryBytes < at({})!.memoryBytes);
  const half = at({})!.memoryBytes / 2;
  const small = { ...cluster.device, memory: half };
  t.true(advise(work, { ...cluster, device: small }, sizes)!.microBatches > 1);
});

test('what could be spared: half of the maps, the shorter of what may overlap, and nothing twice', (t) => {
  const savings = (changes: Partial<Cluster>, of = work) => advise(of, { ...cluster, ...changes }, [4])!.savings;
  const split = at({}, 'split')!;
  const { forward, backward, gather, method, scatter } = split.phases as Record<string, number>;
  const found = savings({});
  t.is(found.microBatches, Math.min(forward! + backward!, gather! + method! + scatter!) / 2);
  t.is(savings({ microBatches: 2 }).microBatches, 0);
  const packed = workOf({ ...recipe, cluster: { ...recipe.cluster, featureWire: 'bf16' } }, shape);
  const after = predict(packed, cluster, 'split')!.phases;
  t.true(Math.abs(found.featureWire - (gather! + scatter! - after.gather! - after.scatter!)) < 1e-12);
  t.true(found.featureWire > 0);
  t.is(savings({}, packed).featureWire, 0);
  const { reduce, compute } = at({})!.phases as Record<string, number>;
  t.true(found.overlap > 0 && found.overlap <= Math.min(reduce!, compute!));
  t.is(savings({ gpus: 1 }).overlap, 0);
});

test('a measured efficiency takes the place of the assumed one, and says so', (t) => {
  const entry = { device: 'h100', machine: 'H100', date: '2030-01-02T00:00:00Z', recipe: 'r', samples: 1, seconds: 1 };
  const device = calibrated(cluster.device, [{ ...entry, precision: 'bf16', efficiency: 0.25 }]);
  t.deepEqual(device.efficiency, { f32: 0.5, bf16: 0.25, f16: 0.5 });
  t.regex(device.efficiencyFrom, /measured on 2030-01-02 on H100/);
  t.true(Math.abs(at({ device })!.phases.compute! / at({})!.phases.compute! - 2) < 1e-12);
  t.is(calibrated(deviceNamed('a100'), []).efficiencyFrom, 'assumed: Braid has not run on this GPU');
});

test('an unknown GPU or network is refused with the known ones', (t) => {
  const gpu = t.throws(() => deviceNamed('h10'), { instanceOf: BraidError, message: /--gpu h10 .*did you mean h100/ });
  t.regex((gpu as BraidError).remedy, /h200, h100, a100, l4, v100, cpu/);
  const net = t.throws(() => netNamed('90Gb'), { instanceOf: BraidError });
  t.regex((net as BraidError).remedy, /10Gb, 25Gb, 100Gb/);
});

test('the command says that it predicts, what it assumes, and the same in JSON', async (t) => {
  const run = (...args: string[]) => promisify(execFile)(process.execPath, [BRAID, 'plan', RECIPE, ...args]);
  const [text, json] = await Promise.all([run('--gpus', '4'), run('--gpus', '4', '--json')]);
  t.regex(text.stdout, /^Predicted, not measured/);
  t.regex(text.stdout, /efficiency 0\.50 of the roofline: assumed/);
  t.regex(text.stdout, /split: cluster\.featureWire=bf16 spares at most [\d.]+ ms, \d+ % of a step/);
  t.regex(text.stdout, /together: cluster\.overlap=true hides at most/);
  const { predicted, advice, sizes } = JSON.parse(json.stdout);
  t.true(predicted);
  t.is(advice.topology, 'mesh');
  t.deepEqual(
    sizes.map(({ gpus }: { gpus: number }) => gpus),
    [1, 2, 4],
  );
  await t.throwsAsync(run('--gpus', 'many'), { message: /--gpus many: expected a whole number/ });
  await t.throwsAsync(run(), { message: /--gpus is missing/ });
});

test('where workers read samples themselves, the coordinator sends next to nothing', async (t) => {
  const ids = [
    '--set',
    'data.format=indexed',
    '--set',
    'data.send=ids',
    '--set',
    'data.path=a.index',
    '--set',
    'data.testPath=b.index',
  ];
  const sent = async (...set: string[]) => {
    const imagenet = fileURLToPath(new URL('../recipes/imagenet-vanilla-resnet34.yaml', import.meta.url));
    const args = [BRAID, 'plan', imagenet, '--gpus', '2', '--json', ...set];
    const { sizes } = JSON.parse((await promisify(execFile)(process.execPath, args)).stdout);
    return sizes[1].together.coordinator.linkBytes as number;
  };
  t.is(await sent(...ids), 256 * 12);
  t.is(await sent(), 256 * 108_000);
});
