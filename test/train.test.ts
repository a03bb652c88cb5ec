/** `braid train` as users run it: real processes, real TensorFlow, from data to results, and every way of ending. */
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { TensorMap } from '../nn/variables.ts';
import {
  type Folder,
  patterns,
  readTensors,
  TrainProcess,
  temporaryFolder,
  trainProcess,
  writeRecipe,
} from './training.ts';

const TRAIN = 250; // 4 batches of 64, the last of 58
const TEST = 90;

interface Changes {
  method?: object;
  branches?: object[];
  training?: object;
  cluster?: object;
  checkpoint?: object;
  [key: string]: unknown;
}

function recipeIn(folder: Folder, { training, cluster, ...changes }: Changes = {}): string {
  return writeRecipe(folder, {
    name: 'patterns',
    ...patterns(folder, TRAIN, TEST),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 2, batch: 64, milestones: [1], ...training },
    evaluation: { batch: 32 },
    cluster: { replicas: 2, threads: 1, ...cluster },
    metrics: { logEverySteps: 1 },
    ...changes,
  });
}

const runsOf = (folder: Folder) => ['--runs', join(folder.path, 'runs')];
const checkpointOf = (run: string, step: number) => join(run, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
/** A run's own temporary files: none may be left. */
function temporaryOf(folder: Folder) {
  const temporary = join(folder.path, 'tmp');
  mkdirSync(temporary);
  return { temporary, left: () => readdirSync(temporary) };
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A zombie has ended: only its parent has not looked yet.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

async function allGone(pids: number[]): Promise<void> {
  while (pids.some(alive)) await new Promise((resolve) => setTimeout(resolve, 50));
}

test.serial(
  'a run learns, and leaves a summary, a journal, its recipe and a checkpoint, and nothing else',
  async (t) => {
    await using folder = temporaryFolder();
    const { temporary, left } = temporaryOf(folder);
    const { code, output, run } = await trainProcess(
      [recipeIn(folder, { training: { epochs: 6 } }), ...runsOf(folder)],
      { temporary },
    );
    t.is(code, 0, output);
    const summary = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
    const classifiers = summary.results.map(({ classifier }: { classifier: string }) => classifier);
    t.deepEqual(classifiers, ['branch.0', 'branch.1', 'branches', 'ensemble', 'ensemble.probabilities', 'fused']);
    t.true(summary.results.at(-1).top1Accuracy > 0.8, output); // four patterns: chance is 0.25
    t.is(summary.steps, 24);
    const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    t.is(lines.filter(({ kind }) => kind === 'step').length, 24);
    t.is(lines.filter(({ kind }) => kind === 'epoch').length, 6);
    t.true(existsSync(join(run, 'recipe.yaml')));
    t.deepEqual(readdirSync(join(run, 'checkpoints')), ['step-00000024']);
    t.regex(output, /fused classifier/);
    t.deepEqual(left(), []);
  },
);

/** Methods whose steps are several updates, or whose epochs differ. */
const updates: Record<string, Changes> = {
  'dml, alternate': { method: { name: 'dml', update: 'alternate' }, trunk: 'none' },
  'dualnet, iterative': { method: { name: 'dualnet', schedule: 'iterative', phases: { coarse: 0.4 } } },
};

for (const [name, changes] of Object.entries(updates)) {
  test.serial(`${name}: both placements train the same networks`, async (t) => {
    await using folder = temporaryFolder();
    const weights = [];
    for (const placement of ['together', 'split']) {
      const training = { epochs: 4, learningRate: 0.02 };
      const recipe = recipeIn(folder, { ...changes, training, cluster: { placement, replicas: 1 } });
      const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, placement)]);
      t.is(code, 0, output);
      weights.push(readTensors(join(checkpointOf(run, 16), 'model.safetensors')));
    }
    const [together, split] = weights as [TensorMap, TensorMap];
    t.deepEqual([...split.keys()].sort(), [...together.keys()].sort());
    for (const [key, { data }] of together) {
      const mine = split.get(key)!.data;
      const difference = Math.hypot(...data.map((x, i) => x - mine[i]!)) / (Math.hypot(...data) + 1e-3);
      t.true(difference < 1e-2, `${key} ${difference}`); // sixteen steps apart in rounding
    }
  });
}

