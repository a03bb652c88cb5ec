/** The worker processes of `braid train`, and the folder with the sockets between them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { environmentOf } from '../nn/device.ts';

const GRACE_MS = 5_000; // for a worker to leave by itself, once told
const LOG_TAIL_LINES = 15;
/** A worker that has died while training is started again, so soon and so often. */
const RESTART_MS = 500;
const RESTARTS = 10;

const MAIN = new URL('./main.ts', import.meta.url).pathname;

export class LocalWorkers {
  readonly coordinatorAddress: string;
  /** Aborted when a worker ends before all have joined, with its last words. */
  readonly diedEarly: AbortSignal;
  private readonly count: number;
  private readonly threads: number;
  /** Folder of --tls. */
  private readonly tls: string | undefined;
  private readonly folder: string;
  private readonly early = new AbortController();
  private readonly children: ChildProcess[] = [];
  private complete = false;
  private over = false;
  private restarts = 0;

  constructor({ count, threads, tls }: { count: number; threads: number; tls?: string | undefined }) {
    this.count = count;
    this.tls = tls;
    this.threads = threads;
    this.folder = mkdtempSync(join(tmpdir(), 'braid-'));
    this.coordinatorAddress = `unix:${join(this.folder, 'coordinator')}`;
    this.diedEarly = this.early.signal;
  }

  /** @param logs where each worker's log goes */
  start(logs: string): void {
    for (let i = 0; i < this.count; i++) this.spawn(i, join(logs, `worker-${i}.log`));
  }

  /** From now on the coordinator watches them itself. */
  joined(): void {
    this.complete = true;
  }

  /** Waits for the workers to end, ends those that do not, and removes the sockets. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.over = true;
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

  private spawn(i: number, file: string): void {
    const log = openSync(file, 'a');
    const { coordinatorAddress, threads, folder, tls } = this;
    const flags = {
      coordinator: coordinatorAddress,
      threads: String(threads),
      folder,
      ...(tls !== undefined && { tls }),
    };
    const argv = Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, value]);
    // The ipc channel tells a worker when this process is gone, however it went. Its temporary files go into the folder
    // that is removed in the end, so that a worker that is killed leaves none either.
    const child = spawn(process.execPath, [MAIN, 'worker', ...argv], {
      stdio: ['ignore', log, log, 'ipc'],
      detached: true,
      env: { ...process.env, TMPDIR: folder, ...environmentOf(i) },
    });
    closeSync(log);
    child.once('exit', (code, signal) => this.onExit(i, file, code, signal));
    this.children[i] = child;
  }

  private onExit(i: number, file: string, code: number | null, signal: NodeJS.Signals | null): void {
    if (this.over || code === 0) return;
    if (this.complete) {
      if (this.restarts++ < RESTARTS) setTimeout(() => this.over || this.spawn(i, file), RESTART_MS);
      return;
    }
    const how = signal ?? `code ${code}`;
    const tail = readFileSync(file, 'utf8').trimEnd().split('\n').slice(-LOG_TAIL_LINES).join('\n  ');
    this.early.abort(
      new BraidError('WORKER_LOST', `worker process ${i} ended (${how}) before all workers had joined:\n  ${tail}`, {
        remedy: `Its whole log is ${file}; npx braid doctor checks this machine.`,
      }),
    );
  }
}
