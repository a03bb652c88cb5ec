/** The tables of a comparison as cells: Markdown and HTML show the same ones. */
import { MEAN_OF_BRANCHES } from '../coordinator/evaluation.ts';
import { inOrder, oneNetwork, titleOf } from './classifiers.ts';
import type { Comparison, Score, SystemFigures } from './comparison.ts';
import type { Statistic } from './statistics.ts';

export interface Table {
  title: string;
  /** How to read it. */
  caption: string;
  header: string[];
  /** The first cell names the row. */
  rows: Cell[][];
}

export interface Cell {
  text: string;
  /** Whether it is its column's lowest mean, where that says something. */
  lowest?: boolean;
}

const NONE: Cell = { text: '–' };

export function tablesOf({ systems }: Comparison): Table[] {
  const hasBest = systems.some(({ best }) => best !== null);
  const last = systems.map(({ label, last }) => ({ label, scores: last }));
  const best = systems.map(({ label, best }) => ({ label, scores: best ?? [] }));
  return [
    errorTable('Top-1 error, %', AFTER_LAST, last, ({ top1 }) => percent(top1)),
    errorTable('Top-5 error, %', AFTER_LAST, last, ({ top5 }) => percent(top5)),
    ...(hasBest ? [errorTable('Test-selected: top-1 error, %', SELECTED, best, ({ top1 }) => percent(top1))] : []),
    costTable(systems),
    ...(last.some(({ scores }) => scores.some(({ ece }) => ece !== null))
      ? [
          errorTable('Expected calibration error, %', CALIBRATION, last, ({ ece }) =>
            ece === null ? null : percent(ece),
          ),
        ]
      : []),
  ];
}

const AFTER_LAST =
  'After the last epoch, on the whole test set: mean ± standard deviation (n - 1) over the seeds. A single network ' +
  'stands for its own mean of branches. The lowest mean of each column is bold.';
const SELECTED =
  'Each classifier of each seed at the epoch where its own test error was lowest. Chosen by the test set, these numbers ' +
  'are too good: for comparison with papers that report so.';
const CALIBRATION =
  'Mean distance between confidence and accuracy over 15 bins of equal width, after the last epoch: mean ± standard ' +
  'deviation over the seeds.';

interface Column {
  text: string;
  mean: number;
}

function errorTable(
  title: string,
  caption: string,
  systems: { label: string; scores: Score[] }[],
  show: (score: Score) => Column | null,
): Table {
  const classifiers = inOrder([...systems.flatMap(({ scores }) => scores.map(({ classifier }) => classifier))]);
  const columns = classifiers.includes(MEAN_OF_BRANCHES) ? classifiers : inOrder([...classifiers, MEAN_OF_BRANCHES]);
  const values = systems.map(({ scores }) =>
    columns.map((classifier) => {
      const score =
        classifier === MEAN_OF_BRANCHES ? oneNetwork(scores) : scores.find((each) => each.classifier === classifier);
      return score === undefined ? null : show(score);
    }),
  );
  return {
    title,
    caption,
    header: ['system', ...columns.map(titleOf)],
    rows: systems.map(({ label }, i) => [
      { text: label },
      ...values[i]!.map((value, c) => {
        if (value === null) return NONE;
        const means = values.flatMap((row) => row[c]?.mean ?? []);
        return { text: value.text, lowest: value.mean === Math.min(...means) && value.mean < Math.max(...means) };
      }),
    ]),
  };
}

function costTable(systems: SystemFigures[]): Table {
  return {
    title: 'Cost',
    caption:
      'Parameters and multiply-adds (of one image) of everything that is trained, and of each branch when it is deployed ' +
      'alone. Wall time of a run with its evaluations; ≈: worked out for runs that were resumed.',
    header: ['system', 'seeds', 'parameters', 'one branch', 'multiply-adds', 'one branch', 'wall time', 'images/s'],
    rows: systems.map(({ label, runs, parameters, multiplyAdds, branches, seconds, imagesPerSecond }) => {
      const each = (field: 'parameters' | 'multiplyAdds') => {
        const distinct = [...new Set(branches.map((branch) => short(branch[field])))];
        return distinct.length === 0 ? NONE : { text: distinct.join(', ') };
      };
      const about = runs.some(({ secondsEstimated }) => secondsEstimated) ? '≈ ' : '';
      return [
        { text: label },
        { text: String(runs.length) },
        parameters === null ? NONE : { text: parameters.toLocaleString('en') },
        each('parameters'),
        multiplyAdds === null ? NONE : { text: short(multiplyAdds) },
        each('multiplyAdds'),
        seconds === null ? NONE : { text: `${about}${clock(seconds.mean)}` },
        imagesPerSecond === null ? NONE : { text: Math.round(imagesPerSecond.mean).toLocaleString('en') },
      ];
    }),
  };
}

function percent({ mean, sd }: Statistic): Column {
  const hundred = (value: number) => (100 * value).toFixed(2);
  return { mean, text: sd === null ? hundred(mean) : `${hundred(mean)} ± ${hundred(sd)}` };
}

/** 472756 -> "0.473 M" */
export function short(value: number): string {
  const [unit, scale] = value >= 1e9 ? ['G', 1e9] : value >= 1e5 ? ['M', 1e6] : ['k', 1e3];
  return `${(value / scale).toPrecision(3)} ${unit}`;
}

function clock(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}
