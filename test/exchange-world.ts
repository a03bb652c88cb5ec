/** Exchanges of one process over real sockets, and what their sums should be. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { Exchange, type ExchangePlan, type Segment } from '../worker/exchange/exchange.ts';
import { type Dtype, encodeHeader, type Header } from '../worker/exchange/frame.ts';
import { GradientMemory } from '../worker/exchange/gradient-memory.ts';
import type { Topology } from '../worker/exchange/plan.ts';
import { slicesOf } from '../worker/exchange/slices.ts';
import type { CurrentPems } from '../worker/exchange/transport.ts';

export const never = new AbortController().signal;
export const SECRET = 'known-to-this-run-alone';

export interface World {
  exchanges: Exchange[];
  plan(rank: number, segments: Segment[], changes?: Partial<ExchangePlan>): ExchangePlan;
  /** All of them, each with its own segments. */
  connect(segments: (rank: number) => Segment[], changes?: Partial<ExchangePlan>): Promise<void>;
  /** Fills in gradients and reduces them. @returns what each rank says of it */
  reduce(
    gradients: Float32Array[],
    step?: number,
  ): ReturnType<typeof Promise.all<Awaited<ReturnType<Exchange['reduce']>>[]>>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface WorldOptions {
  transport?: 'unix' | 'tcp';
  /** By rank. */
  tls?: (rank: number) => CurrentPems;
  /** What a coordinator that has come back has told all of them. */
  secret?: string;
  /** Which ranks may read the others' gradients in place; default: none. */
  inPlace?: (rank: number) => boolean;
}

export async function world(
  ranks: number,
  { transport = 'unix', tls, secret, inPlace = () => false }: WorldOptions = {},
): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-exchange-'));
  const exchanges = await Promise.all(
    Array.from({ length: ranks }, (_, rank) =>
      Exchange.listen(transport === 'unix' ? `unix:${folder}/${rank}` : '127.0.0.1:0', {
        tls: tls?.(rank) ?? null,
        secret: () => secret ?? null,
        inPlace: inPlace(rank),
      }),
    ),
  );
  const plan: World['plan'] = (rank, segments, changes) => ({
    run: 'test',
    secret: SECRET,
    generation: 1,
    rank,
    addresses: exchanges.map(({ address }) => address),
    gradientLength: segments.reduce((sum, { length }) => sum + length, 0),
    wire: 'f32',
    rounds: [segments],
    ...changes,
  });
  return {
    exchanges,
    plan,
    async connect(segments, changes) {
      await Promise.all(exchanges.map((x, rank) => x.connect(plan(rank, segments(rank), changes), never)));
    },
    async reduce(gradients, step = 0) {
      exchanges.forEach((x, rank) => {
        x.gradient.set(gradients[rank]!);
      });
      return await Promise.all(exchanges.map((x) => x.reduce(step, 0, never)));
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(exchanges.map((x) => x.close()));
      const left = readdirSync(folder);
      rmSync(folder, { recursive: true });
      if (left.length > 0) throw new Error(`left behind: ${left}`);
    },
  };
}

export function all(length: number, ranks: number, topology: Topology = 'mesh'): Segment[] {
  return [{ name: 'all', offset: 0, length, ranks: Array.from({ length: ranks }, (_, i) => i), topology }];
}

/** Values whose sum depends on the order of additions. */
export function gradientOf(rank: number, length: number): Float32Array {
  const scales = [1e-4, 1e4, 1, 1e-2, 1e3, 1e-3, 1e2];
  const gradient = new Float32Array(length);
  for (let i = 0; i < length; i++)
    gradient[i] = (((i * 7919 + rank * 104729) % 2003) / 1001.3 - 1) * scales[(i + rank * 3) % 7]!;
  return gradient;
}

