/** The coordinator, whole, over scripted workers and a fake device (fake-cluster.ts): what it asks of whom, keeps and refuses. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test from 'ava';
import { BraidError } from '../core/errors.ts';
import { batchOf } from '../core/sampler.ts';
import { decodeSafetensors } from '../nn/safetensors.ts';
import { connect } from '../proto/calls.ts';
import { coordinatorService } from '../proto/load.ts';
import { collect } from '../proto/parts.ts';
import { VERSION } from '../proto/version.ts';
import { fakeDataset } from '../rig/fake-dataset.ts';
import { FakeWorker, type Fault, type Rpc } from '../rig/fake-worker.ts';
import {
  type ClusterOptions,
  lastCheckpoint,
  smallRecipe,
  startCluster,
  TEST_SAMPLES,
  TRAIN_SAMPLES,
} from './fake-cluster.ts';

const together = smallRecipe();
const split = smallRecipe({ cluster: { placement: 'split' } });
const never = new AbortController().signal;

/** Files of a finished run's last checkpoint. */
function lines(folder: string): { kind: string; step: number; losses: Record<string, number> }[] {
  return readFileSync(join(folder, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

// ---------------------------------------------------------------- a run

test('together: every step computes, reduces and commits on all workers, in this order', async (t) => {
  const { running, calls } = startCluster({ recipe: together });
  await running;
  const phases = (rank: number) => calls.filter((call) => call.startsWith(`${rank} `)).map((call) => call.slice(2));
  const step = (n: number) => [`compute ${n}`, `reduce ${n}`, `commit ${n}`];
  for (const rank of [0, 1]) {
    const own = phases(rank).filter((call) => !call.startsWith('readState'));
    t.deepEqual(own, [
      'prepare 0',
      'writeState 0',
      ...[0, 1, 2].flatMap(step),
      'evaluate 3',
      ...[3, 4, 5].flatMap(step),
      'hashState 6',
      'evaluate 6',
      'stop 6',
    ]);
  }
  const order = calls.map((call) => call.slice(2));
  t.true(order.lastIndexOf('compute 4') < order.indexOf('reduce 4'), 'nobody reduces before all have computed');
  t.true(order.lastIndexOf('reduce 4') < order.indexOf('commit 4'), 'nobody commits before all have reduced');
});

test('split: forward on all, the method, backward on all, reduce, commit', async (t) => {
  const { running, calls } = startCluster({ recipe: split });
  await running;
  const own = calls.filter((call) => call.startsWith('3 ')).map((call) => call.slice(2));
  t.deepEqual(own.slice(0, 6), ['prepare 0', 'writeState 0', 'forward 0', 'backward 0', 'reduce 0', 'commit 0']);
  const order = calls.map((call) => call.slice(2));
  t.true(order.lastIndexOf('forward 4') < order.indexOf('backward 4'));
  t.true(order.lastIndexOf('reduce 4') < order.indexOf('commit 4'));
});

test("workers get exactly the sampler's samples, each replica its part of every batch", async (t) => {
  for (const recipe of [together, split]) {
    const { running, workers } = startCluster({ recipe });
    await running;
    for (let step = 0; step < 6; step++) {
      const { sampleIds } = batchOf(step, { samples: TRAIN_SAMPLES, batch: 8, seed: 1, shuffle: true });
      const [first, second] = recipe === together ? [workers[0]!, workers[1]!] : [workers[0]!, workers[2]!];
      t.deepEqual([...first.seen.SPLIT_TRAIN![step]!, ...second.seen.SPLIT_TRAIN![step]!], [...sampleIds]);
      if (recipe === split) t.deepEqual(workers[1]!.seen.SPLIT_TRAIN![step], first.seen.SPLIT_TRAIN![step]);
    }
  }
});

test('the whole test set is evaluated, every sample once', async (t) => {
  for (const recipe of [together, split]) {
    const { running, workers } = startCluster({ recipe });
    const summary = await running;
    const readers = recipe === together ? workers : [workers[0]!, workers[2]!];
    const shards = readers.flatMap(({ seen }) => seen.SPLIT_TEST!);
    t.is(shards.length, 2 * 3, 'two evaluations of three batches');
    t.deepEqual(
      [...new Set(shards.flat())].sort((a, b) => a - b),
      Array.from({ length: TEST_SAMPLES }, (_, i) => i),
    );
    t.deepEqual(
      summary.results.map(({ classifier }) => classifier),
      ['branch.0', 'branch.1', 'branches', 'ensemble', 'fused'],
    );
    const fused = summary.results.at(-1)!;
    t.like(fused, {
      samples: 11,
      top1Correct: 6,
      top5Correct: 11,
      top1Accuracy: 6 / 11,
      top1Error: 1 - 6 / 11,
      loss: 1,
    });
    t.like(summary.results[2], { samples: 22, top1Correct: 12, top1Accuracy: 12 / 22 });
  }
});

test('the loss of a batch is the mean over its samples, however it is sharded', async (t) => {
  for (const recipe of [together, split]) {
    const { running, events } = startCluster({ recipe });
    await running;
    for (const event of events) {
      if (event.kind !== 'step') continue;
      const { step, losses } = event.progress;
      const { sampleIds } = batchOf(step, { samples: TRAIN_SAMPLES, batch: 8, seed: 1, shuffle: true });
      const mean = sampleIds.reduce((sum, id) => sum + id, 0) / sampleIds.length;
      t.true(Math.abs(losses.total! - mean) < 1e-5);
    }
  }
});

test('weights do not depend on the number of replicas, up to the rounding of a sum', async (t) => {
  const weights = async (replicas: number) => {
    const { running, folder } = startCluster({ recipe: smallRecipe({ cluster: { replicas } }) });
    await running;
    return decodeSafetensors(lastCheckpoint(folder).model, 'model').tensors;
  };
  const [one, two] = await Promise.all([weights(1), weights(2)]);
  t.deepEqual([...one.keys()], ['trunk.0.bn.bias', 'branch.0.fc.bias', 'branch.1.fc.bias', 'fusion.fc.bias']);
  for (const [name, { data }] of one) {
    data.forEach((value, i) => {
      t.true(Math.abs(value - two.get(name)!.data[i]!) < 1e-5, name);
    });
  }
});

test('a run leaves recipe, metrics, checkpoint and summary, and says so in order', async (t) => {
  const { running, folder, events } = startCluster({ recipe: together });
  const summary = await running;
  t.deepEqual(JSON.parse(readFileSync(join(folder, 'summary.json'), 'utf8')), JSON.parse(JSON.stringify(summary)));
  t.like(summary, { run: 'small-run', braid: VERSION, workers: 2, steps: 6, epochs: 2, parameters: 8, lossSteps: 6 });
  t.regex(readFileSync(join(folder, 'recipe.yaml'), 'utf8'), /^name: small$/m);
  t.true(existsSync(summary.paths.checkpoint));
  t.deepEqual(
    lines(folder).map(({ kind, step }) => `${kind} ${step}`),
    ['step 1', 'epoch 3', 'step 3', 'step 5', 'checkpoint 6', 'epoch 6'],
  );
  const kinds = events.map(({ kind }) => kind);
  t.deepEqual(kinds.slice(0, 5), ['listening', 'joined', 'joined', 'started', 'step']);
  t.is(kinds.at(-1), 'done');
  const rates = events.flatMap((event) => (event.kind === 'step' ? [event.progress.learningRate] : []));
  t.deepEqual(rates, [0.125, 0.125, 0.125, 0.0125, 0.0125, 0.0125]);
});

test('a run that listens on a unix socket leaves none behind, nor anything half-written', async (t) => {
  const socket = join(mkdtempSync(join(tmpdir(), 'braid-test-')), 'coordinator');
  const { running, folder } = startCluster({ recipe: together, run: { listen: `unix:${socket}` } });
  await running;
  t.false(existsSync(socket));
  rmSync(dirname(socket), { recursive: true });
  const files = readdirSync(folder).sort();
  t.regex(files.splice(1, 1)[0]!, /^events\.out\.tfevents\.\d+\./);
  t.deepEqual(files, ['checkpoints', 'metrics.jsonl', 'recipe.yaml', 'run.json', 'summary.json']);
  t.deepEqual(readdirSync(join(folder, 'checkpoints')), ['step-00000006']);
});

test('a method whose devices cannot be opened ends the run with its error', async (t) => {
  const openShares = () => Promise.reject(new BraidError('DEVICE', 'no such GPU'));
  const { running, workers } = startCluster({ recipe: split, world: { openShares } });
  await t.throwsAsync(running, { instanceOf: BraidError, message: 'no such GPU' });
  await workers[3]!.gone;
  t.is(workers[3]!.why?.message, 'no such GPU');
});

test('maxSteps ends a run in mid-epoch, evaluated', async (t) => {
  const { running, calls } = startCluster({ recipe: smallRecipe({ training: { maxSteps: 2 } }) });
  t.is((await running).steps, 2);
  t.true(calls.includes('1 evaluate 2'));
  t.false(calls.includes('1 compute 2'));
});

// ---------------------------------------------------------------- going on

for (const [what, recipe] of [
  ['together', { cluster: { placement: 'together' } }],
  ['split', { cluster: { placement: 'split' } }],
] as const) {
  for (const at of [2, 3]) {
    test(`${what}: a run that goes on after ${at} steps ends bit for bit as one that never stopped`, async (t) => {
      const whole = startCluster({ recipe: smallRecipe(recipe) });
      await whole.running;
      const first = startCluster({ recipe: smallRecipe({ ...recipe, training: { maxSteps: at } }) });
      await first.running;
      const second = startCluster({
        recipe: smallRecipe(recipe),
        run: { resume: true, runFolder: first.folder },
      });
      const summary = await second.running;
      t.is(summary.steps, 6);
      t.deepEqual(lastCheckpoint(second.folder), lastCheckpoint(whole.folder));
      t.true(second.calls.includes(`0 commit ${at}`));
      t.false(second.calls.includes(`0 commit ${at - 1}`));
    });
  }
}

test('the journal of a run that goes on has every step once', async (t) => {
  const every = { metrics: { logEverySteps: 1 }, checkpoint: { everySteps: 2 } };
  const hard = new AbortController();
  const fault: Fault = { rank: 1, rpc: 'reduce', step: 3, what: 'hang' };
  const first = startCluster({ recipe: smallRecipe(every), fault, run: { hard: hard.signal } });
  const hung = setInterval(
    () => first.calls.includes('1 reduce 3') && hard.abort(new BraidError('CANCELLED', 'now')),
    5,
  );
  await t.throwsAsync(first.running);
  clearInterval(hung);
  t.true(
    lines(first.folder).some(({ kind, step }) => kind === 'step' && step === 2),
    'a step beyond the checkpoint',
  );
  const second = startCluster({ recipe: smallRecipe(every), run: { resume: true, runFolder: first.folder } });
  await second.running;
  const steps = lines(second.folder).filter(({ kind }) => kind === 'step');
  t.deepEqual(
    steps.map(({ step }) => step),
    [0, 1, 2, 3, 4, 5],
  );
});

test('a run asked to end finishes its step, keeps a checkpoint, dismisses its workers, and is CANCELLED', async (t) => {
  const controller = new AbortController();
  const options: ClusterOptions = {
    recipe: together,
    run: {
      signal: controller.signal,
      onEvent: (event) => {
        if (event.kind === 'step' && event.progress.step === 1) controller.abort();
      },
    },
  };
  const { running, folder, calls } = startCluster(options);
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'CANCELLED');
  t.regex(error.message, /stopped after step 2 of 6/);
  t.is(lastCheckpoint(folder).name, 'step-00000002');
  t.true(calls.includes('0 stop 6') && calls.includes('1 stop 6'));
  t.false(calls.includes('0 compute 2'));
});

test('a run asked to end during evaluation keeps what was trained', async (t) => {
  const controller = new AbortController();
  const onEvent: NonNullable<ClusterOptions['run']>['onEvent'] = (event) => {
    if (event.kind === 'evaluating') controller.abort();
  };
  const { running, folder } = startCluster({ recipe: together, run: { signal: controller.signal, onEvent: onEvent! } });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'CANCELLED');
  t.is(lastCheckpoint(folder).name, 'step-00000003');
});

test('a run ended at once stops waiting for a worker that hangs', async (t) => {
  const hard = new AbortController();
  const fault: Fault = { rank: 0, rpc: 'compute', step: 1, what: 'hang' };
  const { running, calls, folder } = startCluster({ recipe: together, fault, run: { hard: hard.signal } });
  const hung = setInterval(() => calls.includes('0 compute 1') && hard.abort(new BraidError('CANCELLED', 'now')), 5);
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  clearInterval(hung);
  t.is(error.message, 'now');
  t.deepEqual(readdirSync(join(folder, 'checkpoints')), []);
});

// ---------------------------------------------------------------- what goes wrong with workers

/** Quick to notice, and to give up. */
const alert = { heartbeatSeconds: 0.3, heartbeatMisses: 4, joinTimeoutSeconds: 20, stepTimeoutSeconds: 20 };
const placements = {
  together: smallRecipe({ cluster: alert }),
  split: smallRecipe({ cluster: { ...alert, placement: 'split' } }),
};
/** By call, the step at which it goes wrong; half a step later it has been done, and nobody has heard. */
const moments: Record<keyof typeof placements, [Rpc, number][]> = {
  together: [
    ['prepare', 0],
    ['writeState', 0],
    ['compute', 2],
    ['reduce', 2],
    ['commit', 2],
    ['commit', 2.5],
    ['evaluate', 3],
    ['hashState', 6],
  ],
  split: [
    ['forward', 2],
    ['backward', 2],
    ['reduce', 4],
    ['commit', 2],
    ['commit', 2.5],
  ],
};

for (const placement of ['together', 'split'] as const) {
  for (const [rpc, step] of moments[placement]) {
    for (const what of ['die', 'freeze'] as const) {
      const how = { die: 'dies', freeze: 'freezes' }[what];
      const when = Number.isInteger(step) ? `in ${rpc}` : `after its ${rpc}`;
      test.serial(
        `${placement}: a worker that ${how} ${when} is named and replaced, and the run ends bit for bit as ever`,
        async (t) => {
          const recipe = placements[placement];
          const whole = startCluster({ recipe });
          await whole.running;
          const fault = { rank: 1, rpc, step, what };
          const { running, events, folder, calls } = startCluster({ recipe, fault, respawn: true });
          t.is((await running).steps, 6);
          t.deepEqual(lastCheckpoint(folder), lastCheckpoint(whole.folder));
          const disturbed = events.filter(({ kind }) => kind === 'disturbed') as { code: string; message: string }[];
          t.is(disturbed.length, 1, JSON.stringify(disturbed));
          t.is(disturbed[0]!.code, 'WORKER_LOST');
          t.regex(disturbed[0]!.message, /^worker 1 \(test, pid 7\) .* at step /);
          t.true(calls.some((call) => call.startsWith(`${recipe.cluster.placement === 'split' ? 4 : 2} writeState`)));
          const trained = lines(folder).filter(({ kind }) => kind === 'step');
          t.deepEqual(
            trained.map(({ step: at }) => at),
            [1, 3, 5],
          );
        },
      );
    }
  }
}

test.serial('with fewer replicas allowed, a run goes on with those who are left', async (t) => {
  const recipe = smallRecipe({ cluster: { ...alert, minReplicas: 1 } });
  const whole = startCluster({ recipe: smallRecipe() });
  await whole.running;
  const { running, workers, folder } = startCluster({
    recipe,
    fault: { rank: 0, rpc: 'reduce', step: 2, what: 'die' },
  });
  t.is((await running).workers, 2);
  const weights = (of: string) => decodeSafetensors(lastCheckpoint(of).model, of).tensors;
  const expected = weights(whole.folder);
  for (const [name, { data }] of weights(folder)) {
    const wanted = expected.get(name)!.data;
    data.forEach((x, i) => {
      t.true(Math.abs(x - wanted[i]!) < 1e-5);
    });
  }
  // From step 2 on the one that is left sees every sample of the batch.
  t.deepEqual(
    workers[1]!.seen.SPLIT_TRAIN!.slice(-4).map((ids) => ids.length),
    [6, 8, 8, 6],
  );
});

test.serial('a worker that comes while others train is filled by them, and joins at a step boundary', async (t) => {
  const recipe = smallRecipe({ training: { epochs: 6 }, cluster: { ...alert, minReplicas: 1, maxReplicas: 2 } });
  const { running, events, workers } = startCluster({
    recipe,
    fault: { rank: 0, rpc: 'reduce', step: 2, what: 'die' },
    respawn: true,
  });
  await running;
  const regrouped = events.flatMap((event) => (event.kind === 'regrouped' ? [event.workers] : []));
  t.is(regrouped.at(-1), 2);
  t.true(workers[2]!.seen.SPLIT_TRAIN!.length > 0);
});

test.serial(
  'without enough workers the run ends, naming who went, with a checkpoint of what the others hold',
  async (t) => {
    const { running, folder } = startCluster({
      recipe: smallRecipe({ cluster: { ...alert, joinTimeoutSeconds: 1 } }),
      fault: { rank: 1, rpc: 'reduce', step: 2, what: 'die' },
    });
    const error = await t.throwsAsync(running, { instanceOf: BraidError });
    t.is(error.code, 'WORKER_LOST');
    t.regex(
      error.message,
      /1 of 2 workers are here after 1 s: worker 0 .*; worker 1 \(test, pid 7\) .* in reduce at step 2/,
    );
    t.is(lastCheckpoint(folder).name, 'step-00000002');
  },
);

test.serial('a run asked to end while it waits for a worker keeps what the others hold', async (t) => {
  const asked = new AbortController();
  const { running, folder } = startCluster({
    recipe: smallRecipe({ cluster: alert }),
    fault: { rank: 1, rpc: 'reduce', step: 2, what: 'die' },
    run: {
      signal: asked.signal,
      onEvent: ({ kind }) => kind === 'disturbed' && asked.abort(new BraidError('CANCELLED', 'enough')),
    },
  });
  await t.throwsAsync(running, { code: 'CANCELLED', message: 'enough' });
  t.is(lastCheckpoint(folder).name, 'step-00000002');
});

test.serial('a step that fails again and again ends the run', async (t) => {
  const what = new BraidError('PROTOCOL', 'garbage');
  const recipe = smallRecipe({ cluster: { ...alert, attempts: 3 } });
  const { running, calls } = startCluster({ recipe, fault: { rank: 1, rpc: 'reduce', step: 2, what } });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.regex(error.message, /worker 1 \(test, pid 7\) failed in reduce at step 2: garbage/);
  t.is(calls.filter((call) => call === '1 reduce 2').length, 3);
});

test.serial('a call that takes longer than stepTimeoutSeconds costs the worker its place, by name', async (t) => {
  const recipe = smallRecipe({ cluster: { ...alert, stepTimeoutSeconds: 1.5 } });
  const fault: Fault = { rank: 1, rpc: 'compute', step: 1, what: 'hang' };
  const { running, events } = startCluster({ recipe, fault, respawn: true });
  await running;
  const [disturbed] = events.filter(({ kind }) => kind === 'disturbed') as { message: string }[];
  t.regex(disturbed!.message, /^worker 1 \(test, pid 7\) gave no answer in time, in compute at step 1/);
});

test.serial('a step that is not finite can be left out, and counts', async (t) => {
  const recipe = smallRecipe({ training: { nonFinite: 'skip' } });
  const { running, events, calls } = startCluster({
    recipe,
    fault: { rank: 0, rpc: 'compute', step: 2, what: 'not a number' },
  });
  t.is((await running).steps, 6);
  t.true(events.some((event) => event.kind === 'skipped' && event.step === 2));
  t.false(calls.includes('0 reduce 2'));
});

for (const rpc of ['compute', 'reduce'] as const) {
  test.serial(`a number that is not finite in ${rpc} stops the run before any weight changes`, async (t) => {
    const { running, calls } = startCluster({
      recipe: together,
      fault: { rank: 0, rpc, step: 2, what: 'not a number' },
    });
    const error = await t.throwsAsync(running, { instanceOf: BraidError });
    t.is(error.code, 'NON_FINITE');
    t.regex(error.message, rpc === 'compute' ? /step 2 \(epoch 0\): total is NaN/ : /gradient norm is NaN/);
    t.false(calls.some((call) => call.endsWith('commit 2')));
  });
}

test.serial('replicas that differ at a checkpoint stop the run, and none is written', async (t) => {
  const { running, folder } = startCluster({
    recipe: smallRecipe({ checkpoint: { everySteps: 2 } }),
    fault: { rank: 1, rpc: 'hashState', step: 2, what: 'diverge' },
  });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'REPLICAS_DIVERGED');
  t.regex(error.message, /after 2 steps the state differs between workers that must be identical: 0 \| 1/);
  t.deepEqual(readdirSync(join(folder, 'checkpoints')), []);
});

