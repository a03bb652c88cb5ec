/**
 * Spans of several processes as one file in Chrome's trace format, which chrome://tracing and ui.perfetto.dev show.
 *
 * A process has a row for each kind of work, and more where spans of a kind overlap without one being inside of the other.
 */
import type { Attributes } from './spans.ts';

export interface TracedSpan {
  name: string;
  spanId: string;
  /** null: it is part of nothing. */
  parentId: string | null;
  /** Unix time, milliseconds, on one clock for all processes. */
  startMs: number;
  endMs: number;
  attributes: Attributes;
}

export interface TracedProcess {
  /** "coordinator", "worker 0 (host a, pid 7)" */
  name: string;
  spans: TracedSpan[];
}

/** What is shown beside a process's calls, not among them; so is what one of its threads does by itself. */
const ROWS: Record<string, string> = { session: 'device', decode: 'decode', input: 'waiting for input' };
const CALLS = 'calls';

function rowOf({ name, attributes }: TracedSpan): string {
  return ROWS[name] ?? (attributes.thread === undefined ? CALLS : `${attributes.thread}`);
}

/** @returns JSON: times are microseconds from the first span on */
export function chromeTrace(processes: TracedProcess[]): string {
  const start = processes.reduce(
    (first, { spans }) => spans.reduce((least, { startMs }) => Math.min(least, startMs), first),
    Number.POSITIVE_INFINITY,
  );
  const events = processes.flatMap(({ name, spans }, pid) => [
    { ph: 'M', name: 'process_name', pid, tid: 0, args: { name } },
    ...[...Map.groupBy(spans, rowOf)].flatMap(([row, own], i) => eventsOf(row, own, pid, i, start)),
  ]);
  return `{"displayTimeUnit":"ms","traceEvents":[\n${events.map((event) => JSON.stringify(event)).join(',\n')}\n]}\n`;
}

const LANES = 100; // of a row

function eventsOf(row: string, spans: TracedSpan[], pid: number, index: number, start: number): object[] {
  const named = new Map<number, object>();
  const events = lanesOf(spans).map(({ span, lane }) => {
    const tid = index * LANES + Math.min(lane, LANES - 1) + 1;
    named.set(tid, { ph: 'M', name: 'thread_name', pid, tid, args: { name: lane === 0 ? row : `${row} ${lane + 1}` } });
    const { name, spanId, parentId, startMs, endMs, attributes } = span;
    const args = { ...attributes, span: spanId, ...(parentId !== null && { parent: parentId }) };
    return { ph: 'X', name, pid, tid, ts: 1000 * (startMs - start), dur: 1000 * (endMs - startMs), args };
  });
  return [...named.values(), ...events];
}

/** Each span in the first lane in which it is inside of what is under way, or after it. */
function lanesOf(spans: TracedSpan[]): { span: TracedSpan; lane: number }[] {
  const lanes: number[][] = []; // ends of what is under way, the innermost last
  const inOrder = [...spans].sort((a, b) => a.startMs - b.startMs || b.endMs - a.endMs);
  return inOrder.map((span) => {
    let lane = 0;
    for (; ; lane++) {
      const ends = lanes[lane] ?? [];
      lanes[lane] = ends;
      while (ends.length > 0 && ends.at(-1)! <= span.startMs) ends.pop();
      if (ends.length === 0 || span.endMs <= ends.at(-1)!) {
        ends.push(span.endMs);
        return { span, lane };
      }
    }
  });
}
