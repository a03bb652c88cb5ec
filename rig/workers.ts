/** Worker processes behind proxies, and somebody who starts another where one has ended. */
import { setTimeout } from 'node:timers/promises';
import { type Training, TrainProcess } from './braid-process.ts';
import { FaultProxy, type Script } from './proxy.ts';

const RESTART_MS = 300;
const REJOIN_SECONDS = 60;

export interface WorkersOptions {
  /** Address of the coordinator. */
  coordinator: string;
  /** By place, from 0. */
  script(place: number): Script;
  /** One has ended by itself, or been killed; another is on its way. */
  onEnded?(place: number, how: Training): void;
}

export class Workers {
  /** The latest of each place. */
  readonly proxies: FaultProxy[] = [];
  readonly processes: TrainProcess[] = [];
  private readonly options: WorkersOptions;
  private readonly all: TrainProcess[] = [];
  private over = false;

  constructor(options: WorkersOptions) {
    this.options = options;
  }

  async start(place: number): Promise<void> {
    const { coordinator, script, onEnded } = this.options;
    const proxy = new FaultProxy(coordinator, script(place));
    this.proxies[place]?.close();
    this.proxies[place] = proxy;
    await proxy.open();
    if (this.over) return proxy.close();
    const argv = ['--coordinator', proxy.address, '--threads', '1', '--rejoin-seconds', `${REJOIN_SECONDS}`];
    const worker = new TrainProcess(argv, { command: 'worker' });
    this.processes[place] = worker;
    this.all.push(worker);
    void worker.ended().then(async (how) => {
      if (this.over || how.code === 0) return;
      onEnded?.(place, how);
      await setTimeout(RESTART_MS);
      if (!this.over) await this.start(place);
    });
  }

  /** Nobody is started any more. */
  dismiss(): void {
    this.over = true;
  }

  async close(): Promise<void> {
    this.dismiss();
    for (const { child } of this.all) if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
    await Promise.all(this.all.map((worker) => worker.ended()));
    for (const proxy of this.proxies) proxy.close();
  }
}
