/** Workers between a scripted coordinator and a device without TensorFlow: what they do, what they refuse, how they leave. */
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Server } from '@grpc/grpc-js';
import test from 'ava';
import { BraidError } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { checkRecipe } from '../core/recipe.ts';
import { type EncodedShard, encodeShard } from '../input/shard.ts';
import type { Device, DeviceOptions, Program } from '../nn/device.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type {
  JoinRequest,
  PrepareRequest,
  PrepareResponse,
  ShardsRequest,
  StepRequest,
  WorkerService,
} from '../proto/messages.ts';
import { collect, parts } from '../proto/parts.ts';
import { VERSION } from '../proto/version.ts';
import { freePort } from '../rig/free-port.ts';
import { runWorker } from '../worker/worker.ts';

const never = new AbortController().signal;
const call = { signal: never };
const RUN = 'test-run';
const SECRET = 'known-to-this-run-alone';
const STATE = 8; // f32 elements, a weight each
const STEPS = 12;
const TEST_SAMPLES = 7;

/** Folders of this file's workers go in one place, so that what they leave behind is seen. */
const temporary = mkdtempSync(join(tmpdir(), 'braid-test-'));
process.env['TMPDIR'] = temporary;
process.on('exit', () => rmSync(temporary, { recursive: true }));

const recipe = checkRecipe({
  name: 'small',
  data: { format: 'idx', path: '/nowhere', mean: [0], std: [1], augment: { pad: 0, flip: false } },
  branches: [{ network: 'resnet', count: 2, depth: 8 }],
  method: { name: 'ffl' },
  training: { batch: 4 },
  evaluation: { batch: 4 },
  cluster: { replicas: 2, prefetch: 2 },
});

/** Every pixel of sample i is i; a shard has two samples, the test set batches of 4 and a last one of 3. */
function shard(split: string, step: number, replica: number): EncodedShard {
  const size = split === 'SPLIT_TRAIN' ? 2 : Math.min(4, TEST_SAMPLES - 4 * step);
  const first = split === 'SPLIT_TRAIN' ? 4 * step + 2 * replica : 4 * step;
  const sampleIds = Int32Array.from({ length: size }, (_, i) => first + i);
  return {
    step,
    epoch: 0,
    encoding: 'raw-hwc',
    image: { height: 2, width: 2, channels: 1 },
    sampleIds,
    labels: sampleIds.map((id) => id % 3),
    records: Array.from(sampleIds, (id) => new Uint8Array(4).fill(id)),
  };
}

function firstSample({ sampleIds, labels, records, ...shard }: EncodedShard): EncodedShard {
  const first = { sampleIds: sampleIds.slice(0, 1), labels: labels.slice(0, 1), records: records.slice(0, 1) };
  return { ...shard, ...first };
}

/** Its gradient is the sum of the images' first pixels in every element, its outputs the pixels themselves. */
class FakeDevice {
  readonly state = new Float32Array(STATE);
  readonly program: Program;
  /** Phases in the order of their runs. */
  readonly ran: string[] = [];
  /** Fed to the last run. */
  feeds: Record<string, Float32Array | Int32Array | Uint8Array | number> = {};
  fails: string | null = null;
  closed = false;
  onRun: (report: { phase: string; seconds: number; tensors: number }) => void = () => {};

  constructor({ role }: DeviceOptions) {
    const segments: Program['rounds'][number]['segments'] =
      role.kind === 'replica'
        ? [{ name: 'all', offset: 0, length: STATE }]
        : [
            { name: 'trunk', offset: 0, length: 5 },
            { name: 'branch', offset: 5, length: STATE - 5 },
          ];
    this.program = {
      variables: [],
      stateLength: STATE,
      rounds: [{ gradientLength: STATE, segments, gradientOffsets: {}, losses: ['ce', 'total'] }],
      classifiers: ['branch.0', 'fused'],
      outputLengths: role.kind === 'branch' ? { 'train@2': 2, test: 4 } : {},
    };
  }

