/** The gradient exchange, over real sockets: what it sums, what it refuses, what it leaves behind. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import test from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import { compileKernels } from '../worker/exchange/build-kernels.ts';
import { Exchange, type ExchangePlan, type Segment } from '../worker/exchange/exchange.ts';
import { decodeHeader, encodeHeader, HEADER_BYTES, type Header } from '../worker/exchange/frame.ts';
import { FrameReader } from '../worker/exchange/frame-reader.ts';
import { GradientMemory } from '../worker/exchange/gradient-memory.ts';
import { hello } from '../worker/exchange/handshake.ts';
import { KERNELS_WASM_BASE64 } from '../worker/exchange/kernels.wasm.ts';
import { CHUNK_BYTES, chunksOf, slicesOf } from '../worker/exchange/slices.ts';

const never = new AbortController().signal;

interface World {
  exchanges: Exchange[];
  plan(rank: number, segments: Segment[], generation?: number): ExchangePlan;
  connect(segments: (rank: number) => Segment[], generation?: number): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

async function world(ranks: number, transport: 'unix' | 'tcp' = 'unix'): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-exchange-'));
  const exchanges = await Promise.all(
    Array.from({ length: ranks }, (_, rank) =>
      Exchange.listen(transport === 'unix' ? `unix:${folder}/${rank}` : '127.0.0.1:0'),
    ),
  );
  const plan = (rank: number, segments: Segment[], generation = 1): ExchangePlan => ({
    run: 'test',
    generation,
    rank,
    addresses: exchanges.map(({ address }) => address),
    gradientLength: segments.reduce((sum, { length }) => sum + length, 0),
    rounds: [segments],
  });
  return {
    exchanges,
    plan,
    async connect(segments, generation = 1) {
      await Promise.all(exchanges.map((x, rank) => x.connect(plan(rank, segments(rank), generation), never)));
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(exchanges.map((x) => x.close()));
      const left = readdirSync(folder);
      rmSync(folder, { recursive: true });
      if (left.length > 0) throw new Error(`left behind: ${left}`);
    },
  };
}

function all(length: number, ranks: number): Segment[] {
  return [{ name: 'all', offset: 0, length, ranks: Array.from({ length: ranks }, (_, i) => i) }];
}

/** Values whose sum depends on the order of additions. */
function gradientOf(rank: number, length: number): Float32Array {
  const scales = [1e-4, 1e4, 1, 1e-2, 1e3, 1e-3, 1e2];
  const gradient = new Float32Array(length);
  for (let i = 0; i < length; i++)
    gradient[i] = (((i * 7919 + rank * 104729) % 2003) / 1001.3 - 1) * scales[(i + rank * 3) % 7]!;
  return gradient;
}

function sumInRankOrder(gradients: Float32Array[]): Float32Array {
  const sum = gradients[0]!.slice();
  for (const g of gradients.slice(1)) for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + g[i]!;
  return sum;
}

function sameBits(a: Float32Array, b: Float32Array): boolean {
  const bytes = ({ buffer, byteOffset, byteLength }: Float32Array) => Buffer.from(buffer, byteOffset, byteLength);
  return bytes(a).equals(bytes(b));
}

test('the committed kernels are what kernels.wat compiles to', async (t) => {
  t.is(Buffer.from(await compileKernels()).toString('base64'), KERNELS_WASM_BASE64);
});

test('kernels add and square at any length and alignment, and not past the end', (t) => {
  const memory = new GradientMemory(400, 1);
  fc.assert(
    fc.property(fc.nat(130), fc.nat(3), fc.nat(3), (n, a, b) => {
      memory.gradient.set(gradientOf(0, 400));
      memory.reduced.fill(5);
      const at = (vector: Float32Array, i: number) => vector.byteOffset + i * 4;
      memory.kernels.sum(at(memory.reduced, a), at(memory.gradient, a), at(memory.gradient, 200 + b), n);
      for (let i = 0; i < n; i++) {
        const expected = Math.fround(memory.gradient[a + i]! + memory.gradient[200 + b + i]!);
        if (memory.reduced[a + i] !== expected) return false;
      }
      if (memory.reduced.subarray(0, a).some((v) => v !== 5) || memory.reduced[a + n] !== 5) return false;
      const squares = memory.gradient.subarray(a, a + n).reduce((sum, v) => sum + v * v, 0);
      return Math.abs(memory.kernels.sumSquares(at(memory.gradient, a), n) - squares) <= 1e-12 * squares;
    }),
  );
  memory.gradient.set([3e38, -3e38, Number.MIN_VALUE, 1, 2, 3, 4, 5, 6]);
  t.true(Number.isFinite(memory.kernels.sumSquares(0, 9)));
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    memory.gradient[8] = bad;
    t.false(Number.isFinite(memory.kernels.sumSquares(0, 9)));
  }
});

