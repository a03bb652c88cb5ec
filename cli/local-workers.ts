/** The worker processes of `braid train`, and the folder with the sockets between them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { gpuModels } from '../nn/device.ts';

const GRACE_MS = 5_000; // for a worker to leave by itself, once told
const LOG_TAIL_LINES = 15;

const MAIN = new URL('./main.ts', import.meta.url).pathname;

export class LocalWorkers {
  readonly coordinatorAddress: string;
  /** Aborted when a worker ends before all have joined, with its last words. */
  readonly diedEarly: AbortSignal;
  private readonly count: number;
  private readonly threads: number;
  private readonly folder: string;
  private readonly early = new AbortController();
  private readonly children: ChildProcess[] = [];
  private complete = false;

  constructor({ count, threads }: { count: number; threads: number }) {
    this.count = count;
    this.threads = threads;
    this.folder = mkdtempSync(join(tmpdir(), 'braid-'));
    this.coordinatorAddress = `unix:${join(this.folder, 'coordinator')}`;
    this.diedEarly = this.early.signal;
  }

  /** @param logs where each worker's log goes */
  start(logs: string): void {
    for (let i = 0; i < this.count; i++) {
      const file = join(logs, `worker-${i}.log`);
      const log = openSync(file, 'a');
      // The ipc channel tells a worker when this process is gone, however it went. Its temporary files go into the folder
      // that is removed in the end, so that a worker that is killed leaves none either.
      const child = spawn(
        process.execPath,
        [
          MAIN,
          'worker',
          '--coordinator',
          this.coordinatorAddress,
          '--threads',
          String(this.threads),
          '--folder',
          this.folder,
        ],
        {
          stdio: ['ignore', log, log, 'ipc'],
          detached: true,
          env: { ...process.env, TMPDIR: this.folder, ...gpuOf(i) },
        },
      );
      closeSync(log);
      child.once('exit', (code, signal) => this.onExit(i, file, signal ?? `code ${code}`));
      this.children.push(child);
    }
  }

  /** From now on the coordinator watches them itself. */
  joined(): void {
    this.complete = true;
  }

  /** Waits for the workers to end, ends those that do not, and removes the sockets. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.complete = true;
    const alive = this.children.filter((child) => child.exitCode === null && child.signalCode === null);
    for (const child of alive) if (child.connected) child.disconnect();
    const kill = setTimeout(() => {
      for (const child of alive) child.kill('SIGKILL');
    }, GRACE_MS);
    await Promise.all(
      alive.map((child) => (child.exitCode === null && child.signalCode === null ? once(child, 'exit') : null)),
    );
    clearTimeout(kill);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private onExit(i: number, file: string, how: string): void {
    if (this.complete) return;
    const tail = readFileSync(file, 'utf8').trimEnd().split('\n').slice(-LOG_TAIL_LINES).join('\n  ');
    this.early.abort(
      new BraidError('WORKER_LOST', `worker process ${i} ended (${how}) before all workers had joined:\n  ${tail}`, {
        remedy: `Its whole log is ${file}; npx braid doctor checks this machine.`,
      }),
    );
  }
}

/** One GPU a worker, as far as there are GPUs; set before TensorFlow loads, since the addon cannot choose one. */
function gpuOf(worker: number): Record<string, string> {
  const gpus = gpuModels().length;
  return gpus === 0 ? {} : { CUDA_VISIBLE_DEVICES: String(worker % gpus) };
}