  async run(phase: string, feeds: FakeDevice['feeds'], into: Record<string, Float32Array> = {}) {
    this.ran.push(phase);
    this.feeds = feeds;
    if (this.fails === phase) throw new BraidError('DEVICE', `${phase} failed`);
    this.onRun({ phase, seconds: 0.5, tensors: 0 });
    const images = feeds['images'] as Uint8Array | undefined;
    const pixels = images && Float32Array.from({ length: images.length / 4 }, (_, i) => images[4 * i]!);
    const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);
    switch (phase) {
      case 'compute@2':
        into['gradient']!.fill(sum(pixels!) * (feeds['shardWeight'] as number));
        return { losses: Float32Array.of(sum(pixels!), feeds['distillWeight'] as number) };
      case 'backward@2':
        into['gradient']!.fill(sum(feeds['cotangents'] as Float32Array) * (feeds['shardWeight'] as number));
        return {};
      case 'forward@2':
      case 'forwardTest':
        return { outputs: pixels! };
      case 'apply': {
        const gradient = feeds['gradient'] as Float32Array;
        this.state.forEach((v, i) => {
          this.state[i] = v - (feeds['learningRate'] as number) * gradient[i]!;
        });
        return {};
      }
      case 'evaluate': {
        const labels = feeds['labels'] as Int32Array;
        const present = labels.filter((label) => label >= 0).length;
        const bins = new Float32Array(45);
        return { scores: Float32Array.of(1, present, sum(pixels!), ...bins, 0, present, 0.5, ...bins) };
      }
      case 'write':
        this.state.set(feeds['state'] as Float32Array);
        return {};
      default:
        into['state']?.set(this.state);
        return { state: this.state.slice() };
    }
  }

  async close() {
    this.closed = true;
  }
}

interface Member {
  joined: JoinRequest;
  worker: Connection<WorkerService>;
  device: FakeDevice;
  /** Settles when the worker has left. */
  life: Promise<void>;
}

interface World extends AsyncDisposable {
  members: Member[];
  /** What the workers asked for, in order. */
  asked: ShardsRequest[];
  prepare(changes?: (rank: number) => Partial<PrepareRequest>): Promise<unknown>;
  write(step: number, state?: Float32Array): Promise<unknown>;
  /** Ends every Join stream, perhaps with a reason. */
  dismiss(reason?: BraidError): void;
  kill(): void;
}

interface WorldOptions {
  workers: number;
  branches?: boolean;
  /** Changes what a shard says. */
  distort?(shard: EncodedShard): EncodedShard;
  refuse?: BraidError;
  /** The run is over when they come. */
  done?: boolean;
  signal?: AbortSignal;
}

function stamp(step: number, generation = 1): StepRequest {
  return { run: RUN, generation, step };
}

