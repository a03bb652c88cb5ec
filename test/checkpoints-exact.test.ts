/** With real processes and TensorFlow: kill -9 of everything, and a resumed run ends bit for bit as one that never stopped. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import {
  type Folder,
  patterns,
  readTensors,
  TrainProcess,
  temporaryFolder,
  trainProcess,
  writeRecipe,
} from './training.ts';

const STEPS_PER_EPOCH = 4; // 250 images in batches of 64, the last of 58
const STEPS = 40;

function recipeIn(folder: Folder, cluster: object): string {
  return writeRecipe(folder, {
    name: 'patterns',
    ...patterns(folder, 250, 90),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: {
      epochs: STEPS / STEPS_PER_EPOCH,
      batch: 64,
      schedule: 'cosine',
      warmUp: { epochs: 1.5 },
      ema: { decay: 0.9 },
    },
    evaluation: { batch: 32, everyEpochs: 2 },
    cluster: { threads: 1, ...cluster },
    metrics: { logEverySteps: 1 },
  });
}

const stateAt = (run: string) =>
  ['model', 'optimizer', 'ema'].map((file) =>
    readTensors(join(run, `checkpoints/step-000000${STEPS}/${file}.safetensors`)),
  );

function linesOf(run: string, kind: string): { step: number; losses: unknown; results: unknown }[] {
  const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line)).filter((line) => line.kind === kind);
}

for (const cluster of [
  { placement: 'together', replicas: 2 },
  { placement: 'split', replicas: 1 },
]) {
  test.serial(
    `${cluster.placement}: killed in mid-epoch or at an epoch's end, a run goes on as if nothing had been`,
    async (t) => {
      await using folder = temporaryFolder();
      const recipe = recipeIn(folder, cluster);
      const whole = await trainProcess([recipe, '--runs', join(folder.path, 'whole')]);
      t.is(whole.code, 0, whole.output);

      for (const [where, everySteps] of [
        ['mid-epoch', 5],
        ["an epoch's end", STEPS_PER_EPOCH],
      ] as const) {
        const argv = [recipe, '--runs', join(folder.path, where), '--set', `checkpoint.everySteps=${everySteps}`];
        const first = new TrainProcess(argv);
        await first.printed(/checkpoint at step \d+/);
        first.child.kill('SIGKILL');
        for (const pid of first.workers) process.kill(pid, 'SIGKILL');
        const { signal, run } = await first.ended();
        t.is(signal, 'SIGKILL');
        const newest = Number(
          readdirSync(join(run, 'checkpoints'))
            .filter((name) => name.startsWith('step'))
            .sort()
            .at(-1)!
            .slice(5),
        );
        t.is(newest % STEPS_PER_EPOCH === 0, where !== 'mid-epoch', `${newest}`);

        const second = await trainProcess([...argv, '--resume']);
        t.is(second.code, 0, second.output);
        t.regex(second.output, new RegExp(`from step ${newest} on`));
        t.deepEqual(stateAt(second.run), stateAt(whole.run));
        for (const kind of ['step', 'epoch']) {
          const [there, here] = [whole.run, second.run].map((each) =>
            linesOf(each, kind).map(({ step, losses, results }) => ({ step, losses, results })),
          );
          t.deepEqual(here, there);
        }
      }
    },
  );
}
