/**
 * What a coordinator tells: its metrics, what it knows of its workers, and what happened last. Of its workers it tells under the
 * names that these give a Prometheus themselves.
 */
import { parseExposition, type Scraped } from './exposition.ts';

export interface Told {
  run: string;
  metrics: string;
  events: string[];
  members: Member[];
}

interface Member {
  host: string;
  pid: number;
  status?: { step: number; generation: number; residentBytes: number; readyShards: number };
}

export function toldBy({ run, metrics, events, members }: Told) {
  return {
    run,
    scraped: [...parseExposition(metrics), ...members.flatMap(scrapedOf)],
    events: events.map((event) => {
      const [at = '', ...words] = event.split(' ');
      return { at, text: words.join(' ') };
    }),
  };
}

function scrapedOf({ host, pid, status }: Member): Scraped[] {
  if (status == null) return [];
  const { step, generation, residentBytes, readyShards } = status;
  const values = {
    braid_worker_step: step,
    braid_worker_generation: generation,
    braid_worker_ready_shards: readyShards,
    process_resident_memory_bytes: residentBytes,
  };
  const labels = { instance: `${host}, pid ${pid}` };
  return Object.entries(values).map(([metric, value]) => ({ metric, labels, value }));
}