async function world(options: WorldOptions): Promise<World> {
  const { workers, distort = (s) => s, refuse, branches = false, done = false } = options;
  const asked: ShardsRequest[] = [];
  const over = new AbortController();
  const joins: JoinRequest[] = [];
  const arrived = Array.from({ length: workers }, () => Promise.withResolvers<void>());
  const server = new Server(serverOptions);
  implement(server, coordinatorService, {
    async *join(request, { signal }) {
      if (refuse !== undefined) throw refuse;
      const rank = joins.push(request) - 1;
      yield { run: RUN, member: rank, secret: SECRET, over: done };
      if (done) return;
      arrived[rank]!.resolve();
      await new Promise<void>((resolve) => {
        signal.addEventListener('abort', () => resolve());
        over.signal.addEventListener('abort', () => resolve());
        if (over.signal.aborted) resolve();
      });
      if (over.signal.reason instanceof BraidError) throw over.signal.reason;
    },
    async leave() {
      return {};
    },
    watch: () => Promise.reject(new BraidError('INTERNAL', 'nobody watches')),
    async *shards(request) {
      asked.push(request);
      const { split, replica, firstStep, run, generation } = request;
      const end = split === 'SPLIT_TRAIN' ? STEPS : Math.ceil(TEST_SAMPLES / 4);
      for (let step = firstStep; step < end; step++) {
        yield* parts({ run, generation, step }, encodeShard(distort(shard(split, step, replica))));
      }
    },
  });
  const folder = mkdtempSync(join(temporary, 'coordinator-'));
  const coordinator = await listen(server, `unix:${folder}/socket`);
  const members: Member[] = [];
  const lives: Promise<void>[] = [];
  for (let rank = 0; rank < workers; rank++) {
    const devices = new Set<FakeDevice>();
    const life = runWorker({
      coordinator,
      threads: 1,
      rejoinSeconds: 1,
      signal: options.signal ?? never,
      log: silentLog,
      openDevice: async (deviceOptions) => {
        const device = new FakeDevice(deviceOptions);
        devices.add(device);
        members[rank]!.device = device;
        return device as unknown as Device;
      },
    });
    life.catch(() => {}); // tests await it when it matters to them
    lives.push(life);
    try {
      await Promise.race([arrived[rank]!.promise, life]);
    } catch (error) {
      server.forceShutdown();
      throw error;
    }
    const joined = joins[rank]!;
    const worker = connect(workerService, joined.address, { peer: `worker ${rank}`, secret: () => SECRET });
    members.push({ joined, worker, life, device: null as unknown as FakeDevice });
  }
  const all = (each: (member: Member, rank: number) => Promise<unknown>) => Promise.all(members.map(each));
  return {
    members,
    asked,
    prepare: (changes = () => ({})) =>
      all(({ worker }, rank) => {
        const ranks = members.map((_, i) => i);
        const groups = branches
          ? [
              { segment: 'trunk', ranks, topology: 'TOPOLOGY_MESH' as const },
              { segment: 'branch', ranks: [rank], topology: 'TOPOLOGY_MESH' as const },
            ]
          : [{ segment: 'all', ranks, topology: 'TOPOLOGY_MESH' as const }];
        const request = {
          ...{ run: RUN, generation: 1, recipe: JSON.stringify(recipe), rank, replica: branches ? 0 : rank, groups },
          ...{ height: 2, width: 2, channels: 1, classes: 3, shardSizes: [2], recordBytes: 64 },
          ...{ trainIndex: '', testIndex: '' },
          ...(branches ? { branch: rank } : {}),
          exchangeAddresses: members.map(({ joined }) => joined.exchangeAddress),
          ...changes(rank),
        };
        return worker.prepare(request, call);
      }),
    write: (step, state = new Float32Array(STATE)) =>
      all(({ worker }) =>
        worker.writeState(parts(stamp(step), new Uint8Array(state.buffer), { round: 0, ...SCALE }), call),
      ),
    dismiss: (reason) => over.abort(reason ?? 'over'),
    kill: () => server.forceShutdown(),
    async [Symbol.asyncDispose]() {
      over.abort('over');
      await Promise.allSettled(lives);
      for (const { worker } of members) worker.close();
      server.forceShutdown();
      rmSync(folder, { recursive: true, force: true });
      const left = readdirSync(temporary).filter((name) => name.startsWith('braid-worker-'));
      if (workers > 0 && left.length > 0) throw new Error(`left behind: ${left}`);
      for (const { device } of members) if (device !== null && !device.closed) throw new Error('a device is open');
    },
  };
}

/** Of f16. */
const SCALE = { lossScale: 512, goodUpdates: 7 };
const compute = (step: number) => ({ ...stamp(step), distillWeight: 0.25, shardWeight: 0.5, round: 0, lossScale: 512 });

// Each test's workers leave folders in the same place while they live: one test at a time.
const serial = test.serial;

serial('a worker offers its addresses, process and version when it joins', async (t) => {
  await using w = await world({ workers: 1 });
  const { version, pid, address, exchangeAddress, threads } = w.members[0]!.joined;
  t.deepEqual([version, pid, threads], [VERSION, process.pid, 1]);
  t.true([address, exchangeAddress].every((a) => a.startsWith(`unix:${temporary}/braid-worker-`)));
});

