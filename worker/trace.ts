/** This worker's spans for the coordinator's trace, kept from the first time that it asks for them until the next. */
import { onSpan } from '../core/spans.ts';
import type { TraceResponse } from '../proto/messages.ts';

/** Between two calls: about 2 MiB of answer. What comes after is left out. */
const KEPT_SPANS = 10_000;

export class TraceSpans {
  private spans: TraceResponse['spans'] = [];
  private stop: (() => void) | null = null;

  take(): TraceResponse {
    this.stop ??= onSpan(({ name, context, parent, startMs, endMs, attributes }) => {
      if (this.spans.length === KEPT_SPANS) return;
      const ids = { spanId: context.spanId, parentId: parent?.spanId ?? '' };
      this.spans.push({ name, ...ids, startMs, endMs, attributes: JSON.stringify(attributes) });
    });
    const { spans } = this;
    this.spans = [];
    return { nowMs: performance.timeOrigin + performance.now(), spans };
  }

  close(): void {
    this.stop?.();
  }
}
