/**
 * What a process does when, told to whoever listens: a span is a named piece of work, with the one that it is part of.
 *
 *     await within('step', () => trainStep(...), { root: true, attributes: { step } });
 *     const stop = onSpan((span) => write(span));
 *
 * Spans nest along awaits, and over the wire by W3C's traceparent (proto/calls.ts, proto/handlers.ts). While nobody listens
 * a span costs one comparison.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';

export type Attributes = Readonly<Record<string, string | number>>;

/** What a span is told by to those that are part of it. */
export interface SpanContext {
  /** 32 and 16 hexadecimal digits. */
  readonly traceId: string;
  readonly spanId: string;
  /** Whether its trace is one of those that leave for a collector. */
  readonly sampled: boolean;
  /** Whether it is another process's. */
  readonly remote: boolean;
}

/** One that has ended. */
export interface Span {
  readonly name: string;
  readonly context: SpanContext;
  /** What it is part of; null: it begins a trace. */
  readonly parent: SpanContext | null;
  /** Unix time, milliseconds with fractions, by this process's monotonic clock. */
  readonly startMs: number;
  readonly endMs: number;
  readonly attributes: Attributes;
  /** What it failed with; null: it did not. */
  readonly error: string | null;
}

export interface SpanOptions {
  attributes?: Attributes;
  /** It is part of nothing, whatever is under way. */
  root?: boolean;
  /** Of a span that begins a trace; default: false. */
  sampled?: boolean;
}

const current = new AsyncLocalStorage<SpanContext>();
const listeners = new Set<(span: Span) => void>();

/** @returns ends it */
export function onSpan(listener: (span: Span) => void): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** A span that has ended, in a thread of this process. */
export function tell(span: Span): void {
  for (const listener of listeners) listener(span);
}

/** Does some work as a span, from now until its promise settles. */
export function within<T>(name: string, work: () => Promise<T>, options?: SpanOptions): Promise<T> {
  return listeners.size === 0 ? work() : recorded(name, work, options);
}

async function recorded<T>(
  name: string,
  work: () => Promise<T>,
  { attributes = {}, root = false, sampled = false }: SpanOptions = {},
): Promise<T> {
  const parent = (root ? undefined : current.getStore()) ?? null;
  const context: SpanContext = {
    traceId: parent?.traceId ?? hex(16),
    spanId: hex(8),
    sampled: parent?.sampled ?? sampled,
    remote: false,
  };
  const startMs = nowMs();
  let error: string | null = null;
  try {
    return await current.run(context, work);
  } catch (thrown) {
    error = thrown instanceof Error ? thrown.message : String(thrown);
    throw thrown;
  } finally {
    tell({ name, context, parent, startMs, endMs: nowMs(), attributes, error });
  }
}

/** The span under way, for another process or thread; null: none, or nobody listens. */
export function traceparent(): string | null {
  const context = listeners.size === 0 ? undefined : current.getStore();
  return context === undefined ? null : `00-${context.traceId}-${context.spanId}-${context.sampled ? '01' : '00'}`;
}

const TRACEPARENT = /^00-(?!0{32})([\da-f]{32})-(?!0{16})([\da-f]{16})-([\da-f]{2})$/;

/** Does some work as a part of another process's span. One that cannot be read is none. */
export function following<T>(header: () => string | undefined, work: () => T): T {
  if (listeners.size === 0) return work();
  const [, traceId, spanId, flags] = TRACEPARENT.exec(header() ?? '') ?? [];
  if (traceId === undefined) return work();
  const sampled = (Number.parseInt(flags!, 16) & 1) === 1;
  return current.run({ traceId, spanId: spanId!, sampled, remote: true }, work);
}

function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

function hex(bytes: number): string {
  return randomBytes(bytes).toString('hex');
}
