/** A run's progress: one line that is rewritten on a terminal, and lines that stay. */
import type { ClassifierResult } from '../coordinator/evaluation.ts';
import type { RunEvent, RunTotals, StepProgress } from '../coordinator/events.ts';

const REDRAW_SECONDS = 0.2; // on a terminal
const LINE_SECONDS = 10; // elsewhere: logs stay short

interface Output {
  isTTY?: boolean;
  columns?: number;
  write(text: string): unknown;
}

export class Progress {
  private readonly output: Output;
  private readonly now: () => number;
  private readonly beyond: (progress: StepProgress) => string;
  private totals: RunTotals | null = null;
  private shownAt = Number.NEGATIVE_INFINITY;
  /** Whether the terminal's last line is one to be rewritten. */
  private open = false;

  /** @param now seconds, never going back   @param beyond begins a step's line: what the run is part of */
  constructor(output: Output, now: () => number, beyond: (progress: StepProgress) => string = () => '') {
    this.output = output;
    this.now = now;
    this.beyond = beyond;
  }

  /** A line that stays. */
  print(line: string): void {
    this.output.write(`${this.open ? '\r\x1b[2K' : ''}${line.endsWith('\n') ? line : `${line}\n`}`);
    this.open = false;
  }

  show(event: RunEvent): void {
    switch (event.kind) {
      case 'listening':
        this.print(
          `coordinator on ${event.address}, metrics on http://${event.metrics}/metrics, waiting for ${event.workers} worker(s)`,
        );
        break;
      case 'joined':
        this.print(
          `worker ${event.member} joined (${event.joined}/${event.workers}): ${event.device} on ${event.host}, pid ${event.pid}`,
        );
        break;
      case 'disturbed':
        this.print(`disturbed at step ${event.step}: ${event.message}`);
        break;
      case 'regrouped':
        this.print(`generation ${event.generation}: ${event.workers} worker(s), from step ${event.step} on`);
        break;
      case 'skipped':
        this.print(`step ${event.step} was not finite and is left out`);
        break;
      case 'started': {
        const { totals } = event;
        this.totals = totals;
        const from = totals.firstStep === 0 ? '' : `, from step ${totals.firstStep} on`;
        this.print(
          `training ${totals.parameters.toLocaleString('en')} parameters for ${totals.epochs} epochs (${totals.steps} steps${from}) on ` +
            `${totals.trainSamples.toLocaleString('en')} images; ${totals.runFolder}`,
        );
        break;
      }
      case 'step':
        this.step(event.progress);
        break;
      case 'evaluating':
        this.rewrite(`epoch ${event.epoch + 1}: evaluating`);
        break;
      case 'epoch':
        this.print(
          `epoch ${String(event.epoch + 1).padStart(3)}  test accuracy  ${event.results.map(accuracy).join('  ')}`,
        );
        break;
      case 'checkpoint':
        this.print(`checkpoint at step ${event.step}: ${event.path}`);
        break;
      case 'done':
        break;
    }
  }

  private step(progress: StepProgress): void {
    const every = this.output.isTTY ? REDRAW_SECONDS : LINE_SECONDS;
    if (this.now() - this.shownAt < every) return;
    this.shownAt = this.now();
    const { steps = 0, epochs = 0 } = this.totals ?? {};
    const losses = Object.entries(progress.losses).map(([name, value]) => `${name} ${value.toFixed(3)}`);
    const text =
      `${this.beyond(progress)}epoch ${progress.epoch + 1}/${epochs}  step ${progress.step + 1}/${steps}  ` +
      `${Math.round(progress.imagesPerSecond)} images/s  ETA ${duration(progress.secondsLeft)}  ${losses.reverse().join('  ')}`;
    if (this.output.isTTY) this.rewrite(text);
    else this.print(text);
  }

  private rewrite(text: string): void {
    if (!this.output.isTTY) return;
    this.output.write(`\r\x1b[2K${text.slice(0, (this.output.columns ?? 80) - 1)}`);
    this.open = true;
  }
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function accuracy({ classifier, top1Accuracy }: ClassifierResult): string {
  return `${classifier} ${(100 * top1Accuracy).toFixed(2)} %`;
}