test.serial('split: branches whose shared trunk differs stop the run', async (t) => {
  const one = smallRecipe({ cluster: { placement: 'split', replicas: 1 } });
  const { running } = startCluster({ recipe: one, fault: { rank: 1, rpc: 'hashState', step: 6, what: 'diverge' } });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'REPLICAS_DIVERGED');
  t.regex(error.message, /the trunk differs/);
});

test.serial('a worker whose device fails is replaced; what it said is told', async (t) => {
  const what = new BraidError('DEVICE', 'out of memory', { remedy: 'Lower training.batch.' });
  const fault: Fault = { rank: 1, rpc: 'compute', step: 1, what };
  const { running, events } = startCluster({ recipe: placements.together, fault, respawn: true });
  await running;
  const [disturbed] = events.filter(({ kind }) => kind === 'disturbed') as { code: string; message: string }[];
  t.is(disturbed!.code, 'DEVICE');
  t.is(disturbed!.message, 'worker 1 (test, pid 7) failed in compute at step 1: out of memory');
});

test.serial('a worker that fails because another died is not the one that is blamed', async (t) => {
  const lost = new BraidError('WORKER_LOST', 'rank 1 closed its connection');
  const fault: Fault = { rank: 0, rpc: 'reduce', step: 2, what: lost };
  const cluster = startCluster({ recipe: placements.together, fault, respawn: true });
  const watch = setInterval(() => cluster.calls.includes('1 reduce 2') && cluster.workers[1]!.die(), 1);
  await t.throwsAsync(cluster.running); // the script says so of every attempt
  clearInterval(watch);
  const [disturbed] = cluster.events.filter(({ kind }) => kind === 'disturbed') as { message: string }[];
  t.regex(disturbed!.message, /^worker 1 .* reduce at step 2/);
});

