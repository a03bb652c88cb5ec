/** What a worker's metrics tell of its state: looked at when they are scraped. */
import { oneOf, sampled } from '../core/instruments.ts';
import { WORKER_METRICS, type WorkerMetrics } from '../core/metrics.ts';
import type { Gpu } from './gpu.ts';
import type { Service } from './service.ts';

export interface Told {
  service: Pick<Service, 'progress' | 'readyShards' | 'rank'>;
  gpu: Gpu;
  /** Labels that name the worker, but for its rank; null before it has joined. */
  identity(): Record<'run' | 'member' | 'host' | 'device' | 'version', string> | null;
}

export function tellOfWorker(metrics: WorkerMetrics, { service, gpu, identity }: Told): void {
  sampled(metrics.state, () => oneOf(WORKER_METRICS.state.labels.state, service.progress.state));
  sampled(metrics.step, () => service.progress.step);
  sampled(metrics.generation, () => service.progress.generation);
  sampled(metrics.readyShards, () => service.readyShards);
  sampled(metrics.info, () => {
    const known = identity();
    return known === null ? [] : [[{ ...known, rank: `${service.rank ?? ''}` }, 1]];
  });
  const known = (value: number | null | undefined) => (value == null ? [] : [[{ gpu: gpu.id }, value] as const]);
  sampled(metrics.gpuMemoryUsed, () => known(gpu.latest?.memoryUsedBytes));
  sampled(metrics.gpuMemoryTotal, () => known(gpu.latest?.memoryTotalBytes));
  sampled(metrics.gpuUtilisation, () => known(gpu.latest?.utilisation));
}