serial(
  'two replicas step through their shards, and end with the same state, which is the one computed by hand',
  async (t) => {
    await using w = await world({ workers: 2 });
    const [program] = (await w.prepare()) as {
      rounds: { losses: string[] }[];
      stateLength: number;
      outputLengths: number[];
    }[];
    t.deepEqual(
      [program!.rounds[0]!.losses, program!.stateLength, program!.outputLengths],
      [['ce', 'total'], STATE, []],
    );
    await w.write(0, new Float32Array(STATE).fill(10));
    let expected = 10;
    for (let step = 0; step < 5; step++) {
      const answers = await Promise.all(w.members.map(({ worker }) => worker.compute(compute(step), call)));
      answers.forEach(({ losses }, rank) => {
        t.deepEqual(losses, [8 * step + 4 * rank + 1, 0.25]); // two samples: 4 step + 2 rank, and the next one
      });
      const reduced = await Promise.all(w.members.map(({ worker }) => worker.reduce(stamp(step), call)));
      const gradient = 0.5 * (16 * step + 6);
      for (const { segmentNorms, sentBytes, receivedBytes, deviceSeconds, inputSeconds } of reduced) {
        t.is(deviceSeconds, step === 0 ? 0.5 : 1); // compute, and the update before
        t.true(inputSeconds > 0);
        t.true(Math.abs(segmentNorms[0]! - gradient * Math.sqrt(STATE)) < 1e-9);
        t.true(sentBytes >= STATE * 4 && receivedBytes === sentBytes);
      }
      await Promise.all(
        w.members.map(({ worker }) =>
          worker.commit({ ...stamp(step), learningRate: 0.125, last: true, round: 0, skip: false, ...SCALE }, call),
        ),
      );
      expected -= 0.125 * gradient;
    }
    const bytes = new Uint8Array(new Float32Array(STATE).fill(expected).buffer);
    for (const { worker } of w.members) {
      const state = await collect(worker.readState(stamp(5), call), { maxBytes: 4 * STATE, expect: stamp(5) });
      t.deepEqual(Buffer.from(state), Buffer.from(bytes));
      const { sha256 } = await worker.hashState(stamp(5), call);
      t.deepEqual(Buffer.from(sha256), createHash('sha256').update(bytes).digest());
    }
    t.deepEqual(
      w.asked.map(({ split, firstStep }) => [split, firstStep]),
      [
        ['SPLIT_TRAIN', 0],
        ['SPLIT_TRAIN', 0],
      ],
    );
  },
);

