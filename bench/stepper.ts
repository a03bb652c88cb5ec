/**
 * A child process that takes training steps when asked: it says {"ready": true} once warm, and answers each `run N` with
 * the times of N steps. It ends with its stdin, so it never outlives the bench.
 *
 * Warm children that wait cost nothing, which is what makes short alternating rounds possible: A B A B on one machine
 * see the same neighbours and the same heat.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { BraidError } from '../core/errors.ts';
import type { Phases } from './report.ts';

export interface Answer {
  /** Of each step. */
  seconds: number[];
  /** Where the child tells phases apart. */
  phases?: Phases;
  /** The most resident memory since it started, where it says. */
  peakBytes?: number;
  /** Total loss of the last step, where there is one. */
  loss?: number;
}

const KEPT_ERROR_CHARS = 4000; // the end of a Python traceback

export class Stepper {
  readonly name: string;
  private readonly child: ChildProcessByStdio<Writable, Readable, Readable>;
  private readonly lines: AsyncIterator<string>;
  private readonly reader: Interface;
  /** The last of what it wrote to stderr. */
  private complaint = '';

  private constructor(name: string, command: string, args: string[], env: NodeJS.ProcessEnv) {
    this.name = name;
    this.child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env });
    this.child.stdin.on('error', () => {}); // a dead child shows as the end of its stdout
    this.child.on('error', (error) => {
      this.complaint += error.message;
    });
    this.child.stderr.on('data', (chunk) => {
      this.complaint = (this.complaint + chunk).slice(-KEPT_ERROR_CHARS);
    });
    this.reader = createInterface(this.child.stdout);
    this.lines = this.reader[Symbol.asyncIterator]();
  }

  /** Starts a child and waits until it is warm. @throws BraidError SETUP with what it wrote, when it dies before */
  static async start(name: string, command: string, args: string[], env: NodeJS.ProcessEnv): Promise<Stepper> {
    const stepper = new Stepper(name, command, args, env);
    await stepper.answer();
    return stepper;
  }

  /** @param what of a child that can take steps of several kinds: which */
  async run(steps: number, what = 0): Promise<Answer> {
    this.child.stdin.write(`run ${steps} ${what}\n`);
    return (await this.answer()) as Answer;
  }

  async close(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const closed = once(this.child, 'close');
    this.child.stdin.end();
    await closed;
  }

  private async answer(): Promise<unknown> {
    const { value, done } = await this.lines.next();
    if (done !== true) return JSON.parse(value);
    throw new BraidError('SETUP', `${this.name} ended before it answered:\n${this.complaint.trim()}`, {
      remedy: 'Mend what it says; for the PyTorch side, deleting bench/.venv makes it anew.',
    });
  }
}

/** Starts children one after another, uses them, and ends them whatever happens. */
export async function withSteppers<T>(
  starts: (() => Promise<Stepper>)[],
  use: (...steppers: Stepper[]) => Promise<T>,
): Promise<T> {
  const steppers: Stepper[] = [];
  try {
    for (const start of starts) steppers.push(await start());
    return await use(...steppers);
  } finally {
    await Promise.all(steppers.map((stepper) => stepper.close()));
  }
}
