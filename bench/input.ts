/**
 * `input`: JPEGs of a folder to batches of random 224-pixel crops, against PyTorch's DataLoader with torchvision, whose
 * pixels are the same; and from what `braid data pack` made of those files, once. From files to a batch in memory; all threads
 * and processes of a contender share its cores.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pack } from '../cli/data-pack.ts';
import { BraidError } from '../core/errors.ts';
import { peerEnvironment } from './peers/venv.ts';
import { type Comparison, median } from './report.ts';
import type { Rounds } from './step.ts';
import { Stepper, withSteppers } from './stepper.ts';

export const BATCH = 64;
const AT_LEAST = 1;
const PACKED_AT_LEAST = 1.5;
/** Pixels of the short side, as evaluation resizes to, and JPEG quality. */
const PACKING = { shortSide: 256, quality: 90 };

export interface Input extends Rounds {
  python: string;
  /** A folder with JPEG files, at any depth. */
  data: string;
  say(line: string): void;
}

export async function benchInput(input: Input): Promise<Comparison[]> {
  const cores = allowedCores();
  const folder = mkdtempSync(join(tmpdir(), 'braid-bench-'));
  try {
    const packed = await packInto(folder, input);
    const comparisons = await benchOn(input, packed, 'one core', cores.slice(0, 1));
    if (cores.length > 1) comparisons.push(...(await benchOn(input, packed, 'two cores', cores.slice(0, 2))));
    return comparisons;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** @returns the packed data set's folder */
async function packInto(folder: string, { data, say }: Input): Promise<string> {
  say(`input: packing ${data}`);
  const [source, target] = [join(folder, 'source'), join(folder, 'packed')];
  mkdirSync(join(source, 'all'), { recursive: true });
  for (const [i, file] of jpegsIn(data).entries()) symlinkSync(resolve(file), join(source, `all/${i}.jpg`));
  const options = { firstLabel: 0, signal: new AbortController().signal, log: say, nowMs: () => performance.now() };
  await pack(source, target, PACKING, options, say);
  return target;
}

async function benchOn(
  { python, data, rounds, steps, say }: Input,
  packed: string,
  name: string,
  cores: number[],
): Promise<Comparison[]> {
  say(`input, ${name}: warming up`);
  const start = (who: string, command: string[]) => () =>
    Stepper.start(who, 'taskset', ['-c', cores.join(), ...command], peerEnvironment());
  const flags = ['--data', data];
  const script = join(import.meta.dirname, 'peers/input.py');
  // One core has no use for a process beside the one that takes the batches.
  const workers = String(cores.length === 1 ? 0 : cores.length);
  const peer = (decoder: string) => [python, script, ...flags, '--workers', workers, '--decoder', decoder];
  const braid = (...from: string[]) => [
    process.execPath,
    join(import.meta.dirname, 'braid-input.ts'),
    ...from,
    ...['--threads', `${cores.length}`],
  ];
  const starts = [
    start('Braid', braid(...flags)),
    start('packed', braid('--packed', packed)),
    start('torchvision.io', peer('io')),
    start('Pillow', peer('pil')),
  ];
  return await withSteppers(starts, async (...contenders): Promise<Comparison[]> => {
    const rates = contenders.map((): number[] => []);
    for (let round = 0; round < rounds; round++) {
      for (const [i, contender] of contenders.entries()) {
        const { seconds } = await contender.run(steps);
        rates[i]!.push((steps * BATCH) / seconds.reduce((sum, each) => sum + each, 0));
      }
      const figures = contenders.map((contender, i) => `${contender.name} ${rates[i]!.at(-1)!.toFixed(0)}`);
      say(`input, ${name}: round ${round + 1} of ${rounds}: ${figures.join(', ')} images/s`);
    }
    const [files, shards, io, pil] = rates.map(median) as [number, number, number, number];
    const [better, worse] = io >= pil ? ['torchvision.io', 'Pillow'] : ['Pillow', 'torchvision.io'];
    const note = `peer: DataLoader decoding with ${better}; with ${worse} ${Math.min(io, pil).toFixed(1)} images/s`;
    const common = { bench: 'input', peer: Math.max(io, pil), unit: 'images/s', phases: {} } as const;
    const { shortSide, quality } = PACKING;
    return [
      { ...common, case: name, braid: files, bar: { atLeast: AT_LEAST }, note },
      {
        ...common,
        case: `${name}, packed`,
        braid: shards,
        bar: { atLeast: PACKED_AT_LEAST },
        note: `short side ${shortSide}, quality ${quality}; the peer reads the original files`,
      },
    ];
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
