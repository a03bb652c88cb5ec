/**
 * A run as one trace of all its processes (`braid train --trace`): the coordinator's own spans, and those of every worker, which
 * it asks for again and again. A worker's clock is set by the quickest answer: it was read in the middle of the call.
 */
import { writeFileSync } from 'node:fs';
import { BraidError } from '../core/errors.ts';
import { onSpan, type Span } from '../core/spans.ts';
import { chromeTrace, type TracedSpan } from '../core/trace-file.ts';
import type { Member } from './membership.ts';

const EVERY_MS = 500;
const TIMEOUT_MS = 5_000;
/** Of all processes together: beyond these the trace is of the beginning. */
const MAX_SPANS = 500_000;

interface WorkerTrace {
  name: string;
  spans: TracedSpan[];
  /** What the worker's clock is ahead of this one's, and how long the call took that told it. */
  offset: { ms: number; roundTripMs: number };
}

export class TraceFile {
  private readonly file: string;
  private readonly run: string;
  private readonly members: () => readonly Member[];
  private readonly own: TracedSpan[] = [];
  /** By the member's number. */
  private readonly workers = new Map<number, WorkerTrace>();
  private readonly stop: () => void;
  private readonly timer: NodeJS.Timeout;
  private asking: Promise<unknown> = Promise.resolve();
  private count = 0;

  /** @throws BraidError SETUP when the file cannot be written */
  constructor(file: string, run: string, members: () => readonly Member[]) {
    this.file = file;
    this.run = run;
    this.members = members;
    this.write();
    this.stop = onSpan((span) => this.keep(this.own, [tracedSpan(span)]));
    this.timer = setInterval(() => void this.ask(), EVERY_MS);
  }

  /** Asks for what is left, and writes the file. */
  async close(): Promise<void> {
    clearInterval(this.timer);
    this.stop();
    await this.asking;
    await this.ask();
    this.write();
  }

  private ask(): Promise<unknown> {
    this.asking = this.asking.then(() => Promise.allSettled(this.members().map((member) => this.askOne(member))));
    return this.asking;
  }

  private async askOne({ id, name, worker }: Member): Promise<void> {
    const before = nowMs();
    const call = { signal: new AbortController().signal, timeoutMs: TIMEOUT_MS };
    const { nowMs: there, spans } = await worker.trace({ run: this.run }, call);
    const after = nowMs();
    const offset = { ms: there - (before + after) / 2, roundTripMs: after - before };
    const known = this.workers.get(id) ?? { name, spans: [], offset };
    if (offset.roundTripMs < known.offset.roundTripMs) known.offset = offset;
    this.workers.set(id, known);
    this.keep(
      known.spans,
      spans.map(({ parentId, attributes, ...span }) => ({
        ...span,
        parentId: parentId === '' ? null : parentId,
        attributes: JSON.parse(attributes),
      })),
    );
  }

  private keep(into: TracedSpan[], spans: TracedSpan[]): void {
    if (this.count >= MAX_SPANS) return;
    this.count += spans.length;
    into.push(...spans);
  }

  private write(): void {
    const workers = [...this.workers]
      .sort(([a], [b]) => a - b)
      .map(([, { name, spans, offset }]) => ({
        name,
        spans: spans.map((span) => ({ ...span, startMs: span.startMs - offset.ms, endMs: span.endMs - offset.ms })),
      }));
    try {
      writeFileSync(this.file, chromeTrace([{ name: 'coordinator', spans: this.own }, ...workers]));
    } catch (cause) {
      throw new BraidError('SETUP', `cannot write the trace ${this.file}: ${(cause as Error).message}`, {
        remedy: 'Name a file in a folder that there is.',
        cause,
      });
    }
  }
}

export function tracedSpan({ name, context, parent, startMs, endMs, attributes }: Span): TracedSpan {
  return { name, spanId: context.spanId, parentId: parent?.spanId ?? null, startMs, endMs, attributes };
}

function nowMs(): number {
  return performance.timeOrigin + performance.now();
}
