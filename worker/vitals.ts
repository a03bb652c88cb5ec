/** How this process is doing, for its signs of life: its memory, its GPU's, and how long its event loop was held up. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { StatusResponse } from '../proto/messages.ts';
import type { Gpu } from './gpu.ts';

export type Vitals = Pick<StatusResponse, 'residentBytes' | 'deviceBytes' | 'eventLoopLagSeconds'>;

const RESOLUTION_MS = 20;

/** @returns asks; the lag is the longest since it was asked last */
export function watchVitals(gpu: Gpu): { ask(): Vitals; close(): void } {
  const lag = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  lag.enable();
  return {
    ask() {
      const longestMs = lag.count === 0 ? 0 : Math.max(0, lag.max / 1e6 - RESOLUTION_MS);
      lag.reset();
      return {
        residentBytes: process.memoryUsage.rss(),
        deviceBytes: gpu.latest?.memoryUsedBytes ?? 0,
        eventLoopLagSeconds: longestMs / 1000,
      };
    },
    close: () => void lag.disable(),
  };
}
