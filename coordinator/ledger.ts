/**
 * Where training is: what has been committed, and what has been decided but perhaps not been done everywhere. Whatever
 * happens to a generation, the next one goes on from here.
 */
import type { Position } from '../proto/messages.ts';
import { type Decision, positionAfter } from './plan.ts';
import type { StepResult } from './step.ts';

export interface LedgerOptions {
  /** A whole step is about to be committed: from here on workers may have done it, whatever becomes of this process. */
  onDecided(update: Decision, result: StepResult): void;
  /** It has been committed. */
  onStep(update: Decision, result: StepResult): void;
}

export class Ledger {
  position: Position;
  /** All workers have reduced it: it will be committed. null: nothing is on its way. */
  decided: Decision | null = null;
  private readonly told: LedgerOptions;
  /** Of the updates of the step under way. */
  private results: StepResult[] = [];

  constructor(position: Position, told: LedgerOptions) {
    this.position = position;
    this.told = told;
  }

  decide(update: Decision, result: StepResult): void {
    if (update.last) this.told.onDecided(update, together([...this.results, result]));
    this.results.push(result);
    this.decided = update;
  }

  /** What was decided has been done by whoever is left. */
  commit(): void {
    const update = this.decided!;
    this.decided = null;
    this.position = positionAfter(update);
    if (!update.last) return;
    const result = together(this.results);
    this.results = [];
    this.told.onStep(update, result);
  }

  /** Nobody is left who has done it, or training goes on from somewhere else. */
  goTo(position: Position): void {
    this.position = position;
    this.decided = null;
    this.results = [];
  }
}

/** A step's updates as one: each term was some update's, and the totals add up. */
function together(updates: StepResult[]): StepResult {
  if (updates.length === 1) return updates[0]!;
  const losses = Object.assign({}, ...updates.map((update) => update.losses));
  const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
  return {
    losses: { ...losses, total: sum(updates.map((update) => update.losses.total ?? Number.NaN)) },
    gradientNorm: Math.hypot(...updates.map((update) => update.gradientNorm)),
    skipped: sum(updates.map((update) => update.skipped)),
    overflowed: sum(updates.map((update) => update.overflowed)),
    bad: updates[0]!.bad, // of one and the same shard
  };
}