// ---------------------------------------------------------------- joining

test('a worker of another version is refused, and one too many', async (t) => {
  const listening = Promise.withResolvers<string>();
  const over = new AbortController();
  const cluster = startCluster({
    recipe: together,
    fault: { rank: 0, rpc: 'compute', step: 1, what: 'hang' },
    run: {
      onEvent: (event) => event.kind === 'listening' && listening.resolve(event.address),
      hard: over.signal,
    },
  });
  const address = await listening.promise;
  const stranger = new FakeWorker(together, undefined as never, [], undefined);
  const other = await t.throwsAsync(stranger.join(address, { version: '0.0.1' }), { instanceOf: BraidError });
  t.is(other.code, 'VERSION_MISMATCH');
  t.regex(other.message, /is Braid 0.0.1, the coordinator is/);
  stranger.die();
  await new Promise<void>((resolve) => {
    const started = setInterval(() => {
      if (!cluster.events.some(({ kind }) => kind === 'started')) return;
      clearInterval(started);
      resolve();
    }, 5);
  });
  const extra = new FakeWorker(together, undefined as never, [], undefined);
  const full = await t.throwsAsync(extra.join(address), { instanceOf: BraidError });
  t.regex(full.message, /has all of its 2 workers/);
  extra.die();
  over.abort(new BraidError('CANCELLED', 'seen enough'));
  await t.throwsAsync(cluster.running);
});

