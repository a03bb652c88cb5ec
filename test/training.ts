/** For tests that train: temporary folders, small data sets, and `braid` as a real process. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { stringify } from 'yaml';
import { decodeSafetensors } from '../nn/safetensors.ts';
import type { TensorMap } from '../nn/variables.ts';

const MAIN = new URL('../cli/main.ts', import.meta.url).pathname;

export interface Folder extends AsyncDisposable {
  path: string;
  /** @returns the file's path */
  write(name: string, bytes: Uint8Array | string): string;
}

export function temporaryFolder(): Folder {
  const path = mkdtempSync(join(tmpdir(), 'braid-test-'));
  return {
    path,
    write(name, bytes) {
      const file = join(path, name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, bytes);
      return file;
    },
    async [Symbol.asyncDispose]() {
      rmSync(path, { recursive: true, force: true });
    },
  };
}

export function writeRecipe(folder: Folder, recipe: object): string {
  return folder.write('recipe.yaml', stringify(recipe));
}

/** Rows of the CIFAR-10 or CIFAR-100 binary format. @param images u8[n, 32, 32, 3] */
export function cifarRows({ images, labels }: { images: Uint8Array; labels: Int32Array }, hundred: boolean): Buffer {
  const pixels = 32 * 32;
  const rows = Array.from(labels, (label, n) => {
    const row = Buffer.alloc((hundred ? 2 : 1) + 3 * pixels);
    row[hundred ? 1 : 0] = label;
    for (let p = 0; p < pixels; p++) {
      for (let c = 0; c < 3; c++) row[row.length - (3 - c) * pixels + p] = images[(n * pixels + p) * 3 + c]!;
    }
    return row;
  });
  return Buffer.concat(rows);
}

/** A learnable data set of idx files: each class brightens its quadrant; 8x8 grey, with noise. */
export function writePatterns(folder: Folder, train: number, test: number): string {
  const size = 8;
  const classes = 4;
  const write = (prefix: string, count: number) => {
    const images = Buffer.alloc(16 + count * size * size);
    for (const [i, word] of [0x803, count, size, size].entries()) images.writeUInt32BE(word, 4 * i);
    const labels = Buffer.alloc(8 + count);
    for (const [i, word] of [0x801, count].entries()) labels.writeUInt32BE(word, 4 * i);
    for (let i = 0; i < count; i++) {
      const label = i % classes;
      labels[8 + i] = label;
      for (let p = 0; p < size * size; p++) {
        const noise = Math.abs(Math.imul(i * size * size + p + 1, 2654435761)) % 60;
        const quadrant = 2 * Math.floor(p / ((size * size) / 2)) + (Math.floor(p / (size / 2)) & 1);
        images[16 + i * size * size + p] = noise + (quadrant === label ? 150 : 0);
      }
    }
    folder.write(`data/${prefix}-images-idx3-ubyte`, images);
    folder.write(`data/${prefix}-labels-idx1-ubyte`, labels);
  };
  write('train', train);
  write('t10k', test);
  return join(folder.path, 'data');
}

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

  /** @param temporary where its sockets and other temporary files go; default: where everybody's go */
  constructor(argv: string[], { command = 'train', temporary = tmpdir() } = {}) {
    this.argv = argv;
    const env = { ...process.env, TMPDIR: temporary };
    this.child = spawn(process.execPath, [MAIN, command, ...argv], { stdio: ['ignore', 'pipe', 'pipe'], env });
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

export function readTensors(file: string): TensorMap {
  return decodeSafetensors(readFileSync(file), file).tensors as TensorMap;
}