serial('a step that was not committed can begin again, with the same shard and the same result', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  await w.write(3); // a resumed run
  const { worker, device } = w.members[0]!;
  const first = await worker.compute(compute(3), call);
  t.deepEqual((await worker.compute(compute(3), call)).losses, first.losses);
  await worker.reduce(stamp(3), call);
  t.deepEqual((await worker.compute(compute(3), call)).losses, first.losses);
  t.deepEqual(device.state, new Float32Array(STATE));
  await t.throwsAsync(
    worker.commit({ ...stamp(3), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call),
    {
      code: 'PROTOCOL',
      message: /\(computed\)/,
    },
  );
  await worker.reduce(stamp(3), call);
  await worker.commit({ ...stamp(3), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call);
  t.is((await worker.compute(compute(4), call)).losses[0], 8 * 4 + 1);
});

serial('a call out of order, of another step, generation or run is refused before any work', async (t) => {
  await using w = await world({ workers: 1 });
  const { worker } = w.members[0]!;
  await t.throwsAsync(worker.compute(compute(0), call), { code: 'STALE_GENERATION', message: /Prepare comes first/ });
  await w.prepare(() => ({ generation: 2 }));
  const { device } = w.members[0]!;
  const now = { ...compute(0), generation: 2 };
  await t.throwsAsync(worker.compute(now, call), { code: 'PROTOCOL', message: /no state yet/ });
  await t.throwsAsync(w.write(0), { code: 'STALE_GENERATION', message: /generation 1, .*generation 2/ });
  const bytes = new Uint8Array(4 * STATE);
  await worker.writeState(parts(stamp(0, 2), bytes), call);
  const ran = device.ran.length;
  await t.throwsAsync(worker.compute(compute(0), call), {
    code: 'STALE_GENERATION',
    message: /generation 1, the worker is in 2/,
  });
  await t.throwsAsync(worker.compute({ ...now, generation: 3 }, call), { code: 'STALE_GENERATION' });
  await t.throwsAsync(worker.compute({ ...now, run: 'other' }, call), { code: 'VERSION_MISMATCH' });
  await t.throwsAsync(worker.compute({ ...now, step: 1 }, call), {
    code: 'PROTOCOL',
    message: /compute of step 1.*at step 0/,
  });
  await t.throwsAsync(worker.reduce(stamp(0, 2), call), { code: 'PROTOCOL', message: /\(begun\)/ });
  await t.throwsAsync(
    worker.commit({ ...stamp(0, 2), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call),
    {
      code: 'PROTOCOL',
    },
  );
  await t.throwsAsync(worker.stop({ ...stamp(0), run: 'other' }, call), { code: 'VERSION_MISMATCH' });
  await t.throwsAsync(worker.writeState(parts(stamp(0, 2), new Uint8Array(8)), call), {
    message: /state of 8 bytes, .* 32/,
  });
  await t.throwsAsync(worker.writeState(parts(stamp(0, 2), new Uint8Array(64)), call), {
    message: /64 bytes where at most 32/,
  });
  await t.throwsAsync(
    w.prepare(() => ({ generation: 2 })),
    { code: 'STALE_GENERATION' },
  );
  await t.throwsAsync(
    w.prepare(() => ({ generation: 3, run: 'other' })),
    { code: 'VERSION_MISMATCH', message: /run other.*run test-run/ },
  );
  t.is(device.ran.length, ran);
  t.is((await worker.compute(now, call)).losses[0], 1);
});

serial('Prepare with a bad recipe or groups that the program lacks is refused, and a later one works', async (t) => {
  await using w = await world({ workers: 1 });
  const bad = (generation: number, changes: Partial<PrepareRequest>) => w.prepare(() => ({ generation, ...changes }));
  const broken = JSON.stringify({ ...recipe, trunk: 'sideways' });
  await t.throwsAsync(bad(1, { recipe: broken }), { code: 'INVALID_RECIPE', message: /trunk/ });
  await t.throwsAsync(bad(2, { groups: [{ segment: 'trunk', ranks: [0], topology: 'TOPOLOGY_MESH' }] }), {
    code: 'PROTOCOL',
    message: /trunk, the program has all/,
  });
  await bad(3, {});
  t.false(w.members[0]!.device.closed);
});

serial(
  'a new generation goes on with the state of the one before, on the same device where the program is the same',
  async (t) => {
    await using w = await world({ workers: 2 });
    await w.prepare();
    await w.write(3, new Float32Array(STATE).fill(7));
    const { worker, device } = w.members[0]!;
    t.is((await worker.status({ run: RUN }, call)).step, 3);
    const held = async (changes: Partial<PrepareRequest>) =>
      ((await w.prepare(() => changes)) as PrepareResponse[])[0]!.held;
    t.deepEqual(await held({ generation: 2 }), { step: 3, round: 0, ...SCALE });
    t.is(w.members[0]!.device, device);
    t.deepEqual(await held({ generation: 3, shardSizes: [2, 4] }), { step: 3, round: 0, ...SCALE });
    t.true(device.closed);
    t.deepEqual(Array.from(w.members[0]!.device.state), Array(STATE).fill(7));
    t.is((await worker.compute({ ...compute(3), generation: 3 }, call)).losses[0], 8 * 3 + 1);
  },
);

serial('a commit that is asked for twice is done once', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  await w.write(0);
  const { worker, device } = w.members[0]!;
  await worker.compute(compute(0), call);
  await worker.reduce(stamp(0), call);
  const commit = { ...stamp(0), learningRate: 1, last: true, round: 0, skip: false, ...SCALE };
  await worker.commit(commit, call);
  const state = Array.from(device.state);
  await worker.commit(commit, call);
  t.deepEqual(Array.from(device.state), state);
  await worker.commit({ ...commit, step: 1, skip: true }, call);
  t.deepEqual(Array.from(device.state), state);
  t.is((await worker.status({ run: RUN }, call)).step, 2);
});

serial('evaluation sees every test shard, the last one padded with labels of -1, each time anew', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  await w.write(0);
  const { worker, device } = w.members[0]!;
  const bins = new Array<number>(45).fill(0);
  for (let i = 0; i < 2; i++) {
    const { scores } = await worker.evaluate(stamp(0), call);
    t.deepEqual(scores, [
      { samples: 7, top1: 2, top5: 7, lossSum: 0 + 1 + 2 + 3 + 4 + 5 + 6, bins },
      { samples: 7, top1: 0, top5: 7, lossSum: 1, bins },
    ]);
    t.deepEqual(device.feeds['labels'], Int32Array.of(1, 2, 0, -1));
    t.is((device.feeds['images'] as Uint8Array).length, 16);
  }
});