test.serial('workers that do not come are named when the time is over', async (t) => {
  const { running } = startCluster({
    recipe: smallRecipe({ cluster: { joinTimeoutSeconds: 1.5, replicas: 4 } }),
    workers: 2,
  });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'SETUP');
  t.regex(error.message, /2 of 4 workers are here after 1.5 s: worker 0 \(test, pid 7\), worker 1 .*; 2 missing/);
});

test('a message of another generation or run gets no shard', async (t) => {
  const listening = Promise.withResolvers<string>();
  const cluster = startCluster({
    recipe: together,
    run: { onEvent: (event) => event.kind === 'listening' && listening.resolve(event.address) },
  });
  const address = await listening.promise;
  while ((cluster.workers[0]?.secret ?? null) === null) await new Promise((resolve) => setTimeout(resolve, 5));
  const { secret } = cluster.workers[0]!;
  const coordinator = connect(coordinatorService, address, { peer: 'the coordinator', secret: () => secret });
  const request = { run: 'small-run', generation: 0, split: 'SPLIT_TRAIN', replica: 0, firstStep: 0 } as const;
  const ask = (changes: object) =>
    collect(coordinator.shards({ ...request, ...changes }, { signal: never }), { maxBytes: 1e6 });
  const stale = await t.throwsAsync(ask({}), { instanceOf: BraidError });
  t.is(stale.code, 'STALE_GENERATION');
  const stranger = await t.throwsAsync(ask({ run: 'other', generation: 1 }), { instanceOf: BraidError });
  t.is(stranger.code, 'VERSION_MISMATCH');
  coordinator.close();
  await cluster.running;
});

