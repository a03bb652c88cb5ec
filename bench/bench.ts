/**
 * `npm run bench -- [step|imagenet|cluster|allreduce|input] [--json] [--rounds N] [--steps N] [--data folder]`: Braid against PyTorch
 * on this machine. `... soak [--seconds N] [--seed S]`, `... scale [--steps N]` and
 * `... plan`: what has no peer. docs/bench.md has them all.
 *
 * Contenders take turns in short rounds and never run at the same time; figures are medians, ratios are braid / peer.
 * Progress goes to stderr, results to stdout: with --json a line each.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { BraidError, nearest } from '../core/errors.ts';
import { benchAllreduce } from './allreduce.ts';
import { benchSplit, benchTogether, prepareCluster } from './cluster.ts';
import { benchImageNetTogether } from './imagenet.ts';
import { benchInput, jpegsIn } from './input.ts';
import { peerPython } from './peers/venv.ts';
import { benchPlan } from './plan.ts';
import { asJson, asText, type Comparison, type Measurement, measurementAsJson, tableOf } from './report.ts';
import { benchScale } from './scale.ts';
import { benchSoak } from './soak.ts';
import { benchStep, type Rounds } from './step.ts';

const BESIDE_PEERS = ['step', 'imagenet', 'cluster', 'allreduce', 'input'] as const;
/** Of Braid alone: only when they are named. */
const ALONE = ['soak', 'scale', 'plan'] as const;
const BENCHES = [...BESIDE_PEERS, ...ALONE] as const;
type Bench = (typeof BENCHES)[number];

/** Enough for a steady median; docs/bench.md says how long they take. */
const DEFAULTS: Record<(typeof BESIDE_PEERS)[number], Rounds> = {
  step: { rounds: 5, steps: 10 },
  imagenet: { rounds: 3, steps: 2 },
  cluster: { rounds: 3, steps: 20 },
  allreduce: { rounds: 9, steps: 4 },
  input: { rounds: 7, steps: 8 },
};
const SOAK = { seconds: 900, seed: 1 };
const SCALE_STEPS = 30;
const PLAN: Rounds = { rounds: 3, steps: 10 };

/**
 * @param orderly ends a soak before its time
 * @returns the exit code: 0 when everything was measured, whether or not the bars are met; 1 when something went wrong that
 *   never may
 */
export async function bench(argv: string[], { orderly }: { orderly: AbortSignal }): Promise<number> {
  const { benches, json, given, soak, data } = parse(argv);
  const say = (line: string) => void process.stderr.write(`${line}\n`);
  const show = (comparison: Comparison) => {
    process.stdout.write(`${json ? asJson(comparison) : asText(comparison)}\n`);
  };
  const measured: Measurement[] = [];
  const showAll = (measurements: Measurement[]) => {
    measured.push(...measurements);
    process.stdout.write(`${json ? measurements.map(measurementAsJson).join('\n') : tableOf(measurements)}\n`);
  };
  if (benches.includes('soak')) showAll([await benchSoak({ ...SOAK, ...soak, signal: orderly, say })]);
  if (benches.includes('scale')) showAll(await benchScale({ steps: given.steps ?? SCALE_STEPS, say }));
  if (benches.includes('plan')) showAll(await benchPlan({ ...PLAN, ...given, say }));
  if (benches.some((name) => BESIDE_PEERS.includes(name as (typeof BESIDE_PEERS)[number]))) {
    await besidePeers({ benches, given, data, say, show });
  }
  return measured.every(({ wrong }) => wrong.length === 0) ? 0 : 1;
}

interface Peers extends Pick<Asked, 'benches' | 'given' | 'data'> {
  say(line: string): void;
  show(comparison: Comparison): void;
}