test('a checksum changes with every damaged bit, and with swapped or shifted words', (t) => {
  const memory = new GradientMemory(2048, 0);
  memory.gradient.set(gradientOf(1, 2048));
  const bytes = memory.bytes(0, 8192 - 20); // ends inside a block
  const words = new Uint32Array(bytes.buffer, 0, 2000);
  const good = memory.checksum(bytes);
  t.is(memory.checksum(bytes), good);
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.nat(7), (i, bit) => {
      bytes[i]! ^= 1 << bit;
      const damaged = memory.checksum(bytes);
      bytes[i]! ^= 1 << bit;
      return damaged !== good;
    }),
  );
  fc.assert(
    fc.property(fc.nat(1999), fc.nat(1999), fc.constantFrom(0x80000000, 1), (i, j, flip) => {
      if (i === j) return;
      words[i]! ^= flip; // the same bit of two words, perhaps of one lane
      words[j]! ^= flip;
      const damaged = memory.checksum(bytes);
      words[i]! ^= flip;
      words[j]! ^= flip;
      return damaged !== good;
    }),
  );
  words.copyWithin(0, 32);
  t.not(memory.checksum(bytes), good);
});

test('slices cover a segment without gaps, and so do their chunks', (t) => {
  fc.assert(
    fc.property(fc.nat(2_000_000), fc.integer({ min: 1, max: 9 }), (length, ranks) => {
      const chunks = slicesOf(length, ranks).flatMap((slice) => chunksOf(slice));
      const end = chunks.reduce((at, chunk) => {
        if (chunk.start !== at || chunk.length < 1 || chunk.length * 4 > CHUNK_BYTES) throw new Error(`gap at ${at}`);
        return at + chunk.length;
      }, 0);
      return end === length && slicesOf(length, ranks).length === ranks;
    }),
  );
  t.pass();
});

for (const ranks of [1, 2, 3, 4]) {
  test(`${ranks} ranks end with the sum in rank order, bit for bit, at any length`, async (t) => {
    await using w = await world(ranks);
    let generation = 0;
    const lengths = fc.oneof(fc.nat(70), fc.integer({ min: 0, max: 3 * (CHUNK_BYTES / 4) }));
    await fc.assert(
      fc.asyncProperty(lengths, async (length) => {
        generation++;
        await w.connect(() => all(length, ranks), generation);
        const gradients = w.exchanges.map((_, rank) => gradientOf(rank + generation, length));
        w.exchanges.forEach((x, rank) => {
          x.gradient.set(gradients[rank]!);
        });
        const expected = sumInRankOrder(gradients);
        const results = await Promise.all(w.exchanges.map((x) => x.reduce(7, 0, never)));
        w.exchanges.forEach((x, rank) => {
          t.true(sameBits(x.reduced, expected));
          t.true(sameBits(x.gradient, gradients[rank]!));
          t.deepEqual(results[rank]!.segmentNorms, results[0]!.segmentNorms);
        });
        const sent = results.reduce((sum, r) => sum + r.sentBytes, 0);
        t.is(
          sent,
          results.reduce((sum, r) => sum + r.receivedBytes, 0),
        );
        t.true(sent >= 2 * (ranks - 1) * length * 4);
      }),
      { numRuns: 12, examples: [[0], [1], [ranks - 1], [6 * (CHUNK_BYTES / 4) * ranks + 5]] },
    );
  });
}

test('over TCP the sum is the same', async (t) => {
  await using w = await world(2, 'tcp');
  await w.connect(() => all(600_001, 2));
  const gradients = [gradientOf(0, 600_001), gradientOf(1, 600_001)];
  w.exchanges.forEach((x, rank) => {
    x.gradient.set(gradients[rank]!);
  });
  await Promise.all(w.exchanges.map((x) => x.reduce(0, 0, never)));
  t.true(w.exchanges.every((x) => sameBits(x.reduced, sumInRankOrder(gradients))));
});

