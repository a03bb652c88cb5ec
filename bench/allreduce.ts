/**
 * `allreduce`: the gradient exchange among processes of this machine, against gloo's all_reduce among as many of one thread
 * each. Workers of one machine read one another's gradients in place; `unix` and `tcp` send them all the same, the latter as
 * between machines.
 *
 * Braid's side pays for its frames and checksums, and for the copy out of a tensor; gloo sums in the tensor.
 */
import { join } from 'node:path';
import { peerEnvironment } from './peers/venv.ts';
import { type Comparison, median } from './report.ts';
import type { Rounds } from './step.ts';
import { Stepper, withSteppers } from './stepper.ts';

const WORKERS = [2, 4, 8];
/** Gradients of 0.5, 6 and 22 million parameters. */
const MEGABYTES = [2, 25, 87];
/** The largest accepted part of gloo's time. */
const TRANSPORTS = { memory: { atMost: 0.7 }, unix: { atMost: 0.7 }, tcp: { atMost: 1 } };

/** Milliseconds of a step, and of rank 0's threads in it: the latter hardly depends on what else the machine does. */
interface Times {
  wall: number;
  processor: number;
}

export interface Allreduce extends Rounds {
  python: string;
  say(line: string): void;
}

/** A comparison for each number of processes, size and transport. */
export async function benchAllreduce(options: Allreduce): Promise<Comparison[]> {
  const comparisons: Comparison[] = [];
  for (const workers of WORKERS) comparisons.push(...(await benchAmong(workers, options)));
  return comparisons;
}

async function benchAmong(workers: number, { python, rounds, steps, say }: Allreduce): Promise<Comparison[]> {
  say(`allreduce of ${workers}: warming up`);
  const flags = ['--workers', String(workers), '--bytes', MEGABYTES.map((size) => size * 1e6).join()];
  const braid = (transport: string) => () =>
    Stepper.start(
      `Braid over ${transport}`,
      process.execPath,
      [join(import.meta.dirname, 'braid-allreduce.ts'), '--transport', transport, ...flags],
      process.env,
    );
  const gloo = () =>
    Stepper.start('gloo', python, [join(import.meta.dirname, 'peers/allreduce.py'), ...flags], peerEnvironment());
  return await withSteppers([gloo, ...Object.keys(TRANSPORTS).map(braid)], async (...contenders) => {
    /** [size][contender][round] */
    const times = MEGABYTES.map(() => contenders.map((): Times[] => []));
    for (let round = 0; round < rounds; round++) {
      for (const [i, size] of MEGABYTES.entries()) {
        for (const [k, contender] of contenders.entries()) {
          const { seconds, phases } = await contender.run(steps, i);
          times[i]![k]!.push({ wall: 1000 * median(seconds), processor: 1000 * median(phases!.processor!) });
        }
        const figures = contenders.map(({ name }, k) => `${name} ${times[i]![k]!.at(-1)!.wall.toFixed(1)}`);
        say(`allreduce of ${workers}, ${size} MB: round ${round + 1} of ${rounds}: ${figures.join(', ')} ms`);
      }
    }
    return MEGABYTES.flatMap((size, i) =>
      Object.entries(TRANSPORTS).map(([transport, bar], k): Comparison => {
        const [peer, own] = [times[i]![0]!, times[i]![k + 1]!];
        const [wall, processor] = (['wall', 'processor'] as const).map((of) => ratios(own, peer, of));
        return {
          bench: 'allreduce',
          case: `${workers} x ${size} MB, ${transport}`,
          braid: median(own.map((each) => each.wall)),
          peer: median(peer.map((each) => each.wall)),
          unit: 'ms',
          bar,
          note: `peer: gloo over TCP; ratios of single rounds ${wall}, of processor time ${processor}`,
          phases: {},
        };
      }),
    );
  });
}

/** Of rounds that neighbours disturbed alike: the lowest, middle and highest. */
function ratios(own: Times[], peer: Times[], of: keyof Times): string {
  const each = own.map((times, round) => times[of] / peer[round]![of]);
  return [Math.min(...each), median(each), Math.max(...each)].map((ratio) => ratio.toFixed(2)).join(' / ');
}