serial(
  'in split, branches answer outputs and turn cotangents into gradients; the trunk is summed, the branch kept apart',
  async (t) => {
    await using w = await world({ workers: 2, branches: true });
    const programs = (await w.prepare()) as { outputLengths: number[] }[];
    t.deepEqual(programs[0]!.outputLengths, [2, 4]);
    await w.write(0);
    const floats = async (stream: ReturnType<WorkerService['forward']>, step: number) => {
      const bytes = await collect(stream, { maxBytes: 64, expect: stamp(step) });
      return Array.from(new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4));
    };
    const forward = {
      ...stamp(0),
      split: 'SPLIT_TRAIN',
      shardWeight: 1,
      round: 0,
      microBatch: 0,
      lossScale: 512,
    } as const;
    const { worker } = w.members[0]!;
    const cotangents = (step: number, values: number[]) =>
      parts(stamp(step), new Uint8Array(Float32Array.from(values).buffer));
    await t.throwsAsync(worker.backward(cotangents(0, [1, 2]), call), {
      code: 'PROTOCOL',
      message: /backward of step 0.*\(begun\)/,
    });
    for (const member of w.members) t.deepEqual(await floats(member.worker.forward(forward, call), 0), [0, 1]);
    await t.throwsAsync(worker.backward(cotangents(1, [1, 2]), call), {
      code: 'PROTOCOL',
      message: /step 1 where step 0/,
    });
    await t.throwsAsync(worker.backward(cotangents(0, [1]), call), {
      code: 'PROTOCOL',
      message: /cotangents of 4 bytes/,
    });
    await Promise.all(w.members.map((m, rank) => m.worker.backward(cotangents(0, [rank, 2]), call)));
    const reduced = await Promise.all(w.members.map((m) => m.worker.reduce(stamp(0), call)));
    for (const { deviceSeconds } of reduced) t.is(deviceSeconds, 1); // forward and backward
    await Promise.all(
      w.members.map((m) =>
        m.worker.commit({ ...stamp(0), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call),
      ),
    );
    t.deepEqual(Array.from(w.members[0]!.device.state), [-5, -5, -5, -5, -5, -2, -2, -2]);
    t.deepEqual(Array.from(w.members[1]!.device.state), [-5, -5, -5, -5, -5, -3, -3, -3]);
    // Evaluation batches may be asked for again, or from the middle.
    const test = (batch: number) =>
      floats(worker.forward({ ...forward, split: 'SPLIT_TEST', step: batch }, call), batch);
    for (const batch of [0, 1, 1, 0, 1]) t.deepEqual(await test(batch), batch === 0 ? [0, 1, 2, 3] : [4, 5, 6, 0]);
  },
);

