/**
 * TensorFlow in a thread of its own: a session run blocks its thread, and whoever serves gRPC must not block.
 *
 * Everything about the device is here: which GPU, how many threads, how memory grows. TensorFlow reads these from the
 * environment when it loads, which is when the first Device of the process opens. Not run on a GPU yet: see
 * docs/how-it-works.md.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { asBraidError, BraidError, type ErrorCode } from '../core/errors.ts';
import { within } from '../core/spans.ts';
import type { Phase } from './phases.ts';
import type { Program, ProgramOptions } from './program.ts';

export type { Program, ProgramOptions, Role } from './program.ts';

export interface DeviceOptions extends ProgramOptions {
  /** TensorFlow's intra-operation threads: for the whole process, fixed by the first Device. */
  threads: number;
}

/** Typed arrays over SharedArrayBuffers reach the thread without a copy. */
export type Feed = Float32Array | Int32Array | Uint8Array | number;

export interface RunRequest {
  id: number;
  phase: Phase;
  feeds: Record<string, Feed>;
  into: Record<string, Float32Array>;
}

export type ThreadMessage =
  | { kind: 'ready'; program: Program }
  | { kind: 'result'; id: number; results: Record<string, Float32Array>; seconds: number; tensors: number }
  | { kind: 'failure'; id: number | null; code: ErrorCode; message: string; remedy: string };

interface Pending {
  resolve(results: Record<string, Float32Array>): void;
  reject(error: BraidError): void;
  into: Record<string, Float32Array>;
  phase: Phase;
}

/** Two inter-operation threads let a second session of the process run while the first waits; none is ever busy alone. */
const INTER_OP_THREADS = 2;

/** Of the thread's JavaScript, which captures once and then passes messages on: more would only be kept. */
const YOUNG_GENERATION_MB = 6;

/** What became of a run. */
export interface RunReport {
  phase: Phase;
  /** In the session, without the wait for it. */
  seconds: number;
  /** That TensorFlow holds for the thread afterwards. */
  tensors: number;
}

export class Device {
  readonly program: Program;
  /** Told of every run that went well. */
  onRun: (report: RunReport) => void = () => {};
  private readonly thread: Worker;
  private readonly pending = new Map<number, Pending>();
  private nextId = 1;
  /** Why no more runs are taken. */
  private ended: BraidError | null = null;

  private constructor(thread: Worker, program: Program) {
    this.thread = thread;
    this.program = program;
    thread.on('message', (message: ThreadMessage) => this.receive(message));
    thread.on('error', (cause) =>
      this.end(new BraidError('DEVICE', `the device thread died: ${cause.message}`, { cause })),
    );
    thread.on('exit', (code) => this.end(new BraidError('DEVICE', `the device thread ended with code ${code}`)));
  }

  /**
   * Captures the role's program and loads it.
   * @throws BraidError CAPTURE or DEVICE
   */
  static async open({ threads, ...options }: DeviceOptions): Promise<Device> {
    // Set here, not in the thread: a thread's environment is a copy, and TensorFlow reads the process's.
    process.env.TF_NUM_INTRAOP_THREADS ??= String(threads);
    process.env.TF_NUM_INTEROP_THREADS ??= String(INTER_OP_THREADS);
    process.env.TF_FORCE_GPU_ALLOW_GROWTH ??= 'true';
    process.env.TF_CPP_MIN_LOG_LEVEL ??= '2';
    const thread = new Worker(new URL('./device-thread.ts', import.meta.url), {
      workerData: options,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    });
    try {
      const program = await new Promise<Program>((resolve, reject) => {
        thread.once('message', (message: ThreadMessage) =>
          message.kind === 'ready' ? resolve(message.program) : reject(failureOf(message)),
        );
        thread.once('error', (cause) => reject(asBraidError(cause, 'DEVICE')));
        thread.once('exit', (code) => reject(new BraidError('DEVICE', `the device thread ended with code ${code}`)));
      });
      return new Device(thread, program);
    } catch (error) {
      await thread.terminate();
      throw error;
    }
  }

  /**
   * Runs one phase; runs of one Device are in the order of their calls.
   * @param into where results go, by name, instead of fresh arrays: over SharedArrayBuffers, the gradient at a multiple of 64 bytes
   */
  run(
    phase: Phase,
    feeds: Record<string, Feed>,
    into: Record<string, Float32Array> = {},
  ): Promise<Record<string, Float32Array>> {
    return within('session', () => this.send(phase, feeds, into), { attributes: { phase } });
  }

