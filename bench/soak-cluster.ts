/** The processes of a soak: a coordinator that is started again when it ends, and workers behind proxies. */
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { type Connection, connect } from '../proto/calls.ts';
import { coordinatorService } from '../proto/load.ts';
import type { CoordinatorService, WatchResponse } from '../proto/messages.ts';
import { type Training, TrainProcess } from '../rig/braid-process.ts';
import { freePort } from '../rig/free-port.ts';
import { journalSteps } from '../rig/journal.ts';
import type { Script } from '../rig/proxy.ts';
import { Workers } from '../rig/workers.ts';

export const PLACES = 3;

const RESTART_MS = 300;
const WATCH_TIMEOUT_MS = 1_000;
/** Of a run's last checkpoint and good-byes. */
const END_MS = 120_000;
const KEPT_OUTPUT_CHARS = 3000;

export interface ClusterOptions {
  recipe: string;
  /** Where the run's folder goes. */
  runs: string;
  script(place: number): Script;
  /** The coordinator has ended by itself, and dismissed all workers. */
  onAnew(): void;
  say(line: string): void;
}

export class SoakCluster {
  readonly workers: Workers;
  coordinator: TrainProcess;
  /** Processes that nobody has killed and that ended all the same, with their last words. */
  readonly fallen: string[] = [];
  coordinatorStarts = 0;
  workerRestarts = 0;
  /** Committed steps that a coordinator which came back did not find, and did again. */
  stepsRedone = 0;
  private readonly options: ClusterOptions;
  private readonly address: string;
  private readonly client: Connection<CoordinatorService>;
  private ending = false;

  private constructor(options: ClusterOptions, address: string) {
    this.options = options;
    this.address = address;
    this.client = connect(coordinatorService, address, { peer: 'the coordinator' });
    this.workers = new Workers({
      coordinator: address,
      script: options.script,
      onEnded: (place, how) => {
        this.workerRestarts++;
        if (how.signal !== 'SIGKILL') this.note(`the worker of place ${place}`, how);
      },
    });
    this.coordinator = this.begin(false);
  }

  /** Returns when training begins. */
  static async start(options: ClusterOptions): Promise<SoakCluster> {
    const cluster = new SoakCluster(options, `127.0.0.1:${await freePort()}`);
    await cluster.coordinator.printed(/coordinator on \S+,/);
    for (let place = 0; place < PLACES; place++) await cluster.workers.start(place);
    await cluster.coordinator.printed(/^training /m);
    return cluster;
  }

  get runFolder(): string {
    return join(this.options.runs, 'soak');
  }

  /** What `braid status` shows; null while there is no coordinator. */
  async watch(): Promise<WatchResponse | null> {
    try {
      return await this.client.watch({}, { signal: new AbortController().signal, timeoutMs: WATCH_TIMEOUT_MS });
    } catch {
      return null;
    }
  }

  /** Ends the run in good order. @returns how the coordinator ended */
  async end(): Promise<Training> {
    this.ending = true;
    this.workers.dismiss();
    const { coordinator } = this;
    coordinator.child.kill('SIGTERM');
    const late = AbortSignal.timeout(END_MS);
    late.addEventListener('abort', () => coordinator.child.kill('SIGKILL'));
    const ended = await coordinator.ended();
    const stragglers = await Promise.race([
      Promise.all(this.workers.processes.map((worker) => worker.ended())),
      setTimeout(END_MS, null, { ref: false }),
    ]);
    if (stragglers === null) this.fallen.push('workers did not end when they were dismissed');
    return ended;
  }

  async close(): Promise<void> {
    this.ending = true;
    const { child } = this.coordinator;
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
    this.client.close();
    await this.workers.close();
  }

  private begin(resume: boolean): TrainProcess {
    const { recipe, runs } = this.options;
    const argv = [recipe, '--runs', runs, '--listen', this.address, ...(resume ? ['--resume'] : [])];
    const coordinator = new TrainProcess(argv, { command: 'coordinator' });
    this.coordinatorStarts++;
    void coordinator.ended().then((how) => this.again(how));
    return coordinator;
  }

  /** Somebody starts the coordinator again, and workers that it has dismissed. */
  private async again(how: Training): Promise<void> {
    if (this.ending) return;
    if (how.signal !== 'SIGKILL') {
      this.note('the coordinator', how);
      this.options.onAnew();
    }
    const committed = journalSteps(this.runFolder).length;
    await setTimeout(RESTART_MS);
    if (this.ending) return;
    this.coordinator = this.begin(true);
    const { coordinator } = this;
    await coordinator.printed(/coordinator on \S+,/).catch(() => {}); // its end is noted
    for (const [place, { child }] of this.workers.processes.entries()) {
      if (child.exitCode === 0) await this.workers.start(place);
    }
    await coordinator.printed(/^training /m).catch(() => {}); // it may be killed before
    const from = /^training .*, from step (\d+) on/m.exec(coordinator.output)?.[1];
    if (from !== undefined) this.stepsRedone += Math.max(0, committed - Number(from));
  }

  private note(who: string, { code, signal, output }: Training): void {
    const words = `${who} ended with ${signal ?? code}: ${output.trim().slice(-KEPT_OUTPUT_CHARS)}`;
    this.fallen.push(words);
    this.options.say(`soak: ${words}`);
  }
}