serial('a commit that fails leaves a worker without a state, not with half an update', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  await w.write(0);
  const { worker, device } = w.members[0]!;
  await worker.compute(compute(0), call);
  await worker.reduce(stamp(0), call);
  device.fails = 'apply';
  await t.throwsAsync(
    worker.commit({ ...stamp(0), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call),
    {
      code: 'DEVICE',
    },
  );
  await t.throwsAsync(
    worker.commit({ ...stamp(0), learningRate: 1, last: true, round: 0, skip: false, ...SCALE }, call),
    {
      message: /no state yet/,
    },
  );
  await w.write(0);
  t.is((await worker.compute(compute(0), call)).losses[0], 1);
});

for (const [promise, distort, message] of [
  ['of another size', (s: EncodedShard) => firstSample(s), /has 1 samples, not 2/],
  ['of another step', (s: EncodedShard) => ({ ...s, step: s.step + 1 }), /step 1 came, 0 was next/],
  [
    'of other images',
    (s: EncodedShard) => ({ ...s, image: { height: 1, width: 4, channels: 1 } }),
    /images of 1x4x1, not 2x2x1/,
  ],
] as const) {
  serial(`a shard ${promise} is refused`, async (t) => {
    await using w = await world({ workers: 1, distort });
    await w.prepare();
    await w.write(0);
    await t.throwsAsync(w.members[0]!.worker.compute(compute(0), call), { code: 'PROTOCOL', message });
    t.deepEqual(w.members[0]!.device.ran, ['write']);
  });
}

serial('a step after the last shard is refused', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  await w.write(STEPS);
  await t.throwsAsync(w.members[0]!.worker.compute(compute(STEPS), call), {
    code: 'PROTOCOL',
    message: /after the last one/,
  });
});

serial('a peer that leaves in the middle of a reduction is named to the coordinator', async (t) => {
  await using w = await world({ workers: 2 });
  await w.prepare();
  await w.write(0);
  await Promise.all(w.members.map(({ worker }) => worker.compute(compute(0), call)));
  const reducing = w.members[0]!.worker.reduce(stamp(0), call);
  await w.members[1]!.worker.stop(stamp(0), call);
  await t.throwsAsync(reducing, { code: 'WORKER_LOST', message: /rank 1 .*in the reduce-scatter of step 0/ });
});

serial('a reduction that the coordinator cancels ends, and its peers learn of it', async (t) => {
  await using w = await world({ workers: 2 });
  await w.prepare();
  await w.write(0);
  await Promise.all(w.members.map(({ worker }) => worker.compute(compute(0), call)));
  const controller = new AbortController();
  const { worker } = w.members[0]!;
  const reducing = worker.reduce(stamp(0), { signal: controller.signal });
  // That a second one is refused shows that the first one is under way.
  await t.throwsAsync(worker.reduce(stamp(0), call), { code: 'PROTOCOL', message: /beside another one/ });
  controller.abort(new BraidError('CANCELLED', 'too slow'));
  await t.throwsAsync(reducing, { code: 'CANCELLED', message: 'too slow' });
  await t.throwsAsync(w.members[1]!.worker.reduce(stamp(0), call), { code: 'WORKER_LOST', message: /rank 0/ });
});

serial('a worker that is told to stop answers, and ends without an error', async (t) => {
  await using w = await world({ workers: 1 });
  await w.prepare();
  t.deepEqual(await w.members[0]!.worker.stop(stamp(0), call), {});
  await t.notThrowsAsync(w.members[0]!.life);
});

serial('a worker ends without an error when its Join stream does', async (t) => {
  await using w = await world({ workers: 1 });
  w.dismiss();
  await t.notThrowsAsync(w.members[0]!.life);
});

serial('a run that fails tells its workers why', async (t) => {
  await using w = await world({ workers: 1 });
  w.dismiss(new BraidError('NON_FINITE', 'the loss is NaN'));
  await t.throwsAsync(w.members[0]!.life, { code: 'NON_FINITE', message: 'the loss is NaN' });
});

