/** One `braid train` with real processes, and what its journal says of the steps after the warm-up. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { JournalLine } from '../coordinator/journal.ts';
import { BraidError } from '../core/errors.ts';
import { peakBytesUnder } from './processes.ts';
import type { Phases } from './report.ts';

const BRAID = join(import.meta.dirname, '../bin/braid.mjs');

/** Steps before the timed ones: first runs of each graph, and buffers that fill. */
const WARM_UP_STEPS = 5;
const KEPT_OUTPUT_CHARS = 4000;

export interface TrainResult {
  imagesPerSecond: number;
  phases: Phases;
  /** The most that was resident of any of its processes, looked at twice a second. */
  peakBytes: number;
}

/**
 * @param folder where runs/<name> goes
 * @param recipe of the bench's, with its batch
 * @param overrides `path=value` each, on top of it
 * @throws BraidError INTERNAL with the end of what it printed, when the run fails
 */
export async function braidTrain(
  folder: string,
  name: string,
  { recipe, batch }: { recipe: string; batch: number },
  steps: number,
  overrides: string[],
): Promise<TrainResult> {
  const set = [`name=${name}`, `training.maxSteps=${WARM_UP_STEPS + steps}`, ...overrides];
  const args = [BRAID, 'train', join(import.meta.dirname, recipe), ...set.flatMap((override) => ['--set', override])];
  const child = spawn(process.execPath, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      output = (output + chunk).slice(-KEPT_OUTPUT_CHARS);
    });
  }
  let peakBytes = 0;
  const looking = setInterval(() => {
    peakBytes = Math.max(peakBytes, peakBytesUnder(child.pid!));
  }, 500);
  const ended = await new Promise<number | string>((resolve) => {
    child.once('error', ({ message }) => resolve(message));
    child.once('close', (code, signal) => resolve(signal ?? code ?? 0));
  });
  clearInterval(looking);
  if (ended !== 0) throw new BraidError('INTERNAL', `braid ${args.slice(1).join(' ')} ended with ${ended}:\n${output}`);
  return { ...readJournal(join(folder, 'runs', name, 'metrics.jsonl'), batch), peakBytes };
}

function readJournal(file: string, batch: number): Omit<TrainResult, 'peakBytes'> {
  const lines = readFileSync(file, 'utf8').trim().split('\n');
  const timed = lines
    .map((line) => JSON.parse(line) as JournalLine)
    .filter((line) => line.kind === 'step')
    .filter(({ step }) => step >= WARM_UP_STEPS);
  // One step a line: recipe.yaml's logEverySteps.
  const seconds = timed.reduce((sum, { imagesPerSecond }) => sum + batch / imagesPerSecond, 0);
  const names = new Set(timed.flatMap(({ phaseSeconds }) => Object.keys(phaseSeconds)));
  const phases = Object.fromEntries(
    Array.from(names, (name) => [name, timed.map(({ phaseSeconds }) => phaseSeconds[name] ?? 0)]),
  );
  return { imagesPerSecond: (timed.length * batch) / seconds, phases };
}
