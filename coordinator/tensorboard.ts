/**
 * A run for TensorBoard: an event file beside metrics.jsonl, for `tensorboard --logdir runs`.
 *
 * tfjs-node's own writer needs TensorFlow's eager operations in the coordinator's thread, which must not block, and which in
 * `split` would meet those of the method's thread: two of them in one process crash it. The format is small: TFRecords
 * (tensorflow/core/lib/io/record_writer.h) of Event messages (tensorflow/core/util/event.proto), scalars alone.
 */
import { appendFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { maskedCrc32c } from '../input/crc32c.ts';

/** By tag: "train/learning_rate". */
export type Scalars = Record<string, number>;

/** Field numbers of Event, Summary, Summary.Value and SessionLog, and the version that readers know. */
const WALL_TIME = 1;
const STEP = 2;
const FILE_VERSION = 3;
const SUMMARY = 5;
const SESSION_LOG = 7;
const VALUE = 1;
const TAG = 1;
const SIMPLE_VALUE = 2;
const SESSION_STATUS = 1;
const SESSION_START = 1;
const VERSION = 'brain.Event:2';

export class EventFile {
  private readonly file: string;
  private readonly clock: () => Date;
  private begun = false;

  /** Nothing is written before the first event. @param folder the run's */
  constructor(folder: string, clock: () => Date) {
    const seconds = Math.floor(clock().getTime() / 1000);
    this.file = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}`);
    this.clock = clock;
  }

  /** Training goes on from after `step` steps: what any file of the folder has of later ones is no longer so. */
  goTo(step: number): void {
    this.write(step + 1, field(SESSION_LOG, varint(SESSION_STATUS, SESSION_START)));
  }

  /** @param step how many were done */
  scalars(step: number, scalars: Scalars): void {
    const values = Object.entries(scalars).map(([tag, value]) =>
      field(VALUE, Buffer.concat([field(TAG, Buffer.from(tag)), float(SIMPLE_VALUE, value)])),
    );
    this.write(step, field(SUMMARY, Buffer.concat(values)));
  }

  private write(step: number, what: Buffer): void {
    const time = double(WALL_TIME, this.clock().getTime() / 1000);
    const records = [record(Buffer.concat([time, varint(STEP, step), what]))];
    if (!this.begun) records.unshift(record(Buffer.concat([time, field(FILE_VERSION, Buffer.from(VERSION))])));
    this.begun = true;
    try {
      appendFileSync(this.file, Buffer.concat(records)); // short and rare, as the journal's lines
    } catch (cause) {
      throw new BraidError('SETUP', `cannot write ${this.file}: ${(cause as Error).message}`, {
        remedy: 'Make room on the disk; then go on with --resume.',
        cause,
      });
    }
  }
}

/** u64 length, its CRC, the data, their CRC. */
function record(data: Buffer): Buffer {
  const framed = Buffer.alloc(8 + 4 + data.length + 4);
  framed.writeBigUInt64LE(BigInt(data.length));
  framed.writeUInt32LE(maskedCrc32c(framed.subarray(0, 8)), 8);
  data.copy(framed, 12);
  framed.writeUInt32LE(maskedCrc32c(data), 12 + data.length);
  return framed;
}

// Protocol Buffers' wire format: a field's number and type, then its value.

function varint(number: number, value: number): Buffer {
  return Buffer.from([...digits(number << 3), ...digits(value)]);
}

function double(number: number, value: number): Buffer {
  const buffer = Buffer.alloc(9, (number << 3) | 1);
  buffer.writeDoubleLE(value, 1);
  return buffer;
}

function field(number: number, bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from([...digits((number << 3) | 2), ...digits(bytes.length)]), bytes]);
}

function float(number: number, value: number): Buffer {
  const buffer = Buffer.alloc(5, (number << 3) | 5);
  buffer.writeFloatLE(value, 1);
  return buffer;
}

/** Base 128, the lowest first. */
function digits(value: number): number[] {
  return value < 128 ? [value] : [(value % 128) | 128, ...digits(Math.floor(value / 128))];
}
