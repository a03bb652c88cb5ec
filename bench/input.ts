/**
 * `input`: JPEGs of a folder to batches of random 224-pixel crops, against PyTorch's DataLoader with torchvision, whose
 * pixels are the same. From files to a batch in memory; all threads and processes of a contender share its cores.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { peerEnvironment } from './peers/venv.ts';
import { type Comparison, median } from './report.ts';
import type { Rounds } from './step.ts';
import { Stepper, withSteppers } from './stepper.ts';

export const BATCH = 64;
const AT_LEAST = 1;

export interface Input extends Rounds {
  python: string;
  /** A folder with JPEG files, at any depth. */
  data: string;
  say(line: string): void;
}

export async function benchInput(input: Input): Promise<Comparison[]> {
  const cores = allowedCores();
  const comparisons = [await benchOn(input, 'one core', cores.slice(0, 1))];
  if (cores.length > 1) comparisons.push(await benchOn(input, 'two cores', cores.slice(0, 2)));
  return comparisons;
}

async function benchOn(
  { python, data, rounds, steps, say }: Input,
  name: string,
  cores: number[],
): Promise<Comparison> {
  say(`input, ${name}: warming up`);
  const start = (who: string, command: string[]) => () =>
    Stepper.start(who, 'taskset', ['-c', cores.join(), ...command], peerEnvironment());
  const flags = ['--data', data];
  const script = join(import.meta.dirname, 'peers/input.py');
  // One core has no use for a process beside the one that takes the batches.
  const workers = String(cores.length === 1 ? 0 : cores.length);
  const peer = (decoder: string) => [python, script, ...flags, '--workers', workers, '--decoder', decoder];
  const starts = [
    start('Braid', [
      process.execPath,
      join(import.meta.dirname, 'braid-input.ts'),
      ...flags,
      '--threads',
      `${cores.length}`,
    ]),
    start('torchvision.io', peer('io')),
    start('Pillow', peer('pil')),
  ];
  return await withSteppers(starts, async (...contenders): Promise<Comparison> => {
    const rates = contenders.map((): number[] => []);
    for (let round = 0; round < rounds; round++) {
      for (const [i, contender] of contenders.entries()) {
        const { seconds } = await contender.run(steps);
        rates[i]!.push((steps * BATCH) / seconds.reduce((sum, each) => sum + each, 0));
      }
      const figures = contenders.map((contender, i) => `${contender.name} ${rates[i]!.at(-1)!.toFixed(0)}`);
      say(`input, ${name}: round ${round + 1} of ${rounds}: ${figures.join(', ')} images/s`);
    }
    const [braid, io, pil] = rates.map(median) as [number, number, number];
    const [better, worse] = io >= pil ? ['torchvision.io', 'Pillow'] : ['Pillow', 'torchvision.io'];
    return {
      bench: 'input',
      case: name,
      braid,
      peer: Math.max(io, pil),
      unit: 'images/s',
      bar: { atLeast: AT_LEAST },
      note: `peer: DataLoader decoding with ${better}; with ${worse} ${Math.min(io, pil).toFixed(1)} images/s`,
      phases: {},
    };
  });
}

/** Paths of the JPEG files of a folder, at any depth, sorted; none where there is no such folder. */
export function jpegsIn(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.jpe?g$/i.test(name))
    .sort()
    .map((name) => join(folder, name));
}

/** What this process may run on: "0-3,8" of /proc. */
function allowedCores(): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  if (list === undefined) throw new BraidError('SETUP', 'bench input: /proc does not say which cores there are');
  return list.split(',').flatMap((range) => {
    const [from, to = from] = range.split('-').map(Number) as [number, number?];
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  });
}