test.serial('both placements train the same networks', async (t) => {
  await using folder = temporaryFolder();
  const results = [];
  for (const placement of ['together', 'split']) {
    const recipe = recipeIn(folder, { cluster: { placement, replicas: 1 }, training: { maxSteps: 2 } });
    const { code, output, run } = await trainProcess([recipe, '--runs', join(folder.path, placement)]);
    t.is(code, 0, output);
    results.push(readTensors(join(checkpointOf(run, 2), 'model.safetensors')));
  }
  const [together, split] = results as [ReturnType<typeof readTensors>, ReturnType<typeof readTensors>];
  t.deepEqual([...split.keys()].sort(), [...together.keys()].sort());
  for (const [name, { data }] of together) {
    const other = split.get(name)!.data;
    const difference = Math.hypot(...data.map((x, i) => x - other[i]!));
    t.true(difference <= 1e-2 * Math.hypot(...data) + 1e-4, `${name}: ${difference}`);
  }
});

test.serial('Ctrl-C finishes the step, writes a checkpoint, and leaves no process and no socket', async (t) => {
  await using folder = temporaryFolder();
  const { temporary, left } = temporaryOf(folder);
  const training = new TrainProcess([recipeIn(folder, { training: { epochs: 5000 } }), ...runsOf(folder)], {
    temporary,
  });
  await training.printed(/step \d+\/\d+/);
  training.child.kill('SIGINT');
  const { code, output, run } = await training.ended();
  t.is(code, 130, output);
  t.regex(output, /stopped after step \d+ of 20000; the checkpoint is /);
  t.is(readdirSync(join(run, 'checkpoints')).length, 1);
  await allGone(training.workers);
  t.deepEqual(left(), []);
});

test.serial('kill -9 of the parent leaves no worker and no socket', async (t) => {
  await using folder = temporaryFolder();
  const { temporary, left } = temporaryOf(folder);
  const training = new TrainProcess([recipeIn(folder, { training: { epochs: 5000 } }), ...runsOf(folder)], {
    temporary,
  });
  await training.printed(/step \d+\/\d+/);
  training.child.kill('SIGKILL');
  await training.ended();
  t.is(training.workers.length, 2);
  await allGone(training.workers);
  t.deepEqual(left(), []);
});

test.serial(
  'a killed worker is named and started again, SIGTERM ends the run as one to go on with, and nothing is left',
  async (t) => {
    await using folder = temporaryFolder();
    const { temporary, left } = temporaryOf(folder);
    const training = new TrainProcess([recipeIn(folder, { training: { epochs: 5000 } }), ...runsOf(folder)], {
      temporary,
    });
    await training.printed(/step \d+\/\d+/);
    process.kill(training.workers[1]!, 'SIGKILL');
    await training.printed(/generation 2: 2 worker/);
    training.child.kill('SIGTERM');
    const { code, output } = await training.ended();
    t.is(code, 75, output);
    t.regex(output, new RegExp(`disturbed .*worker 1 \\(.*pid ${training.workers[1]}\\)`));
    await allGone(training.workers);
    t.deepEqual(left(), []);
  },
);

test.serial('a worker that is asked to end leaves between two steps, and is followed by another', async (t) => {
  await using folder = temporaryFolder();
  const training = new TrainProcess([recipeIn(folder, { training: { epochs: 5000 } }), ...runsOf(folder)]);
  await training.printed(/step \d+\/\d+/);
  process.kill(training.workers[1]!, 'SIGTERM');
  await training.printed(/generation 2: 2 worker/);
  training.child.kill('SIGINT');
  const { code, output } = await training.ended();
  t.is(code, 130, output);
  t.notRegex(output, /disturbed/);
});

