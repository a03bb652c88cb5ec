/** `braid` as a real process, and what it prints. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const MAIN = new URL('../cli/main.ts', import.meta.url).pathname;

export interface Training {
  code: number | null;
  signal: NodeJS.Signals | null;
  output: string;
  /** The run's folder, under --runs. */
  run: string;
}

/** `braid train ...` under way. */
export class TrainProcess {
  readonly child: ChildProcess;
  output = '';
  private readonly argv: string[];
  private readonly exit: Promise<unknown[]>;

  /**
   * @param temporary where its sockets and other temporary files go; default: where everybody's go
   * @param before a shell command that sets limits for it
   */
  constructor(argv: string[], { command = 'train', temporary = tmpdir(), before = '' } = {}) {
    this.argv = argv;
    const env = { ...process.env, TMPDIR: temporary };
    const own = [process.execPath, MAIN, command, ...argv];
    const [file, ...rest] = before === '' ? own : ['bash', '-c', `${before}; exec "$@"`, 'bash', ...own];
    this.child = spawn(file!, rest, { stdio: ['ignore', 'pipe', 'pipe'], env });
    for (const stream of [this.child.stdout!, this.child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.output += text;
      });
    }
    this.exit = once(this.child, 'close');
  }

  /** Resolves when the output has matched, or fails when the process ends without. */
  async printed(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.output)) {
      const ended = await Promise.race([
        once(this.child.stdout!, 'data').then(() => false),
        this.exit.then(() => true),
      ]);
      if (ended && !pattern.test(this.output)) throw new Error(`ended before ${pattern}:\n${this.output}`);
    }
  }

  async ended(): Promise<Training> {
    const [code, signal] = (await this.exit) as [number | null, NodeJS.Signals | null];
    const runs = this.argv[this.argv.indexOf('--runs') + 1] ?? '';
    let names: string[] = [];
    try {
      names = readdirSync(runs).sort();
    } catch {} // refused before anything was written
    return { code, signal, output: this.output, run: join(runs, names.at(-1) ?? '') };
  }

  /** Process ids of the workers, as the progress names them. */
  get workers(): number[] {
    return [...this.output.matchAll(/worker \d+ joined .* pid (\d+)/g)].map(([, pid]) => Number(pid));
  }
}

export function trainProcess(argv: string[], options: { temporary?: string } = {}): Promise<Training> {
  return new TrainProcess(argv, options).ended();
}
