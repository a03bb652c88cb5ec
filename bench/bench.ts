/**
 * `npm run bench -- [step|cluster] [--json] [--rounds N] [--steps N]`: Braid against PyTorch on this machine.
 *
 * Contenders take turns in short rounds and never run at the same time; figures are medians, ratios are braid / peer.
 * Progress goes to stderr, results to stdout: with --json a line each.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { BraidError, nearest } from '../core/errors.ts';
import { benchSplit, benchTogether, prepareCluster } from './cluster.ts';
import { peerPython } from './peers/venv.ts';
import { asJson, asText, type Comparison } from './report.ts';
import { benchStep, type Rounds } from './step.ts';

const BENCHES = ['step', 'cluster'] as const;
type Bench = (typeof BENCHES)[number];

/** Enough for a steady median; about four minutes each on two cores. */
const DEFAULTS: Record<Bench, Rounds> = { step: { rounds: 5, steps: 10 }, cluster: { rounds: 3, steps: 20 } };

/** @returns the exit code: 0 when everything was measured, whether or not the bars are met */
export async function bench(argv: string[]): Promise<number> {
  const { benches, json, given } = parse(argv);
  const say = (line: string) => void process.stderr.write(`${line}\n`);
  const show = (comparison: Comparison) => {
    process.stdout.write(`${json ? asJson(comparison) : asText(comparison)}\n`);
  };
  const python = await peerPython(say);
  if (benches.includes('step')) {
    for (const precision of ['f32', 'bf16'] as const) {
      show(await benchStep(python, precision, { ...DEFAULTS.step, ...given }, say));
    }
  }
  if (benches.includes('cluster')) {
    const folder = mkdtempSync(join(tmpdir(), 'braid-bench-'));
    try {
      prepareCluster(folder);
      const cluster = { python, folder, say, ...DEFAULTS.cluster, ...given };
      (await benchTogether(cluster)).forEach(show);
      (await benchSplit(cluster)).forEach(show);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }
  return 0;
}

function parse(argv: string[]): { benches: readonly Bench[]; json: boolean; given: Partial<Rounds> } {
  const { values, positionals } = parsed(argv);
  for (const name of positionals) {
    if (BENCHES.includes(name as Bench)) continue;
    const known = nearest(name, BENCHES);
    throw wrongFlag(`${name} is no bench${known === undefined ? '' : `, did you mean ${known}?`}`);
  }
  const given: Partial<Rounds> = {};
  for (const flag of ['rounds', 'steps'] as const) {
    const text = values[flag];
    if (text === undefined) continue;
    if (!/^[1-9]\d*$/.test(text)) throw wrongFlag(`--${flag} ${text}: expected a whole number from 1`);
    given[flag] = Number(text);
  }
  return { benches: positionals.length > 0 ? (positionals as Bench[]) : BENCHES, json: values.json, given };
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
      },
    });
  } catch (error) {
    throw wrongFlag((error as Error).message);
  }
}

function wrongFlag(message: string): BraidError {
  return new BraidError('INVALID_RECIPE', `bench: ${message}`, {
    remedy: 'npm run bench -- [step|cluster] [--json] [--rounds N] [--steps N]',
  });
}
