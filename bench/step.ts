/**
 * `step`: one training step of FFL ResNet-32 in one process with two threads, and `imagenet` the same of ResNet-34 at 224
 * pixels, with the memory that it takes, against PyTorch's.
 */
import { anatomyOf } from './anatomy.ts';
import { braidStep, type StepWork, torchStep } from './contenders.ts';
import { type Comparison, median, medianPhases, meetsBar } from './report.ts';
import { type Answer, withSteppers } from './stepper.ts';

/** The largest accepted part of PyTorch's step time, and of its memory. */
const TIME = { atMost: 0.9 };
export const MEMORY = { atMost: 1.2 };

export interface Rounds {
  rounds: number;
  /** Timed steps of each contender a round. */
  steps: number;
}

export interface StepBench extends Rounds {
  python: string;
  bench: 'step' | 'imagenet';
  work: StepWork;
  say(line: string): void;
}

/** @returns the time of a step, and the most memory that each process ever had */
export async function benchStep({ python, bench, work, rounds, steps, say }: StepBench): Promise<Comparison[]> {
  const { precision } = work;
  const starts = [
    () => braidStep(work),
    () => torchStep(python, 'eager', work),
    () => torchStep(python, 'compiled', work),
    () => torchStep(python, 'keeping', work),
  ];
  const answers = starts.map((): Answer[] => []);
  for (let round = 0; round < rounds; round++) {
    // Each anew: some machines take the memory of whoever waits, and give it back slowly.
    for (const [i, start] of starts.entries()) {
      answers[i]!.push(await withSteppers([start], (one) => one!.run(steps)));
    }
    say(`${bench} ${precision}: round ${round + 1} of ${rounds}: ${times(answers.map((all) => [all.at(-1)!]))}`);
  }
  const [braid, eager, compiled, keeping] = answers.map((all) => median(all.flatMap(({ seconds }) => seconds)));
  const [better, worse] = eager! <= compiled! ? ['eager', 'compiled'] : ['compiled', 'eager'];
  const [own, theirs] = [0, better === 'eager' ? 1 : 2].map((i) => answers[i]!.at(-1)!.peakBytes! / 2 ** 20);
  const peer = `peer: PyTorch ${better}`;
  const time: Comparison = {
    ...{ bench, case: precision, unit: 's', braid: braid!, peer: Math.min(eager!, compiled!), bar: TIME },
    note: `${peer}; ${worse} takes ${Math.max(eager!, compiled!).toFixed(3)} s; eager with glibc keeping memory ${keeping!.toFixed(3)} s, ratio ${(braid! / keeping!).toFixed(2)}`,
    phases: medianPhases(answers[0]!.map(({ phases = {} }) => phases)),
  };
  const memory: Comparison = {
    ...{ bench, case: `${precision}, memory`, unit: 'MiB', braid: own!, peer: theirs!, bar: MEMORY },
    ...{ note: `${peer}; the most that was resident`, phases: {} },
  };
  if (meetsBar(time)) return [time, memory];
  say(`${bench} ${precision}: where the time goes`);
  const { milliseconds, floor } = await anatomyOf(work);
  const inside = Object.entries(milliseconds).map(([kind, ms]) => [`  ${kind}`, ms / 1000]);
  const phases = { ...time.phases, ...Object.fromEntries(inside) };
  return [{ ...time, phases, note: `${time.note}; floor ${floor}` }, memory];
}

function times(answers: Answer[][]): string {
  const [braid, eager, compiled, keeping] = answers.map((all) =>
    median(all.flatMap(({ seconds }) => seconds)).toFixed(3),
  );
  return `braid ${braid} s, PyTorch eager ${eager} s, compiled ${compiled} s, eager keeping memory ${keeping} s`;
}