test('segments with groups of their own are summed apart, and steps follow one another without waiting for the slowest', async (t) => {
  await using w = await world(4);
  // Two replicas of two branches: the trunk is everyone's, rank 0 and 2 own branch 0, 1 and 3 branch 1.
  const trunk = 5_000;
  const branch = 300_000;
  await w.connect((rank) => [
    { name: 'trunk', offset: 0, length: trunk, ranks: [0, 1, 2, 3] },
    { name: 'branch', offset: trunk, length: branch, ranks: rank % 2 === 0 ? [0, 2] : [1, 3] },
  ]);
  const gradients = w.exchanges.map((_, rank) => gradientOf(rank, trunk + branch));
  w.exchanges.forEach((x, rank) => {
    x.gradient.set(gradients[rank]!);
  });
  for (let step = 0; step < 5; step++) await Promise.all(w.exchanges.map((x) => x.reduce(step, 0, never)));
  w.exchanges.forEach((x, rank) => {
    const cut = (r: number, from: number, to: number) => gradients[r]!.subarray(from, to);
    const trunkSum = sumInRankOrder([0, 1, 2, 3].map((r) => cut(r, 0, trunk)));
    const branchSum = sumInRankOrder([rank % 2, (rank % 2) + 2].map((r) => cut(r, trunk, trunk + branch)));
    t.true(sameBits(x.reduced.subarray(0, trunk), trunkSum));
    t.true(sameBits(x.reduced.subarray(trunk), branchSum));
  });
});

test('a worker that shares nothing reduces in place, without traffic', async (t) => {
  await using w = await world(1);
  await w.connect(() => all(1000, 1));
  const [x] = w.exchanges;
  x!.gradient.set(gradientOf(0, 1000));
  const { sentBytes, receivedBytes, segmentNorms } = await x!.reduce(0, 0, never);
  t.deepEqual([sentBytes, receivedBytes], [0, 0]);
  t.is(x!.reduced, x!.gradient);
  const norm = Math.hypot(...x!.gradient);
  t.true(Math.abs(segmentNorms[0]! - norm) < 1e-9 * norm);
});

test('a gradient that is not finite is an error on every rank that names whose it is, and the next step works', async (t) => {
  await using w = await world(2);
  await w.connect(() => all(100, 2));
  w.exchanges[1]!.gradient[55] = Number.NaN;
  const [zero, one] = await Promise.all(
    w.exchanges.map((x) => t.throwsAsync(x.reduce(3, 0, never), { code: 'NON_FINITE' })),
  );
  t.regex(zero!.message, /step 3: .*segment all.* though rank 0's own is$/);
  t.regex(one!.message, /rank 1's own gradient has NaN or infinity$/);
  w.exchanges[1]!.gradient[55] = 1;
  await Promise.all(w.exchanges.map((x) => x.reduce(4, 0, never)));
  t.is(w.exchanges[0]!.reduced[55], 1);
});

test('a peer that dies in the middle of a reduction is named with its phase, and the own gradient is untouched', async (t) => {
  await using w = await world(3);
  const length = 4 * (CHUNK_BYTES / 4);
  await w.connect(() => all(length, 3));
  const gradient = gradientOf(0, length);
  w.exchanges[0]!.gradient.set(gradient);
  const reducing = [0, 1].map((rank) => t.throwsAsync(w.exchanges[rank]!.reduce(9, 0, never)));
  await new Promise((resolve) => setImmediate(resolve)); // frames are under way
  w.exchanges[2]!.abort(new BraidError('CANCELLED', 'killed'));
  const [zero] = (await Promise.all(reducing)) as BraidError[];
  t.is(zero!.code, 'WORKER_LOST');
  t.regex(zero!.message, /rank \d.*in the (reduce-scatter|all-gather) of step 9.*waiting for rank .*2/);
  t.true(sameBits(w.exchanges[0]!.gradient, gradient));
  await t.throwsAsync(w.exchanges[0]!.reduce(9, 0, never), { code: 'WORKER_LOST' });
  // A later generation starts anew, on the same listeners.
  await w.connect(() => all(length, 3), 2);
  await Promise.all(w.exchanges.map((x) => x.reduce(9, 0, never)));
});

test('an aborted reduction says whom it waited for, and ends the exchange of its generation', async (t) => {
  await using w = await world(2);
  await w.connect(() => all(100, 2));
  const controller = new AbortController();
  const reducing = w.exchanges[0]!.reduce(1, 0, controller.signal);
  controller.abort(new BraidError('CANCELLED', 'the step took too long'));
  await t.throwsAsync(reducing, {
    code: 'CANCELLED',
    message: /too long, in the reduce-scatter of step 1.*waiting for rank 1/,
  });
  await t.throwsAsync(w.exchanges[1]!.reduce(1, 0, never), { code: 'WORKER_LOST', message: /rank 0/ });
});

test('ranks that disagree about the step refuse one another before anything is added', async (t) => {
  await using w = await world(2);
  await w.connect(() => all(100, 2));
  const [zero, one] = await Promise.allSettled([
    w.exchanges[0]!.reduce(5, 0, never),
    w.exchanges[1]!.reduce(6, 0, never),
  ]);
  const messages = [zero, one].map((r) => (r as PromiseRejectedResult).reason.message).join('\n');
  t.regex(messages, /its step is (5, expected 6|6, expected 5)/);
  t.true(w.exchanges.every((x) => x.reduced.every((v) => v === 0)));
});

test('a generation that is not later than the last one, and a plan that contradicts itself, are refused', async (t) => {
  await using w = await world(1);
  await w.connect(() => all(10, 1), 4);
  await t.throwsAsync(
    w.connect(() => all(10, 1), 4),
    { code: 'STALE_GENERATION' },
  );
  const x = w.exchanges[0]!;
  const plan = (change: Partial<ExchangePlan>) => x.connect({ ...w.plan(0, all(10, 1), 5), ...change }, never);
  await t.throwsAsync(plan({ gradientLength: 11 }), { code: 'PROTOCOL', message: /cover 10 of the gradient's 11/ });
  const [whole] = all(10, 1) as [Segment];
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [1, 0] }]] }), { message: /not ascending/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [1] }]] }), { message: /lack rank 0/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [0, 3] }]] }), { message: /past the 1 workers/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, offset: 2 }]] }), { message: /begins at 2/ });
});