serial(
  'a worker whose coordinator dies and does not come back says so and ends, also in the middle of a call',
  async (t) => {
    await using w = await world({ workers: 2 });
    await w.prepare();
    await w.write(0);
    await w.members[0]!.worker.compute(compute(0), call);
    const reducing = t.throwsAsync(w.members[0]!.worker.reduce(stamp(0), call)); // its peer never will
    w.kill();
    for (const { life } of w.members) {
      await t.throwsAsync(life, { code: 'WORKER_LOST', message: /the coordinator at unix:.*has gone/ });
    }
    await reducing;
  },
);

serial('a worker ends at its signal, with what it was given as the reason', async (t) => {
  const controller = new AbortController();
  await using w = await world({ workers: 1, signal: controller.signal });
  await w.prepare();
  controller.abort(new BraidError('CANCELLED', 'SIGTERM'));
  await t.throwsAsync(w.members[0]!.life, { code: 'CANCELLED', message: 'SIGTERM' });
});

serial('a worker that the coordinator refuses ends with the reason', async (t) => {
  const refuse = new BraidError('VERSION_MISMATCH', 'the worker is Braid 0.0.1', { remedy: 'Install the same.' });
  const error = await t.throwsAsync(world({ workers: 1, refuse }), { code: 'VERSION_MISMATCH' });
  t.is((error as BraidError).remedy, 'Install the same.');
});

serial('over TCP a worker listens on the address it was given, and is refused one that others can reach', async (t) => {
  const options = {
    coordinator: '127.0.0.1:1',
    threads: 1,
    signal: AbortSignal.abort(new BraidError('CANCELLED', 'now')),
  };
  await t.throwsAsync(runWorker({ ...options, log: silentLog }), { code: 'CANCELLED' });
  await t.throwsAsync(runWorker({ ...options, log: silentLog, listen: '0.0.0.0:0' }), {
    code: 'SETUP',
    message: /other machines/,
  });
  const beside = { ...options, coordinator: 'unix:/x', listen: '127.0.0.1:0' };
  await t.throwsAsync(runWorker({ ...beside, log: silentLog }), { code: 'SETUP', message: /--listen/ });
  const named = { ...options, coordinator: 'unix:/x', advertise: 'worker-0.example' };
  await t.throwsAsync(runWorker({ ...named, log: silentLog }), { code: 'SETUP', message: /--advertise/ });
});

serial('a worker is reached by the host it advertises, at the ports it listens on', async (t) => {
  const offered = Promise.withResolvers<JoinRequest>();
  const server = new Server(serverOptions);
  const unused = () => Promise.reject(new BraidError('INTERNAL', 'not asked for'));
  implement(server, coordinatorService, {
    async *join(request) {
      offered.resolve(request);
      yield { run: RUN, member: 0, secret: SECRET, over: true };
    },
    leave: unused,
    watch: unused,
    async *shards() {},
  });
  const coordinator = await listen(server, '127.0.0.1:0');
  const exchangePort = await freePort();
  const advertise = 'worker-0.braid.example';
  const options = { coordinator, advertise, exchangePort, threads: 1, signal: never, log: silentLog };
  await runWorker({ ...options, listen: '127.0.0.1:0' });
  const { address, exchangeAddress } = await offered.promise;
  t.regex(address, /^worker-0\.braid\.example:[1-9]\d*$/);
  t.is(exchangeAddress, `worker-0.braid.example:${exchangePort}`);
  server.forceShutdown();
});

serial('a worker that comes when the run is done ends well, at once', async (t) => {
  await using w = await world({ workers: 1, done: true });
  await t.notThrowsAsync(w.members[0]!.life);
});

serial('nothing is left in the temporary folder', (t) => {
  mkdirSync(temporary, { recursive: true });
  t.deepEqual(
    readdirSync(temporary).filter((name) => name.startsWith('braid-worker-')),
    [],
  );
});
