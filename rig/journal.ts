import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { JournalLine } from '../coordinator/journal.ts';

type StepLine = Extract<JournalLine, { kind: 'step' }>;

/** Steps of a run's metrics.jsonl, in the order of its lines; a last line cut short by a death is none. @param run its folder */
export function journalSteps(run: string): StepLine[] {
  const file = join(run, 'metrics.jsonl');
  const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as JournalLine)
    .filter((line) => line.kind === 'step');
}