const HELLO = { run: 'test', generation: 3, rank: 1, to: 0 };
for (const [promise, change, code] of [
  ['of an earlier generation', { generation: 2 }, 'STALE_GENERATION'],
  ['of another run', { run: 'other' }, 'VERSION_MISMATCH'],
  ['meant for another rank', { to: 1 }, 'PROTOCOL'],
  ['of a rank that shares nothing', { rank: 7 }, 'PROTOCOL'],
  ['of a rank that is connected already', {}, 'PROTOCOL'],
] as const) {
  test(`a hello ${promise} is refused with a reason`, async (t) => {
    await using w = await world(2);
    await w.connect(() => all(10, 2), 3);
    const answer = await say(w.exchanges[0]!.address, hello({ ...HELLO, ...change }));
    const { header } = decodeHeader(answer.subarray(0, HEADER_BYTES));
    t.is(header.phase, 'refuse');
    t.is(JSON.parse(answer.subarray(HEADER_BYTES).toString()).code, code);
    await Promise.all(w.exchanges.map((x) => x.reduce(0, 0, never))); // nobody else is disturbed
  });
}

test('what is no hello is hung up on', async (t) => {
  await using w = await world(1);
  for (const bytes of [
    Buffer.alloc(HEADER_BYTES),
    Buffer.concat([encodeHeader({ ...header(1), phase: 'gather', length: 4 }, 0), Buffer.alloc(4)]),
    encodeHeader({ ...header(1), phase: 'hello', length: 1 << 30 }, 0),
    Buffer.concat([hello(HELLO), Buffer.alloc(1)]),
    frame({ ...header(1), phase: 'hello' }, Buffer.from('{"run":1}')),
  ]) {
    t.is((await say(w.exchanges[0]!.address, bytes)).length, 0);
  }
});

test('a hello of a generation to come is answered when this worker gets there', async (t) => {
  await using w = await world(2);
  const later = w.exchanges[1]!.connect(w.plan(1, all(10, 2), 8), never);
  await w.exchanges[0]!.connect(w.plan(0, [{ name: 'all', offset: 0, length: 10, ranks: [0] }], 7), never);
  await Promise.all([later, w.exchanges[0]!.connect(w.plan(0, all(10, 2), 8), never)]);
  await Promise.all(w.exchanges.map((x) => x.reduce(0, 0, never)));
  t.pass();
});

test('a peer that cannot be reached is named', async (t) => {
  await using w = await world(2);
  const plan = { ...w.plan(0, all(10, 2)), addresses: [w.exchanges[0]!.address, 'unix:/nowhere/at/all'] };
  await t.throwsAsync(w.exchanges[0]!.connect(plan, never), {
    code: 'WORKER_LOST',
    message: /rank 1 at unix:.nowhere.*ENOENT/,
  });
});

test('connecting ends when it is aborted', async (t) => {
  await using w = await world(2);
  const controller = new AbortController();
  const connecting = w.exchanges[0]!.connect(w.plan(0, all(10, 2)), controller.signal);
  controller.abort(new BraidError('CANCELLED', 'enough'));
  await t.throwsAsync(connecting, { code: 'CANCELLED', message: /enough, while connecting/ });
});