  /** Ends the thread; runs under way are rejected. May be called again. */
  async close(): Promise<void> {
    this.end(new BraidError('DEVICE', 'the device is closed'));
    await this.thread.terminate();
  }

  private send(
    phase: Phase,
    feeds: Record<string, Feed>,
    into: Record<string, Float32Array>,
  ): Promise<Record<string, Float32Array>> {
    if (this.ended !== null) return Promise.reject(this.ended);
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, into, phase });
      this.thread.postMessage({ id, phase, feeds, into } satisfies RunRequest);
    });
  }

  private receive(message: ThreadMessage): void {
    if (message.kind === 'ready') return;
    const pending = this.pending.get(message.id ?? -1);
    this.pending.delete(message.id ?? -1);
    if (pending === undefined) return;
    if (message.kind === 'failure') {
      pending.reject(failureOf(message));
      return;
    }
    const { results, seconds, tensors } = message;
    this.onRun({ phase: pending.phase, seconds, tensors });
    pending.resolve({ ...results, ...pending.into });
  }

  private end(reason: BraidError): void {
    this.ended ??= reason;
    for (const { reject } of this.pending.values()) reject(this.ended);
    this.pending.clear();
  }
}

/** What NVIDIA's driver knows of each GPU of this machine, by index. */
const GPU_FOLDER = '/proc/driver/nvidia/gpus';

/** The models of this machine's GPUs, by index; empty where there are none. */
export function gpuModels(): string[] {
  try {
    return readdirSync(GPU_FOLDER)
      .sort()
      .map((gpu) => /Model:\s*(.*)/.exec(readFileSync(join(GPU_FOLDER, gpu, 'information'), 'utf8'))?.[1] ?? 'GPU');
  } catch {
    return [];
  }
}

/**
 * The GPUs that this process may see, as CUDA_VISIBLE_DEVICES calls them: by index, or "GPU-..." and "MIG-..." by UUID. As CUDA
 * does, it stops at the first that is not there: "" and "-1" hide all.
 */
export function visibleGpus(chosen = process.env.CUDA_VISIBLE_DEVICES, models = gpuModels()): string[] {
  if (chosen === undefined) return models.map((_, index) => String(index));
  const names = models.length === 0 ? [] : chosen.split(',').map((name) => name.trim());
  const isThere = (name: string) => (/^\d+$/.test(name) ? Number(name) < models.length : /^(GPU|MIG)-/.test(name));
  const end = names.findIndex((name) => !isThere(name));
  return end === -1 ? names : names.slice(0, end);
}

/** Whether this process computes on the CPU. */
export function isOnCpu(): boolean {
  return visibleGpus().length === 0;
}

/** The environment of the `worker`th worker process of this machine: one GPU each, in turn; set before TensorFlow loads. */
export function environmentOf(worker: number, visible = visibleGpus()): Record<string, string> {
  return visible.length === 0 ? {} : { CUDA_VISIBLE_DEVICES: visible[worker % visible.length]! };
}

/** The device of this process: the first GPU that it may see, or the CPU. */
export function deviceName(visible = visibleGpus(), models = gpuModels()): string {
  const [first] = visible;
  return first === undefined ? 'CPU' : (models[Number(first)] ?? models[0] ?? 'GPU'); // a UUID: GPUs of a machine are alike
}

/** Memory that this process's device has left, in bytes; null: not known. The GPU's has not been run on one yet. */
export function availableBytes(): number | null {
  if (gpuModels().length === 0) return process.availableMemory();
  const gpu = process.env['CUDA_VISIBLE_DEVICES']?.split(',')[0] ?? '0';
  const query = ['--query-gpu=memory.free', '--format=csv,noheader,nounits', '-i', gpu];
  const { stdout } = spawnSync('nvidia-smi', query, { encoding: 'utf8' });
  const mebibytes = Number.parseInt(stdout ?? '', 10);
  return Number.isNaN(mebibytes) ? null : mebibytes * 2 ** 20;
}

function failureOf(message: ThreadMessage): BraidError {
  if (message.kind !== 'failure')
    return new BraidError('INTERNAL', `the device thread said ${message.kind} out of turn`);
  return new BraidError(message.code, message.message, { remedy: message.remedy });
}
