/** Real processes under one fault: a coordinator, two workers behind proxies, and somebody who starts again what has died. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { freePort } from '../../rig/free-port.ts';
import { journalSteps } from '../../rig/journal.ts';
import { FaultProxy, type Script } from '../../rig/proxy.ts';
import { Workers } from '../../rig/workers.ts';
import { type Folder, patterns, readTensors, TrainProcess, writeRecipe } from '../training.ts';
import type { Row } from './matrix.ts';

const STEPS = 8;
/** Of the worker that the fault is for. */
const VICTIM = 1;

export interface Outcome {
  /** Of the last coordinator. */
  code: number | null;
  /** Of all coordinators, one after another. */
  output: string;
  /** Whether the fault's moment came. */
  fired: boolean;
  tensors: unknown;
  /** Steps of metrics.jsonl, in order. */
  steps: number[];
}

/** @param training changes to the recipe's */
export async function play(
  folder: Folder,
  placement: Row['placement'],
  row: Pick<Row, 'what' | 'who' | 'moment' | 'step'> | null,
  training: object = {},
): Promise<Outcome> {
  const recipe = writeRecipe(folder, recipeFor(folder, placement, training));
  const address = `127.0.0.1:${await freePort()}`;
  const runs = join(folder.path, 'runs');
  let fired = false;
  let output = '';
  const begin = (resume: boolean) =>
    new TrainProcess([recipe, '--runs', runs, '--listen', address, ...(resume ? ['--resume'] : [])], {
      command: 'coordinator',
      // Files of at most 4 KiB: the journal fits, a checkpoint does not.
      ...(row?.what === 'disk full' && !resume && { before: 'ulimit -f 4' }),
    });
  let coordinator = begin(false);

  const scriptOf = (victim: boolean): Script => ({
    async at(moment, step) {
      if (row === null || !victim || fired || moment !== row.moment || step !== row.step) return 'pass';
      fired = true;
      const proxy = workers.proxies[VICTIM]!;
      switch (row.what) {
        case 'SIGKILL':
        case 'SIGSTOP':
          process.kill(row.who === 'worker' ? proxy.pid : coordinator.child.pid!, row.what);
          return 'pass';
        case 'connection cut':
          if (moment === 'reduce') proxy.cutExchange();
          else await proxy.cut();
          return 'pass';
        case 'delayed':
          await FaultProxy.delay();
          return 'pass';
        case 'garbage bytes':
          if (moment !== 'reduce') return 'garble';
          proxy.garbleExchange();
          return 'pass';
        case 'not a number':
          return 'not a number';
        default:
          return 'pass';
      }
    },
    // Frozen, and put out for it: it wakes up, late and in a generation that is over, and joins again.
    left: () => {
      if (victim && fired && row?.what === 'SIGSTOP') process.kill(workers.proxies[VICTIM]!.pid, 'SIGCONT');
    },
  });

  const workers = new Workers({ coordinator: address, script: (place) => scriptOf(place === VICTIM) });

  try {
    await coordinator.printed(/coordinator on \S+,/);
    for (const i of [0, 1]) {
      await workers.start(i);
      await coordinator.printed(new RegExp(`worker ${i} joined`)).catch(() => {}); // it may be what goes wrong
    }
    for (let restarted = false; ; restarted = true) {
      const ended = await coordinator.ended();
      output += ended.output;
      if (row?.what === 'disk full') fired = true;
      if (fired && !restarted && (ended.signal === 'SIGKILL' || ended.code === 1)) {
        coordinator = begin(true);
        await coordinator.printed(/coordinator on \S+,/);
        // A run that ends in good order dismisses its workers.
        for (const i of [0, 1]) if (workers.processes[i]!.child.exitCode === 0) await workers.start(i);
        continue;
      }
      const last = join(ended.run, 'checkpoints', `step-${String(STEPS).padStart(8, '0')}`);
      const tensors =
        ended.code === 0 && ['model', 'optimizer'].map((file) => readTensors(join(last, `${file}.safetensors`)));
      return { code: ended.code, output, fired, tensors, steps: journalSteps(ended.run).map(({ step }) => step) };
    }
  } finally {
    if (coordinator.child.exitCode === null) coordinator.child.kill('SIGKILL');
    await workers.close();
  }
}

function recipeFor(folder: Folder, placement: Row['placement'], training: object): object {
  return {
    name: 'faults',
    ...patterns(folder, 250, 90),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 2, batch: 64, milestones: [1], ...training },
    evaluation: { batch: 32 },
    cluster: {
      placement,
      replicas: placement === 'together' ? 2 : 1,
      heartbeatSeconds: 0.5,
      heartbeatMisses: 6,
      joinTimeoutSeconds: 90,
    },
    checkpoint: { everySteps: 2 },
    metrics: { logEverySteps: 1 },
  };
}

/** Braid's processes whose command line has this in it. */
export function processesOf(text: string): string[] {
  const { stdout } = spawnSync('ps', ['-eo', 'args'], { encoding: 'utf8' });
  return stdout.split('\n').filter((line) => line.includes('cli/main.ts') && line.includes(text));
}
