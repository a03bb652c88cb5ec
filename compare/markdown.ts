/** comparison.md: the tables, readable as they stand. */
import type { Comparison } from './comparison.ts';
import { type Table, tablesOf } from './tables.ts';

export function markdownOf(comparison: Comparison): string {
  const tables = tablesOf(comparison).map(tableOf);
  return `${[`# ${comparison.name}`, ...warningsOf(comparison), ...tables].join('\n\n')}\n`;
}

export function tableOf({ title, caption, header, rows }: Table): string {
  const cells = [header, ...rows.map((row) => row.map(({ text, lowest }) => (lowest ? `**${text}**` : text)))].map(
    (row) => row.map((cell) => cell.replaceAll('|', '\\|')),
  );
  const widths = header.map((_, c) => Math.max(3, ...cells.map((row) => row[c]!.length)));
  const line = (row: string[]) =>
    `| ${row.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join(' | ')} |`;
  const rule = widths.map((width, c) => (c === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`));
  return [`## ${title}`, '', line(cells[0]!), line(rule), ...cells.slice(1).map(line), '', caption].join('\n');
}

/** Sections on what keeps the systems from being comparable, and what is missing; none where all is well. */
function warningsOf({ differences, notes, failures }: Comparison): string[] {
  const lines = [
    ...differences.map(({ field, values }) => {
      const each = Object.entries(values).map(([label, value]) => `${label} ${value}`);
      return `- The systems differ in \`${field}\`: ${each.join('; ')}`;
    }),
    ...notes.map((note) => `- ${note}`),
    ...failures.map(({ system, seed, error }) => `- ${system}, seed ${seed}, failed: ${error.replaceAll('\n', ' ')}`),
  ];
  return lines.length === 0 ? [] : [`## Before you compare\n\n${lines.join('\n')}`];
}
