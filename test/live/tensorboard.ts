/**
 * `npm run check:tensorboard`: a run that was killed and resumed, read by the real TensorBoard, with its quick loader and with
 * the one in Python: every figure of metrics.jsonl is there under its tag, at its step, and nothing that was undone.
 */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, rename } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { freePort } from '../../rig/free-port.ts';
import { patterns, TrainProcess, temporaryFolder, trainProcess, writeRecipe } from '../training.ts';

/** Of the TensorFlow that set-up brings. */
const TENSORBOARD = 'tensorboard==2.21.0';
const PACKAGES = new URL('../../.cache/tensorboard', import.meta.url).pathname;
const LIMIT_MS = 60_000;

type Series = Map<number, number>;

await using open = new AsyncDisposableStack();
const folder = open.use(temporaryFolder());
const runs = `${folder.path}/runs`;
const say = (text: string) => process.stdout.write(`  ✔ ${text}\n`);

// ---- the run, killed between two checkpoints, so that steps are done again
const recipe = writeRecipe(folder, {
  name: 'seen',
  ...patterns(folder, 250, 90),
  method: { name: 'ffl' },
  training: { epochs: 20, batch: 25 },
  checkpoint: { everySteps: 50 },
  metrics: { logEverySteps: 1 },
});
const first = new TrainProcess([recipe, '--runs', runs]);
await first.printed(/epoch +8\b/);
first.child.kill('SIGKILL');
await first.ended();
const { code, output, run } = await trainProcess([recipe, '--runs', runs, '--resume']);
assert.equal(code, 0, output);
const lines = readFileSync(`${run}/metrics.jsonl`, 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line));
const wanted = new Map<string, Series>();
const note = (tag: string, step: number, value: number) => {
  wanted.set(tag, (wanted.get(tag) ?? new Map()).set(step, Math.fround(value)));
};
for (const line of lines.filter(({ kind }) => kind === 'step')) {
  for (const [term, loss] of Object.entries(line.losses)) note(`loss/${term}`, line.step + 1, loss as number);
  for (const [phase, seconds] of Object.entries(line.phaseSeconds)) {
    note(`seconds/${phase}`, line.step + 1, seconds as number);
  }
  note('train/learning_rate', line.step + 1, line.learningRate);
  note('train/distill_weight', line.step + 1, line.distillWeight);
  note('train/gradient_norm', line.step + 1, line.gradientNorm);
  note('train/images_per_second', line.step + 1, line.imagesPerSecond);
}
for (const { step, results } of lines.filter(({ kind }) => kind === 'epoch')) {
  for (const { classifier, top1Accuracy, top5Accuracy, loss } of results) {
    note(`test_accuracy/${classifier}`, step, top1Accuracy);
    note(`test_top5_accuracy/${classifier}`, step, top5Accuracy);
    note(`test_loss/${classifier}`, step, loss);
  }
}
say(`a run was killed and resumed: ${wanted.size} series`);

// ---- TensorBoard
if (!existsSync(PACKAGES)) {
  const aside = `${PACKAGES}.aside-${process.pid}`;
  await mkdir(aside, { recursive: true });
  await promisify(execFile)('python3', ['-m', 'pip', 'install', '--quiet', '--target', aside, TENSORBOARD]);
  await rename(aside, PACKAGES);
}
for (const loader of ['quick', 'Python']) {
  const port = await freePort();
  const argv = ['--logdir', runs, '--port', `${port}`, `--load_fast=${loader === 'quick'}`, '--reload_interval=1'];
  argv.push('--samples_per_plugin=scalars=100000'); // all of them
  const env = { ...process.env, PYTHONPATH: PACKAGES };
  const board = spawn('python3', ['-m', 'tensorboard.main', ...argv], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let told = '';
  for (const stream of [board.stdout, board.stderr]) {
    stream.on('data', (text) => {
      told += text;
    });
  }
  open.defer(() => void board.kill());
  const ask = async <T>(path: string) =>
    (await (await fetch(`http://127.0.0.1:${port}/data/plugin/scalars/${path}`)).json()) as T;
  const name = basename(run);
  /** [time, step, value] each. */
  const pointsOf = async (tag: string) =>
    ask<[number, number, number][]>(`scalars?${new URLSearchParams({ tag, run: name })}`);
  const limit = AbortSignal.timeout(LIMIT_MS);
  const [last, { size }] = [...wanted].at(-1)!; // written after all others
  while ((await pointsOf(last).catch(() => [])).length < size) {
    if (limit.aborted) throw new Error(`TensorBoard has not read all of ${last} in ${LIMIT_MS / 1000} s\n${told}`);
    await setTimeout(200);
  }
  const tags = await ask<Record<string, object>>('tags');
  assert.deepEqual(Object.keys(tags), [name]);
  assert.deepEqual(Object.keys(tags[name]!).sort(), [...wanted.keys()].sort());
  let points = 0;
  for (const [tag, series] of wanted) {
    const read = (await pointsOf(tag)).map(([, step, value]) => [step, value]);
    assert.deepEqual(read, [...series], `${tag}, ${loader} loader`);
    points += read.length;
  }
  board.kill();
  say(`TensorBoard's ${loader} loader reads the same: ${points} points of ${wanted.size} series`);
}