/** What mesh.ts and ring.ts promise, one addition after another. */
export function expectedSum(gradients: Float32Array[], topology: Topology, wire: Dtype): Float32Array {
  const ranks = gradients.length;
  const length = gradients[0]!.length;
  const sum = gradients[0]!.slice();
  if (ranks === 1) return sum;
  const sent = wire === 'bf16' ? nearestBf16 : (x: number) => x;
  slicesOf(length, ranks).forEach((slice, owner) => {
    const order = Array.from({ length: ranks }, (_, i) => (topology === 'mesh' ? i : (owner + 1 + i) % ranks));
    for (let i = slice.start; i < slice.start + slice.length; i++) {
      const pieces = order.map((rank) => {
        const piece = gradients[rank]![i]!;
        return topology === 'mesh' && rank !== owner ? sent(piece) : piece;
      });
      const onItsWay = topology === 'ring' ? sent : (x: number) => x;
      sum[i] = sent(pieces.reduce((partial, piece) => Math.fround(onItsWay(partial) + piece)));
    }
  });
  return sum;
}

/** Of the two bf16 around an f32 the nearer one, at a tie the even one. */
export function nearestBf16(x: number): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)[0]!;
  const [below, above] = [bits >>> 16, (bits >>> 16) + 1];
  const rest = bits & 0xffff;
  const up = rest === 0x8000 ? below % 2 === 1 : rest > 0x8000;
  return new Float32Array(Uint32Array.of((up ? above : below) << 16).buffer)[0]!;
}

export function sameBits(a: Float32Array, b: Float32Array): boolean {
  const bytes = ({ buffer, byteOffset, byteLength }: Float32Array) => Buffer.from(buffer, byteOffset, byteLength);
  return bytes(a).equals(bytes(b));
}

/** The first frame that rank 0 of 2 expects of 32 elements, at step 5. */
export function header(source: number): Header {
  const where = { generation: 1, step: 5, bucket: 0, source, offset: 0 };
  return { phase: 'scatter', dtype: 'f32', ...where, squares: 0, length: 64 };
}

export function frame(
  h: Header,
  payload: Uint8Array,
  checksum: (bytes: Uint8Array) => number = (b) => crc32(b),
): Buffer {
  return Buffer.concat([encodeHeader({ ...h, length: payload.length }, checksum(payload)), payload]);
}

/** Sends bytes and returns all that comes back before the end. */
export async function say(address: string, bytes: Uint8Array): Promise<Buffer> {
  const socket = dialUnix(address);
  socket.write(bytes);
  const parts: Buffer[] = [];
  socket.on('data', (data) => parts.push(data));
  await new Promise((resolve) => socket.on('close', resolve));
  return Buffer.concat(parts);
}

export function dialUnix(address: string): Socket {
  const socket = connect(address.slice('unix:'.length));
  socket.on('error', () => {}); // 'close' follows
  return socket;
}

/** A listener whose first connection is the test's to speak on. */
export async function scriptedPeer() {
  const folder = mkdtempSync(join(tmpdir(), 'braid-peer-'));
  const memory = new GradientMemory({ gradientLength: 1024, wire: 'f32', shared: false, windows: 0, inPlace: false });
  const accepted = Promise.withResolvers<Socket>();
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.resume();
    accepted.resolve(socket);
  });
  await new Promise<void>((resolve) => server.listen(join(folder, 'x'), resolve));
  return {
    address: `unix:${folder}/x`,
    accepted: () => accepted.promise,
    checksum(bytes: Uint8Array) {
      memory.bytes(0, bytes.length).set(bytes);
      return memory.checksum(memory.bytes(0, bytes.length));
    },
    async [Symbol.asyncDispose]() {
      (await accepted.promise).destroy();
      await new Promise((resolve) => server.close(resolve));
      rmSync(folder, { recursive: true });
    },
  };
}

/**
 * Between a rank and the one that it dials.
 * @param passing for each connection: what goes on of the bytes that the dialed one answers
 */
export async function between(address: string, passing: (near: Socket, far: Socket) => (data: Buffer) => Buffer) {
  const folder = mkdtempSync(join(tmpdir(), 'braid-between-'));
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = dialUnix(address);
    near.on('error', () => {});
    near.pipe(far);
    const pass = passing(near, far);
    far.on('data', (data) => {
      if (!near.destroyed) near.write(pass(data));
    });
    far.on('close', () => near.destroy());
    near.on('close', () => far.destroy());
    sockets.add(near).add(far);
  });
  await new Promise<void>((resolve) => server.listen(join(folder, 'x'), resolve));
  return {
    address: `unix:${folder}/x`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      rmSync(folder, { recursive: true });
    },
  };
}
