/**
 * metrics.jsonl: a JSON line for every `metrics.logEverySteps` steps (kind "step"), every evaluation (kind "epoch") and
 * every checkpoint (kind "checkpoint"). docs/summary.md has the fields.
 */
import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { BraidError } from '../core/errors.ts';
import type { ClassifierResult } from './evaluation.ts';
import type { StepProgress } from './events.ts';

export type JournalLine =
  | ({ kind: 'step' } & StepProgress)
  | { kind: 'epoch'; epoch: number; step: number; seconds: number; results: ClassifierResult[] }
  | { kind: 'checkpoint'; step: number; path: string; seconds: number };

export class Journal {
  private readonly file: string;

  /** @param firstStep where the run goes on: lines that a run before had written beyond it are dropped */
  constructor(file: string, firstStep: number) {
    this.file = file;
    if (existsSync(file)) keepBefore(file, firstStep);
  }

  /** One short synchronous write: lines are rare, and each is on disk in order whatever happens next. */
  write(line: JournalLine): void {
    try {
      appendFileSync(this.file, `${JSON.stringify(line)}\n`);
    } catch (cause) {
      throw new BraidError('SETUP', `cannot write ${this.file}: ${(cause as Error).message}`, {
        remedy: 'Make room on the disk; then go on with --resume.',
        cause,
      });
    }
  }
}

/** A step's line tells of the step itself (done before `firstStep` if below it), others of how many steps were done. */
function keepBefore(file: string, firstStep: number): void {
  const kept = readFileSync(file, 'utf8')
    .split('\n')
    .filter((text) => {
      try {
        const line = JSON.parse(text) as JournalLine;
        return line.kind === 'step' ? line.step < firstStep : line.step <= firstStep;
      } catch {
        return false; // the end of a line that was being written when the run died
      }
    });
  writeFileSync(`${file}.aside`, kept.map((line) => `${line}\n`).join(''));
  renameSync(`${file}.aside`, file);
}