// ---------------------------------------------------------------- refused before anything is started

test('a folder that holds another run is refused', async (t) => {
  const first = startCluster({ recipe: smallRecipe({ training: { maxSteps: 1 } }) });
  await first.running;
  const again = startCluster({ recipe: together, run: { runFolder: first.folder } });
  const error = await t.throwsAsync(again.running, { instanceOf: BraidError });
  t.is(error.code, 'SETUP');
  t.regex(error.message, /holds another run/);
  t.deepEqual(again.events, []);
});

test('a checkpoint of another network or order of samples is refused, naming each difference', async (t) => {
  const first = startCluster({ recipe: smallRecipe({ training: { maxSteps: 1 } }) });
  await first.running;
  for (const [changes, message] of [
    [
      { branches: [{ network: 'resnet', count: 2, depth: 14 }] },
      /another network: branches.0.depth is 8 there and 14 here; branches.1.depth/,
    ],
    [{ method: { name: 'vanilla' } }, /method.name is "ffl" there and "vanilla" here/],
    [{ seed: 5 }, /another order of samples: seed is 1 there and 5 here/],
    [{ training: { batch: 4 } }, /training.batch is 8 there and 4 here/],
  ] as const) {
    const again = startCluster({ recipe: smallRecipe(changes), run: { resume: true, runFolder: first.folder } });
    const error = await t.throwsAsync(again.running, { instanceOf: BraidError });
    t.is(error.code, 'INVALID_CHECKPOINT');
    t.regex(error.message, message);
    t.deepEqual(again.events, []);
  }
});

