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
  | { kind: 'checkpoint'; step: number; path: string; bytes: number; seconds: number };

/** bad-samples.jsonl: a line for every sample that another one stood in for. */
export class BadSamples {
  private readonly file: string;

  constructor(file: string) {
    this.file = file;
  }

  write(line: { step: number; epoch: number; sample: number; where: string; reason: string }): void {
    append(this.file, line);
  }
}

export class Journal {
  private readonly file: string;
  /** After how many steps the test set has been evaluated. */
  private readonly evaluated = new Set<number>();

  constructor(file: string) {
    this.file = file;
  }

  /** Training goes on from here: lines that were written beyond are dropped. */
  goTo(step: number): void {
    this.evaluated.clear();
    if (!existsSync(this.file)) return;
    for (const line of keepBefore(this.file, step)) if (line.kind === 'epoch') this.evaluated.add(line.step);
  }

  evaluatedAfter(step: number): boolean {
    return this.evaluated.has(step);
  }

  write(line: JournalLine): void {
    if (line.kind === 'epoch') this.evaluated.add(line.step);
    append(this.file, line);
  }
}

/** One short synchronous write: lines are rare, and each is on disk in order whatever happens next. */
function append(file: string, line: object): void {
  try {
    appendFileSync(file, `${JSON.stringify(line)}\n`);
  } catch (cause) {
    throw new BraidError('SETUP', `cannot write ${file}: ${(cause as Error).message}`, {
      remedy: 'Make room on the disk; then go on with --resume.',
      cause,
    });
  }
}

/** A step's line tells of the step itself (done before `firstStep` if below it), others of how many steps were done. */
function keepBefore(file: string, firstStep: number): JournalLine[] {
  const kept = readFileSync(file, 'utf8')
    .split('\n')
    .flatMap((text) => {
      try {
        const line = JSON.parse(text) as JournalLine;
        return (line.kind === 'step' ? line.step < firstStep : line.step <= firstStep) ? [line] : [];
      } catch {
        return []; // the end of a line that was being written when the run died
      }
    });
  writeFileSync(`${file}.aside`, kept.map((line) => `${JSON.stringify(line)}\n`).join(''));
  renameSync(`${file}.aside`, file);
  return kept;
}