test.serial('coordinator and workers started by hand train over TCP', async (t) => {
  await using folder = temporaryFolder();
  const argv = [recipeIn(folder), ...runsOf(folder), '--listen', '127.0.0.1:0'];
  const coordinator = new TrainProcess(argv, { command: 'coordinator' });
  await coordinator.printed(/coordinator on \S+,/);
  const address = /coordinator on (\S+),/.exec(coordinator.output)![1]!;
  const workers = [0, 1].map(
    () => new TrainProcess(['--coordinator', address, '--threads', '1'], { command: 'worker' }),
  );
  const { code, output } = await coordinator.ended();
  t.is(code, 0, output);
  for (const worker of workers) t.is((await worker.ended()).code, 0, worker.output);
});

const refused: Record<string, { set?: string[]; changes?: Changes; message: RegExp }> = {
  'an unknown key': { set: ['training.epoch=3'], message: /training\.epoch: unknown key, did you mean epochs\?/ },
  'a batch that the replicas cannot share': {
    set: ['training.batch=63'],
    message: /63 is not divisible by 2 replicas/,
  },
  'a last batch smaller than the replicas': {
    set: ['training.batch=6', 'cluster.replicas=6'],
    message: /250|last batch/,
  },
  'no data': { set: ['data.path=/nowhere'], message: /\/nowhere/ },
  'labels beyond the classes': { set: ['data.classes=3'], message: /label 3/ },
  'statistics of another number of channels': {
    set: ['data.mean=[1,2,3]', 'data.std=[1,2,3]'],
    message: /channel|mean/,
  },
  'ffl with one branch': { set: ['branches.0.count=1'], message: /at least 2 branches/ },
  'a trunk shared by different networks': {
    changes: {
      branches: [
        { network: 'resnet', depth: 8, width: 4 },
        { network: 'resnet', depth: 8, width: 8 },
      ],
    },
    message: /cannot share a trunk/,
  },
  'first weights that are not there': {
    set: ['training.initialWeights=/nowhere.safetensors'],
    message: /nowhere\.safetensors/,
  },
};

for (const [what, { set = [], changes = {}, message }] of Object.entries(refused)) {
  test.serial(`${what} is refused before anything is started`, async (t) => {
    await using folder = temporaryFolder();
    const argv = [recipeIn(folder, changes), ...runsOf(folder), ...set.flatMap((s) => ['--set', s])];
    const { code, output } = await trainProcess(argv);
    t.is(code, 1, output);
    t.regex(output, message);
    t.false(existsSync(join(folder.path, 'runs')), output);
    t.notRegex(output, /joined/);
  });
}

test.serial('a checkpoint of another network is refused, naming the difference', async (t) => {
  await using folder = temporaryFolder();
  const first = await trainProcess([recipeIn(folder, { training: { maxSteps: 1 } }), ...runsOf(folder)]);
  t.is(first.code, 0, first.output);
  const { code, output } = await trainProcess([
    recipeIn(folder, { branches: [{ network: 'resnet', depth: 8, width: 8, count: 2 }] }),
    ...runsOf(folder),
    '--resume',
  ]);
  t.is(code, 1);
  t.regex(output, /width|network/);
  t.notRegex(output, /joined/);
});

test.serial('a metrics port that is taken is refused by its number', async (t) => {
  await using folder = temporaryFolder();
  const { createServer } = await import('node:http');
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as { port: number };
  const { code, output } = await trainProcess([recipeIn(folder), ...runsOf(folder), '--set', `metrics.port=${port}`]);
  server.close();
  t.is(code, 1);
  t.regex(output, new RegExp(String(port)));
  t.notRegex(output, /joined/);
});
