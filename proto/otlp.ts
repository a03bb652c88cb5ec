/** Spans on their way to an OpenTelemetry collector: OTLP over gRPC, in batches, beside the work. */
import { type Attributes, SpanKind, SpanStatusCode, TraceFlags } from '@opentelemetry/api';
import { type ExportResult, ExportResultCode } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-grpc';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter } from '@opentelemetry/sdk-trace';
import type { Log } from '../core/log.ts';
import { onSpan, type Span, type SpanContext } from '../core/spans.ts';
import { VERSION } from './version.ts';

const BATCH_INTERVAL_MS = 1_000;
/** A collector that is slower than the run loses spans rather than holding it up. */
const QUEUED_SPANS = 1 << 14;
/** What is left at the end of a run is waited for no longer. */
const EXPORT_TIMEOUT_MS = 3_000;

export interface OtlpOptions {
  /** http://host:port, or https:// for TLS with what OTEL_EXPORTER_OTLP_CERTIFICATE and its like name. */
  endpoint: string;
  service: 'braid-coordinator' | 'braid-worker';
  /** Of the process. */
  attributes: Attributes;
  log: Log;
}

/** Sends every span of a sampled trace. @returns sends what is left, and ends it */
export function exportSpans({ endpoint, service, attributes, log }: OtlpOptions): () => Promise<void> {
  const resource = resourceFromAttributes({ 'service.name': service, 'service.version': VERSION, ...attributes });
  const processor = new BatchSpanProcessor({
    exporter: telling(new OTLPTraceExporter({ url: endpoint, timeoutMillis: EXPORT_TIMEOUT_MS }), endpoint, log),
    scheduledDelayMillis: BATCH_INTERVAL_MS,
    maxQueueSize: QUEUED_SPANS,
    exportTimeoutMillis: EXPORT_TIMEOUT_MS,
  });
  const stop = onSpan((span) => processor.onEnd({ ...readable(span), resource }));
  return async () => {
    stop();
    await processor.shutdown().catch(() => {}); // said already
  };
}

/** Says once that spans are lost. */
function telling(exporter: SpanExporter, endpoint: string, log: Log): SpanExporter {
  let said = false;
  return {
    export: (spans, done) =>
      exporter.export(spans, (result: ExportResult) => {
        if (result.code === ExportResultCode.FAILED && !said) {
          log.warn(`traces do not reach ${endpoint}, and are lost: ${result.error?.message ?? 'no answer'}`);
          said = true;
        }
        done(result);
      }),
    shutdown: () => exporter.shutdown(),
  };
}

function readable({ name, context, parent, startMs, endMs, attributes, error }: Span): Omit<ReadableSpan, 'resource'> {
  return {
    name,
    kind: parent?.remote ? SpanKind.SERVER : SpanKind.INTERNAL,
    spanContext: () => contextOf(context),
    ...(parent !== null && { parentSpanContext: { ...contextOf(parent), isRemote: parent.remote } }),
    startTime: timeOf(startMs),
    endTime: timeOf(endMs),
    duration: timeOf(endMs - startMs),
    status: error === null ? { code: SpanStatusCode.UNSET } : { code: SpanStatusCode.ERROR, message: error },
    attributes,
    links: [],
    events: [],
    ended: true,
    instrumentationScope: { name: 'braid' },
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
  };
}

function contextOf({ traceId, spanId, sampled }: SpanContext) {
  return { traceId, spanId, traceFlags: sampled ? TraceFlags.SAMPLED : TraceFlags.NONE };
}

/** Seconds and nanoseconds. */
function timeOf(ms: number): [number, number] {
  const seconds = Math.floor(ms / 1000);
  return [seconds, Math.round((ms - 1000 * seconds) * 1e6)];
}
