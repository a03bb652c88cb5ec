/**
 * Long payloads as Parts and back.
 *
 *     yield* parts({ run, generation, step }, bytes);                       // a server stream, or push to one
 *     const bytes = await collect(stream, { maxBytes, expect });            // exactly one payload
 *     for await (const { step, bytes } of payloads(stream, { maxBytes }))   // one after another, as Shards sends them
 */
import { crc32 } from 'node:zlib';
import { BraidError } from '../core/errors.ts';
import type { Messages, Part, Position, StepRequest } from './messages.ts';

/** Data a part at most: small enough that a stream's parts in flight stay a few MiB, large enough to cost nothing each. */
export const PART_BYTES = 1 << 20;

export interface CollectOptions {
  /** The largest payload that is accepted, checked before memory is taken for it. */
  maxBytes: number;
  /** What the parts must say of themselves. */
  expect?: Partial<StepRequest>;
  /** Where the payload goes, if it is exactly as long. Otherwise, and by default, into fresh shared memory. */
  into?: Uint8Array;
}

export interface Payload extends StepRequest, Position {
  /** On a SharedArrayBuffer of its own, so that another thread may have it without a copy (unless `into` was used). */
  bytes: Uint8Array;
}

/** What a payload that is no state says of its Position, beside the step. */
const NOWHERE = { round: 0, lossScale: 0, goodUpdates: 0 };

/**
 * Cuts a payload into parts. The bytes are read when a part is sent, so they must not change before the call ends.
 * @param place of a state
 */
export function* parts(
  { run, generation, step }: StepRequest,
  bytes: Uint8Array,
  { round, lossScale, goodUpdates }: Omit<Position, 'step'> = NOWHERE,
): Generator<Part> {
  const said = { run, generation, step, round, lossScale, goodUpdates };
  let offset = 0;
  do {
    const data = bytes.subarray(offset, offset + PART_BYTES);
    const last = offset + data.length === bytes.length;
    yield { ...said, total: bytes.length, offset, data, crc32: crc32(data), last };
    offset += data.length;
  } while (offset < bytes.length);
}

/**
 * The one payload of a stream.
 * @throws BraidError PROTOCOL when it is too large, out of order, damaged, incomplete, or followed by more;
 *   STALE_GENERATION when it is of another generation than expected
 */
export async function collect(stream: Messages<Part>, options: CollectOptions): Promise<Uint8Array> {
  let collected: Uint8Array | undefined;
  for await (const { bytes } of payloads(stream, options)) {
    if (collected !== undefined) throw new BraidError('PROTOCOL', 'a second payload follows where one was expected');
    collected = bytes;
  }
  if (collected === undefined) throw new BraidError('PROTOCOL', 'the stream ended before its first part');
  return collected;
}

/** Every payload of a stream, each as soon as it is whole. Throws as `collect` does. */
export async function* payloads(stream: Messages<Part>, options: CollectOptions): AsyncGenerator<Payload> {
  let payload: Payload | null = null;
  let received = 0;
  for await (const part of stream) {
    if (payload === null) {
      payload = begin(part, options);
      received = 0;
    }
    check(part, payload, received);
    payload.bytes.set(part.data, received);
    received += part.data.length;
    if (part.last !== (received === payload.bytes.length)) {
      throw new BraidError(
        'PROTOCOL',
        part.last
          ? `the last part came at ${received} of ${payload.bytes.length} bytes`
          : `all ${received} bytes came, but the last part is not marked`,
      );
    }
    if (part.last) {
      yield payload;
      payload = null;
    }
  }
  if (payload !== null) {
    throw new BraidError('PROTOCOL', `the stream ended at ${received} of ${payload.bytes.length} bytes`);
  }
}

function begin(part: Part, { maxBytes, expect, into }: CollectOptions): Payload {
  if (part.total > maxBytes) {
    throw new BraidError('PROTOCOL', `a payload of ${part.total} bytes where at most ${maxBytes} are expected`);
  }
  if (expect?.run !== undefined && part.run !== expect.run) {
    throw new BraidError('VERSION_MISMATCH', `a payload of run ${part.run}, but this is run ${expect.run}`);
  }
  if (expect?.generation !== undefined && part.generation !== expect.generation) {
    const message = `a payload of generation ${part.generation}, but this is generation ${expect.generation}`;
    throw new BraidError('STALE_GENERATION', message);
  }
  if (expect?.step !== undefined && part.step !== expect.step) {
    throw new BraidError('PROTOCOL', `a payload of step ${part.step} where step ${expect.step} is expected`);
  }
  const bytes = into?.length === part.total ? into : new Uint8Array(new SharedArrayBuffer(part.total));
  const { run, generation, step, round, lossScale, goodUpdates } = part;
  return { run, generation, step, round, lossScale, goodUpdates, bytes };
}

function check(part: Part, payload: Payload, received: number): void {
  if (part.run !== payload.run || part.generation !== payload.generation || part.step !== payload.step) {
    throw new BraidError('PROTOCOL', `a part of step ${part.step} inside a payload of step ${payload.step}`);
  }
  if (part.total !== payload.bytes.length) {
    throw new BraidError('PROTOCOL', `a part says ${part.total} bytes in all, the first one ${payload.bytes.length}`);
  }
  if (part.offset !== received) {
    throw new BraidError('PROTOCOL', `a part begins at byte ${part.offset} where ${received} is next`);
  }
  if (received + part.data.length > part.total) {
    throw new BraidError('PROTOCOL', `a part of ${part.data.length} bytes at ${received} runs past ${part.total}`);
  }
  if (part.data.length === 0 && part.total > 0) throw new BraidError('PROTOCOL', 'a part without data');
  if (crc32(part.data) !== part.crc32) {
    throw new BraidError('PROTOCOL', `bytes ${received} to ${received + part.data.length} arrived damaged (CRC-32)`);
  }
}
