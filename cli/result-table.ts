/** What a run ends with, for people. */
import { relative } from 'node:path';
import { titleOf } from '../compare/classifiers.ts';
import type { Summary } from '../coordinator/summary.ts';
import { duration } from './progress.ts';

export function resultTable(summary: Summary): string {
  const rows = [
    ['', 'top-1', 'top-5', 'loss'],
    ...summary.results.map(({ classifier, top1Accuracy, top5Accuracy, loss }) => [
      titleOf(classifier),
      percent(top1Accuracy),
      percent(top5Accuracy),
      loss.toFixed(4),
    ]),
  ];
  const losses = Object.entries(summary.losses).map(([name, value]) => [name, value.toFixed(4)]);
  const { paths } = summary;
  const here = (path: string) => (path.startsWith('s3://') ? path : relative(process.cwd(), path));
  return `
${summary.method} on ${summary.testSamples.toLocaleString('en')} test images after ${summary.epochs} epochs

${columns(rows)}
training losses, mean of the last ${summary.lossSteps} steps

${columns(losses)}
${duration(summary.seconds)} in all, ${Math.round(summary.imagesPerSecond)} training images/s

wrote  ${here(paths.summary)}
       ${here(paths.metrics)}
       ${here(paths.recipe)}
       ${here(paths.checkpoint)}

next   train longer:     npx braid train ${here(paths.recipe)} --set name=longer --set training.epochs=${2 * summary.epochs}
       another placement: npx braid train ${here(paths.recipe)} --set name=split --set cluster.placement=split --set cluster.replicas=1
       your own data:    README.md, "Train on CIFAR"
`;
}

function percent(rate: number): string {
  return `${(100 * rate).toFixed(2)} %`;
}

/** Rows under one another, the first column to the left, the others to the right. */
export function columns(rows: string[][]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const line = (row: string[]) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]! + 2))).join('');
  return `${rows.map((row) => `  ${line(row)}\n`).join('')}`;
}
