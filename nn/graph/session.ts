/** A captured graph in a TensorFlow session: phases run by name. One thread uses a session; several sessions may live in several threads. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../../core/errors.ts';
import { trimHeaps } from '../../core/libc.ts';
import { alignedSharedBuffer } from '../../core/shared-buffer.ts';
import { DType, eagerBackend } from '../tensorflow.ts';
import type { FeedSpec, Graph, PhaseSpec } from './capture.ts';

export type Feed = Float32Array | Int32Array | Uint8Array | number;

/** How TensorFlow says that an allocation failed. */
const OUT_OF_MEMORY = /OOM when allocating|RESOURCE_EXHAUSTED|Resource ?Exhausted/i;

/** As f32 a NaN that no computation gives. */
const UNWRITTEN = 0x7fa5b41d;

const binding = eagerBackend.binding;

export class Session {
  private readonly graph: Graph;
  private id: number | null;
  /** Phases that have run, and so have been optimised. */
  private readonly optimised = new Set<string>();

  constructor(graph: Graph) {
    this.graph = graph;
    const folder = mkdtempSync(join(tmpdir(), 'braid-graph-'));
    try {
      writeFileSync(join(folder, 'saved_model.pb'), graph.model);
      this.id = binding.loadSavedModel(folder, 'serve');
    } catch (cause) {
      throw new BraidError('DEVICE', `TensorFlow refused the graph: ${(cause as Error).message}`, { cause });
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  /**
   * Runs one phase. Blocks the thread.
   * @param into where a result goes, by name, instead of a fresh array. What the graph writes itself must begin at a multiple
   *   of 64 bytes (core/shared-buffer.ts)
   * @throws BraidError DEVICE when a feed is missing or of another size (nothing ran), or when TensorFlow fails;
   *   OUT_OF_MEMORY when it lacks memory
   */
  run(
    phase: string,
    feeds: Record<string, Feed>,
    into: Record<string, Float32Array> = {},
  ): Record<string, Float32Array> {
    const spec = this.phase(phase);
    const arrays = spec.feeds.map((feed) => arrayOf(phase, feed, feeds[feed.name]));
    const written = spec.written.map(({ name, length }) => wordsOfWritten(phase, name, length, into[name]));
    const outputs = spec.fetches.map(({ node }) => `${node}:0`);
    if (spec.updates !== null) outputs.push(`${spec.updates}:0`);
    const inputs = [
      ...spec.feeds.map(({ shape, dtype }, i) => binding.createTensor(shape, dtype, arrays[i])),
      ...written.map((words) => binding.createTensor([words.length], DType.INT32, words)),
    ];
    try {
      const names = [...spec.feeds, ...spec.written].map(({ node }) => `${node}:0`).join();
      const tensors = binding.runSavedModel(this.id!, inputs, names, outputs.join());
      if (!this.optimised.has(phase)) {
        this.optimised.add(phase);
        trimHeaps();
      }
      try {
        const results: Record<string, Float32Array> = {};
        spec.fetches.forEach(({ name }, i) => {
          const values = binding.tensorDataSync(tensors[i]!.id) as Float32Array;
          into[name]?.set(values);
          results[name] = into[name] ?? values;
        });
        spec.written.forEach(({ name }, i) => {
          results[name] = into[name] ?? floatsIn(written[i]!);
          if (written[i]!.at(-1) === UNWRITTEN) throw new Error(`${name} must begin at a multiple of 64 bytes`);
        });
        return results;
      } finally {
        for (const { id } of tensors) binding.deleteTensor(id);
      }
    } catch (cause) {
      const { message } = cause as Error;
      const code = OUT_OF_MEMORY.test(message) ? 'OUT_OF_MEMORY' : 'DEVICE';
      throw new BraidError(code, `phase ${phase} failed: ${message}`, { cause });
    } finally {
      for (const id of inputs) binding.deleteTensor(id);
    }
  }

  /** That the addon holds: feeds and results which have not been given back. */
  get tensors(): number {
    return binding.getNumOfTensors();
  }

  close(): void {
    if (this.id !== null) binding.deleteSavedModel(this.id);
    this.id = null;
  }

  private phase(name: string): PhaseSpec {
    if (this.id === null) throw new BraidError('DEVICE', `phase ${name} of a session that is closed`);
    const spec = this.graph.phases[name];
    if (spec === undefined) {
      throw new BraidError('DEVICE', `no phase ${name}: the graph has ${Object.keys(this.graph.phases).join(', ')}`);
    }
    return spec;
  }
}

/** Checked here: a session run that fails inside TensorFlow leaks what was fed. */
function arrayOf(phase: string, feed: FeedSpec, value: Feed | undefined): Float32Array | Int32Array {
  const { name, shape, dtype, bytes } = feed;
  const refuse = (found: string): never => {
    const expected = bytes === undefined ? `${dtype === DType.FLOAT ? 'f32' : 'i32'}[${shape}]` : `${bytes} bytes`;
    throw new BraidError('DEVICE', `phase ${phase} takes ${expected} as ${name}, not ${found}`);
  };
  if (value === undefined) return refuse('nothing');
  if (typeof value === 'number') {
    if (shape.length > 0) refuse(`the number ${value}`);
    return dtype === DType.FLOAT ? Float32Array.of(value) : Int32Array.of(value);
  }
  const length = shape.reduce((a, b) => a * b, 1);
  if (bytes !== undefined) {
    if (!(value instanceof Uint8Array) || value.length !== bytes) refuse(`${value.constructor.name}[${value.length}]`);
    return wordsOf(value as Uint8Array, length);
  }
  const TypedArray = dtype === DType.FLOAT ? Float32Array : Int32Array;
  if (!(value instanceof TypedArray) || value.length !== length) refuse(`${value.constructor.name}[${value.length}]`);
  return value as Float32Array | Int32Array;
}

/** Memory that the graph writes. TensorFlow would write a copy of what it cannot use, so the end is marked. */
function wordsOfWritten(phase: string, name: string, length: number, into: Float32Array | undefined): Int32Array {
  if (into !== undefined && into.length !== length) {
    throw new BraidError('DEVICE', `phase ${phase} writes f32[${length}] as ${name}, not ${into.length} elements`);
  }
  const words =
    into === undefined
      ? new Int32Array(alignedSharedBuffer(4 * length), 0, length)
      : new Int32Array(into.buffer, into.byteOffset, length);
  words[length - 1] = UNWRITTEN;
  return words;
}

function floatsIn({ buffer, byteOffset, length }: Int32Array): Float32Array {
  return new Float32Array(buffer, byteOffset, length);
}

/** The same memory as i32 words where it can be; a padded copy where it ends or begins between words. */
function wordsOf(bytes: Uint8Array, words: number): Int32Array {
  if (bytes.byteOffset % 4 === 0 && bytes.length % 4 === 0)
    return new Int32Array(bytes.buffer, bytes.byteOffset, words);
  const padded = new Uint8Array(words * 4);
  padded.set(bytes);
  return new Int32Array(padded.buffer);
}
