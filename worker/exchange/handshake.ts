/** How a socket of the exchange is bound: the side that will read says who it is, the side that will send agrees or says why not. */
import type { Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import type { BraidError } from '../../core/errors.ts';
import { encodeHeader, type Phase } from './frame.ts';
import { FrameReader } from './frame-reader.ts';
import type { Offer } from './shared-pages.ts';

/** Names the reader, and whom it means to read from. */
export interface Hello {
  run: string;
  /** The run's: who does not know it is a stranger. */
  secret: string;
  generation: number;
  rank: number;
  to: number;
  /** Its gradient, for who is on the same machine. */
  memory: Offer | null;
}

const MAX_HELLO_BYTES = 4096; // a few names and numbers
/** Who connects and says nothing, or nothing sensible, is let go after this long. */
export const HELLO_TIMEOUT_MS = 10_000;

export function hello(from: Hello): Uint8Array {
  return frame('hello', from.generation, from.rank, Buffer.from(JSON.stringify(from)));
}

/** Reads a hello off an accepted socket; one that sends anything else, or too late, is destroyed. */
export function readHello(socket: Socket, onHello: (from: Hello) => void): void {
  let payload = new Uint8Array(0);
  const reader = new FrameReader({
    begin(header) {
      if (header.phase !== 'hello' || header.length > MAX_HELLO_BYTES) throw new Error('not a hello');
      payload = new Uint8Array(header.length);
      return payload;
    },
    checksum: (bytes) => crc32(bytes),
    end: () => false,
  });
  const onData = (data: Buffer) => {
    try {
      for (let at = 0; at < data.length; ) {
        const space = reader.space();
        const n = Math.min(space.length, data.length - at);
        space.set(data.subarray(at, at + n));
        at += n;
        if (reader.advance(n)) continue;
        if (at < data.length) throw new Error('bytes after the hello');
        const from = parseHello(payload);
        socket.setTimeout(0);
        socket.off('data', onData);
        socket.resume(); // nothing more comes, but its end does
        onHello(from);
        return;
      }
    } catch {
      socket.destroy();
    }
  };
  socket.setTimeout(HELLO_TIMEOUT_MS, () => socket.destroy());
  socket.on('data', onData);
}

/** @param inPlace it reads the gradient that the hello offered where that is: none of it need be sent */
export function welcome(socket: Socket, by: { generation: number; rank: number }, inPlace: boolean): void {
  socket.write(frame('welcome', by.generation, by.rank, Uint8Array.of(inPlace ? 1 : 0)));
}

export function refuse(socket: Socket, by: { generation: number; rank: number }, reason: BraidError): void {
  const { code, message } = reason;
  socket.end(frame('refuse', by.generation, by.rank, Buffer.from(JSON.stringify({ code, message }))));
}

function parseHello(payload: Uint8Array): Hello {
  const { run, secret, generation, rank, to, memory } = JSON.parse(new TextDecoder().decode(payload));
  if (
    typeof run !== 'string' ||
    typeof secret !== 'string' ||
    ![generation, rank, to].every(isCount) ||
    !(memory === null || (isCount(memory?.pid) && isCount(memory?.fd) && typeof memory?.name === 'string'))
  ) {
    throw new Error('a hello without its fields');
  }
  return { run, secret, generation, rank, to, memory };
}

function isCount(n: unknown): boolean {
  return Number.isSafeInteger(n) && (n as number) >= 0;
}

function frame(phase: Phase, generation: number, source: number, payload: Uint8Array): Uint8Array {
  const header = encodeHeader(
    { phase, dtype: 'f32', generation, step: 0, bucket: 0, source, offset: 0, squares: 0, length: payload.length },
    crc32(payload),
  );
  return Buffer.concat([header, payload]);
}