async function besidePeers({ benches, given, data, say, show }: Peers): Promise<void> {
  const python = await peerPython(say);
  if (benches.includes('step')) {
    for (const precision of ['f32', 'bf16'] as const) {
      const work = { network: 'cifar', precision, threads: 2 } as const;
      const [time] = await benchStep({ python, bench: 'step', work, say, ...DEFAULTS.step, ...given });
      show(time!);
    }
  }
  if (benches.includes('imagenet')) {
    const rounds = { ...DEFAULTS.imagenet, ...given };
    let peerMebibytes = 0;
    for (const precision of ['f32', 'bf16'] as const) {
      const work = { network: 'imagenet', precision, threads: 2 } as const;
      const comparisons = await benchStep({ python, bench: 'imagenet', work, say, ...rounds });
      comparisons.forEach(show);
      if (precision === 'f32') peerMebibytes = comparisons[1]!.peer!; // the second: its memory
    }
    if (data === undefined) say('imagenet: two workers are left out: name a folder of JPEG files with --data');
    else {
      await inFolder(async (folder) =>
        (await benchImageNetTogether({ data, folder, peerMebibytes, say, ...rounds })).forEach(show),
      );
    }
  }
  if (benches.includes('cluster')) {
    await inFolder(async (folder) => {
      prepareCluster(folder);
      const cluster = { python, folder, say, ...DEFAULTS.cluster, ...given };
      (await benchTogether(cluster)).forEach(show);
      (await benchSplit(cluster)).forEach(show);
    });
  }
  if (benches.includes('allreduce')) {
    (await benchAllreduce({ python, say, ...DEFAULTS.allreduce, ...given })).forEach(show);
  }
  if (benches.includes('input') && data !== undefined) {
    (await benchInput({ python, data, say, ...DEFAULTS.input, ...given })).forEach(show);
  } else if (benches.includes('input')) {
    say('input is left out: name a folder of JPEG files with --data');
  }
}

async function inFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-bench-'));
  try {
    await use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

interface Asked {
  benches: readonly Bench[];
  json: boolean;
  given: Partial<Rounds>;
  soak: Partial<typeof SOAK>;
  data: string | undefined;
}

function parse(argv: string[]): Asked {
  const { values, positionals } = parsed(argv);
  for (const name of positionals) {
    if (BENCHES.includes(name as Bench)) continue;
    const known = nearest(name, BENCHES);
    throw wrongFlag(`${name} is no bench${known === undefined ? '' : `, did you mean ${known}?`}`);
  }
  const number = (flag: 'rounds' | 'steps' | 'seconds' | 'seed') => {
    const text = values[flag];
    if (text === undefined) return {};
    if (!/^[1-9]\d*$/.test(text)) throw wrongFlag(`--${flag} ${text}: expected a whole number from 1`);
    return { [flag]: Number(text) };
  };
  const given: Partial<Rounds> = { ...number('rounds'), ...number('steps') };
  const soak: Partial<typeof SOAK> = { ...number('seconds'), ...number('seed') };
  const { json, data } = values;
  const benches = positionals.length > 0 ? (positionals as Bench[]) : BESIDE_PEERS;
  if (data === undefined && positionals.includes('input')) {
    throw wrongFlag('input needs a folder of JPEG files: name one with --data');
  }
  if (data !== undefined && jpegsIn(data).length === 0)
    throw wrongFlag(`--data ${data}: expected a folder with JPEG files`);
  return { benches, json, given, soak, data };
}

function parsed(argv: string[]) {
  try {
    return parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        json: { type: 'boolean', default: false },
        rounds: { type: 'string' },
        steps: { type: 'string' },
        data: { type: 'string' },
        seconds: { type: 'string' },
        seed: { type: 'string' },
      },
    });
  } catch (error) {
    throw wrongFlag((error as Error).message);
  }
}

function wrongFlag(message: string): BraidError {
  return new BraidError('INVALID_RECIPE', `bench: ${message}`, {
    remedy:
      'npm run bench -- [step|imagenet|cluster|allreduce|input] [--json] [--rounds N] [--steps N] [--data folder], soak [--seconds N] [--seed S], scale [--steps N], or plan [--rounds N] [--steps N]',
  });
}
