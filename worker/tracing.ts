/** This worker's spans go to the collector that the recipe names, from the first Prepare on. */
import type { Log } from '../core/log.ts';
import type { Attributes } from '../core/spans.ts';

export class Tracing {
  private readonly log: Log;
  private endpoint: string | null = null;
  private stop: () => Promise<void> = async () => {};

  constructor(log: Log) {
    this.log = log;
  }

  /** @param endpoint null: nowhere */
  async to(endpoint: string | null, attributes: Attributes): Promise<void> {
    if (endpoint === this.endpoint) return;
    await this.close();
    this.endpoint = endpoint;
    if (endpoint === null) return;
    const { exportSpans } = await import('../proto/otlp.ts');
    this.stop = exportSpans({ endpoint, service: 'braid-worker', attributes, log: this.log });
  }

  /** What is left is sent. */
  async close(): Promise<void> {
    await this.stop();
    this.stop = async () => {};
  }
}
