/** A run and its checkpoints: what is written when, what a failing disk does, and where a run goes on. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { RunEvent } from '../coordinator/events.ts';
import { Meter } from '../coordinator/meter.ts';
import { Recorder, type RecorderOptions } from '../coordinator/recorder.ts';
import { BraidError } from '../core/errors.ts';
import type { Fields, Log } from '../core/log.ts';
import { silentLog } from '../core/log.ts';
import { createMetrics } from '../core/metrics.ts';
import { batchOf } from '../core/sampler.ts';
import { flipLastBit } from './checkpoints.ts';
import { smallRecipe, startCluster, TRAIN_SAMPLES } from './fake-cluster.ts';
import { readTensors } from './training.ts';

const EVERY = { checkpoint: { everySteps: 1, keep: 10 }, metrics: { logEverySteps: 1 } };
const checkpointsIn = (folder: string) => readdirSync(join(folder, 'checkpoints')).sort();
const fileOf = (folder: string, step: number, file = 'model.safetensors') =>
  join(folder, 'checkpoints', `step-0000000${step}`, file);

function linesOf(folder: string, kind: string): { step: number; path: string; bytes: number }[] {
  const lines = readFileSync(join(folder, 'metrics.jsonl'), 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line)).filter((line) => line.kind === kind);
}

/** Everything that was said at `warn` and above. */
function listening(): { log: Log; said: string[] } {
  const said: string[] = [];
  const say = (message: string, _?: Fields) => void said.push(message);
  return { log: { ...silentLog, warn: say, error: say }, said };
}

test('the journal tells of every checkpoint once it is there, with its size', async (t) => {
  const { running, folder } = startCluster({ recipe: smallRecipe(EVERY) });
  await running;
  const lines = linesOf(folder, 'checkpoint');
  t.deepEqual(
    lines.map(({ step }) => step),
    [1, 2, 3, 4, 5, 6],
  );
  for (const { step, path, bytes } of lines) {
    const sizes = readdirSync(path).map((file) => readFileSync(join(path, file)).length);
    t.is(
      bytes,
      sizes.reduce((a, b) => a + b),
    );
    t.is(path, join(folder, 'checkpoints', `step-0000000${step}`));
  }
});

test('keepEverySteps must be steps at which there is a checkpoint', (t) => {
  t.notThrows(() => smallRecipe({ checkpoint: { everySteps: 2, keepEverySteps: 4 } }));
  for (const everySteps of [0, 2]) {
    t.throws(() => smallRecipe({ checkpoint: { everySteps, keepEverySteps: 3 } }), {
      message: /keepEverySteps: 3 is not a multiple of checkpoint\.everySteps/,
    });
  }
});

test('how long training stands still for checkpoints is counted, and how often one waits for another', async (t) => {
  const metrics = createMetrics();
  const meter = new Meter(() => 0, metrics);
  const recorder = new Recorder({ metrics, meter } as RecorderOptions);
  recorder.stoodStill(2, false);
  recorder.stoodStill(3, true);
  const text = await metrics.registry.metrics();
  t.regex(text, /^braid_checkpoint_stall_seconds_total 5$/m);
  t.regex(text, /^braid_checkpoint_waits_total 1$/m);
});

test('a checkpoint that cannot be written ends the run at the next step, with another try for that step', async (t) => {
  const { log, said } = listening();
  const onEvent = (event: RunEvent) => {
    if (event.kind === 'step' && event.progress.step === 1) block(folder);
  };
  const recipe = smallRecipe({ checkpoint: { everySteps: 2 } });
  const { running, folder, calls } = startCluster({ recipe, run: { onEvent, log } });
  const error = await t.throwsAsync(running, { instanceOf: BraidError });
  t.is(error.code, 'SETUP');
  t.regex(error.message, /^cannot write the checkpoint .*\/checkpoints\/step-00000002: /);
  t.regex(error.remedy, /Make room on the disk.*--resume/);
  t.true(said.includes(error.message), 'told when it happened');
  t.true(said.some((message) => /no checkpoint could be made of what is left: cannot write/.test(message)));
  t.false(calls.includes('0 commit 4'), 'the next checkpoint waits for this one, and is not passed');
});

test('a disk that has room again keeps what was trained since', async (t) => {
  const said: string[] = [];
  const error = (message: string) => {
    said.push(message);
    rmSync(join(folder, 'checkpoints'));
  };
  const onEvent = (event: RunEvent) => {
    if (event.kind === 'step' && event.progress.step === 1) block(folder);
  };
  const recipe = smallRecipe({ checkpoint: { everySteps: 2 } });
  const { running, folder, events } = startCluster({ recipe, run: { onEvent, log: { ...silentLog, error } } });
  await t.throwsAsync(running, { message: /step-00000002/ });
  t.is(said.length, 1);
  const done = events.filter(({ kind }) => kind === 'step').length;
  t.deepEqual(checkpointsIn(folder), [`step-0000000${done}`]);
  const again = startCluster({ recipe, run: { resume: true, runFolder: folder } });
  t.is((await again.running).steps, 6);
});

/** Where the checkpoints' folder was, there is a file. */
function block(folder: string): void {
  rmSync(join(folder, 'checkpoints'), { recursive: true });
  writeFileSync(join(folder, 'checkpoints'), '');
}

