/** What nvidia-smi tells of this process's GPU: one process of it that goes on telling, beside the work. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';

const INTERVAL_SECONDS = 5;
/** After it has ended: a driver that is being replaced takes a while. */
const AGAIN_MS = 60_000;
const MIB = 1 << 20;

/** null: nvidia-smi does not know it of this GPU (such as of a part of one). */
export interface GpuReading {
  memoryUsedBytes: number | null;
  memoryTotalBytes: number | null;
  /** Part of the last sample period in which a kernel ran, 0 to 1. */
  utilisation: number | null;
}

const FIELDS = ['memory.used', 'memory.total', 'utilization.gpu'];

export class Gpu {
  /** null: there is none, or it has not been told of yet. */
  latest: GpuReading | null = null;
  /** As nvidia-smi takes it. */
  readonly id: string;
  private readonly over = new AbortController();

  /** @param env names the GPU: the first of CUDA_VISIBLE_DEVICES, by number or by name; "": none */
  constructor(env: NodeJS.ProcessEnv) {
    this.id = (env['CUDA_VISIBLE_DEVICES'] ?? '0').split(',')[0]!.trim();
    if (this.id !== '' && this.id !== '-1') void this.follow(env);
  }

  close(): void {
    this.over.abort();
  }

  private async follow(env: NodeJS.ProcessEnv): Promise<void> {
    const { signal } = this.over;
    const argv = [
      `--id=${this.id}`,
      `--query-gpu=${FIELDS}`,
      '--format=csv,noheader,nounits',
      `--loop=${INTERVAL_SECONDS}`,
    ];
    while (!signal.aborted) {
      const smi = spawn('nvidia-smi', argv, { stdio: ['ignore', 'pipe', 'ignore'], env, signal });
      createInterface({ input: smi.stdout }).on('line', (line) => {
        this.latest = readingOf(line);
      });
      try {
        await once(smi, 'exit');
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return; // no NVIDIA driver here
      }
      this.latest = null;
      await setTimeout(AGAIN_MS, undefined, { signal, ref: false }).catch(() => {});
    }
  }
}

/** "1024, 81559, 37" in MiB and per cent. null: something else, such as an error. */
export function readingOf(line: string): GpuReading | null {
  const cells = line.split(',').map((cell) => cell.trim());
  if (cells.length !== FIELDS.length) return null;
  const [used, total, utilisation] = cells.map((cell) => (/^\d+$/.test(cell) ? Number(cell) : null));
  return {
    memoryUsedBytes: used == null ? null : used * MIB,
    memoryTotalBytes: total == null ? null : total * MIB,
    utilisation: utilisation == null ? null : utilisation / 100,
  };
}