test('an address that is taken or none is refused with its remedy', async (t) => {
  await using w = await world(1);
  await t.throwsAsync(Exchange.listen(w.exchanges[0]!.address), { code: 'SETUP', message: /EADDRINUSE/ });
  await t.throwsAsync(Exchange.listen('nonsense'), { code: 'PROTOCOL', message: /expected unix:.path or host:port/ });
  await t.throwsAsync(Exchange.listen(`unix:/${'long'.repeat(30)}`), { code: 'PROTOCOL', message: /1 to 107 bytes/ });
});

test('a damaged frame from a peer is refused before it is added, whatever byte is damaged', async (t) => {
  for (const at of [0, 5, 17, 33, 50, HEADER_BYTES + 3]) {
    await using w = await world(1);
    const x = w.exchanges[0]!;
    // Rank 1 is played by this test: it accepts rank 0's socket, and opens one of its own.
    await using peer = await scriptedPeer();
    const plan = { ...w.plan(0, all(32, 2)), addresses: [x.address, peer.address] };
    const connecting = x.connect(plan, never);
    const send = await peer.accepted();
    send.write(frame({ ...header(1), phase: 'welcome', step: 0 }, Buffer.alloc(0)));
    const receive = connect(x.address.slice('unix:'.length));
    receive.write(hello({ run: 'test', generation: 1, rank: 1, to: 0 }));
    await connecting;
    const reducing = x.reduce(5, 0, never);
    const damaged = frame({ ...header(1), step: 5 }, Buffer.alloc(64, 1), (bytes) => peer.checksum(bytes));
    damaged[at]! ^= 4;
    send.write(damaged);
    await t.throwsAsync(reducing, { code: 'PROTOCOL', message: /a gradient frame is refused/ }, `byte ${at}`);
    t.true(x.reduced.every((v) => v === 0));
    receive.destroy();
  }
});

test('a frame reader takes a stream in pieces of any size, and refuses it at the first damaged frame', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 200 }), { minLength: 1, maxLength: 6 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 97 })),
      fc.option(fc.nat(), { nil: undefined }),
      (payloads, sizes, damage) => {
        const stream = Buffer.concat(payloads.map((p) => frame({ ...header(2), length: p.length }, p)));
        if (damage !== undefined) stream[damage % stream.length]! ^= 16;
        const got: Uint8Array[] = [];
        let into = new Uint8Array(0);
        const reader = new FrameReader({
          begin({ length }) {
            if (length > 200) throw new BraidError('PROTOCOL', 'too long');
            into = new Uint8Array(length);
            return into;
          },
          checksum: (bytes) => crc32(bytes),
          end: () => got.push(into) > 0,
        });
        try {
          for (let at = 0; at < stream.length; ) {
            const n = Math.min(reader.space().length, stream.length - at, sizes.next().value);
            reader.space().set(stream.subarray(at, at + n));
            at += n;
            reader.advance(n);
          }
        } catch (error) {
          if (!(error instanceof BraidError) || damage === undefined) throw error;
        }
        const whole = damage === undefined ? payloads.length : got.length;
        return got.length === whole && got.every((p, i) => Buffer.from(p).equals(payloads[i]!));
      },
    ),
  );
  t.pass();
});

test('no unix socket is open after an exchange has closed', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'braid-exchange-'));
  const listening = () => readFileSync('/proc/net/unix', 'utf8').includes(folder);
  const x = await Exchange.listen(`unix:${folder}/x`);
  t.true(listening());
  await x.close();
  t.false(listening());
  t.deepEqual(readdirSync(folder), []);
  rmSync(folder, { recursive: true });
});

function header(source: number): Header {
  return { phase: 'scatter', generation: 1, step: 5, bucket: 0, source, offset: 0, length: 64 };
}

function frame(h: Header, payload: Uint8Array, checksum: (bytes: Uint8Array) => number = (b) => crc32(b)): Buffer {
  return Buffer.concat([encodeHeader({ ...h, length: payload.length }, checksum(payload)), payload]);
}

/** Sends bytes and returns all that comes back before the end. */
async function say(address: string, bytes: Uint8Array): Promise<Buffer> {
  const socket = connect(address.slice('unix:'.length));
  socket.on('error', () => {});
  socket.write(bytes);
  const parts: Buffer[] = [];
  socket.on('data', (data) => parts.push(data));
  await new Promise((resolve) => socket.on('close', resolve));
  return Buffer.concat(parts);
}

async function scriptedPeer() {
  const { createServer } = await import('node:net');
  const folder = mkdtempSync(join(tmpdir(), 'braid-peer-'));
  const memory = new GradientMemory(1024, 0);
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