test('a damaged newest checkpoint is refused with the name of the newest whole one, which --resume takes', async (t) => {
  const first = startCluster({ recipe: smallRecipe(EVERY) });
  const whole = startCluster({ recipe: smallRecipe(EVERY) });
  await Promise.all([first.running, whole.running]);
  flipLastBit(fileOf(first.folder, 6));
  rmSync(fileOf(first.folder, 5));
  const resume = (resumed: boolean | string, log = silentLog) =>
    startCluster({ recipe: smallRecipe(EVERY), run: { resume: resumed, runFolder: first.folder, log } });
  const error = await t.throwsAsync(resume(true).running, { instanceOf: BraidError });
  t.is(error.code, 'INVALID_CHECKPOINT');
  t.regex(error.message, /step-00000006\/model\.safetensors is damaged: SHA-256/);
  t.is(error.remedy, 'Go on from the newest one before that is whole: --resume step-00000004');

  const { log, said } = listening();
  const second = resume('step-00000004', log);
  await second.running;
  t.true(said.includes('going back: the next checkpoint replaces step-00000005, step-00000006'));
  t.true(second.calls.includes('0 commit 4') && !second.calls.includes('0 commit 3'));
  t.deepEqual(readFileSync(fileOf(first.folder, 6)), readFileSync(fileOf(whole.folder, 6)));
  t.deepEqual(
    linesOf(first.folder, 'step').map(({ step }) => step),
    [0, 1, 2, 3, 4, 5],
  );
});

test('where no checkpoint is whole, or none has that name, --resume says so', async (t) => {
  const first = startCluster({ recipe: smallRecipe() });
  await first.running;
  const resume = (name: boolean | string) =>
    startCluster({ recipe: smallRecipe(), run: { resume: name, runFolder: first.folder } }).running;
  const unknown = await t.throwsAsync(resume('step-00000005'), { instanceOf: BraidError });
  t.regex(unknown.message, /checkpoints has no checkpoint step-00000005$/);
  t.is(unknown.remedy, 'It has step-00000006.');
  flipLastBit(fileOf(first.folder, 6));
  const damaged = await t.throwsAsync(resume(true), { instanceOf: BraidError });
  t.regex(damaged.remedy, /No earlier one is whole\.$/);
});

test('a run that was stopped between a checkpoint and its evaluation is evaluated first when it goes on', async (t) => {
  const recipe = smallRecipe({ training: { epochs: 3 }, checkpoint: { everySteps: 3 } });
  const hard = new AbortController();
  const onEvent = (event: RunEvent) => {
    if (event.kind === 'evaluating') void whenWritten().then(() => hard.abort(new BraidError('CANCELLED', 'now')));
  };
  const first = startCluster({
    recipe,
    run: { onEvent, hard: hard.signal },
    fault: { rank: 1, rpc: 'evaluate', step: 3, what: 'hang' },
  });
  const whenWritten = async () => {
    while (!existsSync(fileOf(first.folder, 3))) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await t.throwsAsync(first.running, { message: 'now' });
  t.deepEqual(checkpointsIn(first.folder), ['step-00000003']);

  const second = startCluster({ recipe, run: { resume: true, runFolder: first.folder } });
  await second.running;
  t.true(second.calls.indexOf('0 evaluate 3') < second.calls.indexOf('0 compute 3'));
  t.deepEqual(
    linesOf(first.folder, 'epoch').map(({ step }) => step),
    [3, 6, 9],
  );
});

test('a run that goes on with another number of workers sees the same samples in the same order', async (t) => {
  const replicas = (n: number, maxSteps: number | null) =>
    smallRecipe({ cluster: { replicas: n }, training: { maxSteps } });
  const one = startCluster({ recipe: replicas(1, null) });
  await one.running;
  const first = startCluster({ recipe: replicas(1, 2) });
  await first.running;
  const second = startCluster({ recipe: replicas(2, null), run: { resume: true, runFolder: first.folder } });
  await second.running;

  const { seed, training } = replicas(1, null);
  const sampler = { samples: TRAIN_SAMPLES, batch: training.batch, seed, shuffle: true };
  const [a, b] = second.workers.map((worker) => worker.seen.SPLIT_TRAIN!);
  for (let step = 2; step < 6; step++) {
    t.deepEqual([...a![step - 2]!, ...b![step - 2]!], [...batchOf(step, sampler).sampleIds]);
  }
  const there = readTensors(fileOf(second.folder, 6));
  for (const [name, { data }] of readTensors(fileOf(one.folder, 6))) {
    data.forEach((weight, i) => {
      const other = there.get(name)!.data[i]!;
      t.true(Math.abs(weight - other) <= 1e-5 * Math.abs(weight), `${name}: ${weight} ${other}`); // rounding
    });
  }
});

test('what else lies in the folder is no checkpoint', async (t) => {
  const { running, folder } = startCluster({ recipe: smallRecipe({ checkpoint: { keep: 1 } }) });
  await running;
  mkdirSync(join(folder, 'checkpoints', 'step-backup'));
  writeFileSync(join(folder, 'checkpoints', 'step-00000009'), 'a file');
  const again = startCluster({ recipe: smallRecipe(), run: { resume: true, runFolder: folder } });
  t.is((await again.running).steps, 6);
});