test('resuming from a checkpoint that is not there is refused', async (t) => {
  const { running } = startCluster({ recipe: together, run: { resume: 'step-00000002' } });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'INVALID_CHECKPOINT');
  t.regex(error.message, /has no checkpoint/);
});

test('splits of different images or classes, and a last batch too small, are refused', async (t) => {
  const train = fakeDataset('train', 9);
  for (const [test, message] of [
    [
      { ...train, name: 'test', image: { height: 3, width: 2, channels: 1 } },
      /train are 2x2x1, those of test are 3x2x1/,
    ],
    [{ ...train, name: 'test', classes: 4 }, /train has 3 classes, test has 4/],
    [{ ...train, name: 'test', length: 0 }, /test has no samples/],
    [train, /leave a last batch of 1, fewer than the 2 replicas/],
  ] as const) {
    const { running, events } = startCluster({
      recipe: together,
      world: { openDataset: async (_, split) => (split === 'train' ? train : test) },
    });
    await t.throwsAsync(running, { instanceOf: BraidError, message });
    t.deepEqual(events, []);
  }
});

test('a taken metrics port is refused, naming it', async (t) => {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  const { running } = startCluster({ recipe: smallRecipe({ metrics: { port } }) });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'SETUP');
  t.true(error.message.includes(`:${port} for metrics`));
  server.close();
});

