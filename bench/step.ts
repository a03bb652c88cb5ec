/** `step`: one training step of FFL ResNet-32 in one process with two threads, against PyTorch's. */
import { anatomyOf } from './anatomy.ts';
import { braidStep, type Precision, torchStep } from './contenders.ts';
import { type Comparison, median, medianPhases, meetsBar } from './report.ts';
import { type Answer, withSteppers } from './stepper.ts';

/** The largest accepted part of PyTorch's step time. */
const AT_MOST = 0.9;

export interface Rounds {
  rounds: number;
  /** Timed steps of each contender a round. */
  steps: number;
}

export async function benchStep(
  python: string,
  precision: Precision,
  { rounds, steps }: Rounds,
  say: (line: string) => void,
): Promise<Comparison> {
  say(`step ${precision}: warming up`);
  const work = { precision, threads: 2 };
  const starts = [
    () => braidStep(work),
    () => torchStep(python, 'eager', work),
    () => torchStep(python, 'compiled', work),
  ];
  const comparison = await withSteppers(starts, async (...contenders): Promise<Comparison> => {
    const answers = contenders.map((): Answer[] => []);
    for (let round = 0; round < rounds; round++) {
      for (const [i, contender] of contenders.entries()) answers[i]!.push(await contender.run(steps));
      say(`step ${precision}: round ${round + 1} of ${rounds}: ${times(answers.map((all) => [all.at(-1)!]))}`);
    }
    const [braid, eager, compiled] = answers.map((all) => median(all.flatMap(({ seconds }) => seconds)));
    const [better, worse] = eager! <= compiled! ? ['eager', 'compiled'] : ['compiled', 'eager'];
    return {
      bench: 'step',
      case: precision,
      braid: braid!,
      peer: Math.min(eager!, compiled!),
      unit: 's',
      bar: { atMost: AT_MOST },
      note: `peer: PyTorch ${better}; ${worse} takes ${Math.max(eager!, compiled!).toFixed(3)} s`,
      phases: medianPhases(answers[0]!.map(({ phases = {} }) => phases)),
    };
  });
  if (meetsBar(comparison)) return comparison;
  say(`step ${precision}: where the time goes`);
  const { milliseconds, floor } = await anatomyOf(precision, work.threads);
  const inside = Object.entries(milliseconds).map(([kind, ms]) => [`  ${kind}`, ms / 1000]);
  const phases = { ...comparison.phases, ...Object.fromEntries(inside) };
  return { ...comparison, phases, note: `${comparison.note}; floor ${floor}` };
}

function times(answers: Answer[][]): string {
  const [braid, eager, compiled] = answers.map((all) => median(all.flatMap(({ seconds }) => seconds)).toFixed(3));
  return `braid ${braid} s, PyTorch eager ${eager} s, compiled ${compiled} s`;
}