// ---------------------------------------------------------------- metrics

test('/metrics tells Prometheus of the run while it runs, /healthz that it lives', async (t) => {
  let address = '';
  const scraped: Promise<string>[] = [];
  const { running } = startCluster({
    recipe: together,
    run: {
      onEvent: (event) => {
        if (event.kind === 'listening') address = event.metrics;
        if (event.kind === 'epoch') {
          for (const path of ['metrics', 'healthz', 'other']) {
            scraped.push(fetch(`http://${address}/${path}`).then((response) => response.text()));
          }
        }
      },
    },
  });
  await running;
  const [metrics, health, other] = await Promise.all(scraped);
  for (const line of [
    'braid_members{state="training"} 2',
    'braid_steps 6',
    'braid_accuracy_ratio{classifier="fused",top="1"} 0.5454545454545454',
    'braid_generation 1',
    'braid_device_seconds_total 3', // half a second for each of two workers and three steps
    'braid_input_wait_seconds_total 1.5',
  ]) {
    t.true(metrics!.includes(line), line);
  }
  t.regex(metrics!, /braid_phase_seconds_count\{phase="compute"\} \d/);
  t.regex(metrics!, /braid_bytes_total\{link="gradients",direction="sent"\} \d/);
  t.regex(metrics!, /braid_loss\{term="total"\} \d/);
  t.is(health, 'ok\n');
  t.is(other, 'here are /metrics, /healthz and /readyz\n');
});
