/** The gradient exchange when things go wrong: what it says, and that it never waits for good or sums what it should not. */
import test from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import type { Exchange } from '../worker/exchange/exchange.ts';
import { HEADER_BYTES, type Header } from '../worker/exchange/frame.ts';
import { hello } from '../worker/exchange/handshake.ts';
import { CHUNK_ELEMENTS } from '../worker/exchange/slices.ts';
import {
  all,
  between,
  dialUnix,
  expectedSum,
  frame,
  gradientOf,
  header,
  never,
  SECRET,
  sameBits,
  scriptedPeer,
  world,
} from './exchange-world.ts';

test('a gradient that is not finite is told by every rank, with whose it is, and the next step works', async (t) => {
  await using w = await world(2);
  await w.connect(() => all(100, 2));
  w.exchanges[1]!.gradient[55] = Number.NaN;
  const sums = await Promise.all(w.exchanges.map((x) => x.reduce(3, 0, never)));
  for (const { segmentNorms } of sums) t.true(segmentNorms.every(Number.isNaN));
  t.deepEqual(
    sums.map(({ culprit }) => culprit),
    [false, true],
  );
  w.exchanges[1]!.gradient[55] = 1;
  const [next] = await Promise.all(w.exchanges.map((x) => x.reduce(4, 0, never)));
  t.deepEqual([next!.segmentNorms, next!.culprit], [[1], false]);
});

test('a peer that dies in the middle of a reduction is named with its phase, and the own gradient is untouched', async (t) => {
  await using w = await world(3);
  const length = 4 * CHUNK_ELEMENTS;
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
  await w.connect(() => all(length, 3), { generation: 2 });
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

/** Rank 0 of 2 expects 32 elements' first frame, and gets this. @returns what its reduction ends with */
async function reduceGetting(
  bytes: (checksum: (payload: Uint8Array) => number) => Buffer,
): Promise<[unknown, Exchange]> {
  await using w = await world(1);
  const x = w.exchanges[0]!;
  // Rank 1 is played by this test: it accepts rank 0's socket, and opens one of its own.
  await using peer = await scriptedPeer();
  const connecting = x.connect(w.plan(0, all(32, 2), { addresses: [x.address, peer.address] }), never);
  const send = await peer.accepted();
  send.write(frame({ ...header(1), phase: 'welcome', step: 0 }, Buffer.alloc(1)));
  const receive = dialUnix(x.address);
  receive.write(hello({ run: 'test', secret: SECRET, generation: 1, rank: 1, to: 0, memory: null }));
  await connecting;
  const reducing = x.reduce(5, 0, never);
  send.write(bytes((payload) => peer.checksum(payload)));
  const outcome = await reducing.catch((error) => error);
  receive.destroy();
  return [outcome, x];
}

const WELCOME_BYTES = HEADER_BYTES + 1;
const payload = Buffer.alloc(64, 1);

test('a damaged frame is refused before it is added, whatever byte is damaged, and whose it is is said', async (t) => {
  for (const at of [0, 5, 17, 33, 44, 50, 58, HEADER_BYTES + 3]) {
    const [error, x] = await reduceGetting((checksum) => {
      const bytes = frame(header(1), payload, checksum);
      bytes[at]! ^= 4;
      return bytes;
    });
    t.is((error as BraidError).code, 'PROTOCOL', `byte ${at}`);
    t.regex((error as BraidError).message, /^rank 1: a gradient frame is refused: /, `byte ${at}`);
    t.true(x.reduced.every((v) => v === 0));
  }
});

for (const [field, change, code] of [
  ['generation', { generation: 2 }, 'STALE_GENERATION'],
  ['step', { step: 6 }, 'PROTOCOL'],
  ['bucket', { bucket: 1 }, 'PROTOCOL'],
  ['phase', { phase: 'gather' }, 'PROTOCOL'],
  ['source', { source: 0 }, 'PROTOCOL'],
  ['dtype', { dtype: 'bf16' }, 'PROTOCOL'],
  ['offset', { offset: 16 }, 'PROTOCOL'],
] as const satisfies [string, Partial<Header>, string][]) {
  test(`a whole frame with another ${field} than the one that has to come next is refused before it is added`, async (t) => {
    const [error, x] = await reduceGetting((checksum) => frame({ ...header(1), ...change }, payload, checksum));
    t.is((error as BraidError).code, code);
    t.regex((error as BraidError).message, new RegExp(`^rank 1: a gradient frame is refused: its ${field} is `));
    t.true(x.reduced.every((v) => v === 0));
  });
}

test('a frame longer than the one that has to come next takes no memory', async (t) => {
  const [error] = await reduceGetting((checksum) => frame(header(1), Buffer.alloc(4096), checksum));
  t.regex((error as BraidError).message, /its length is 4096, expected 64/);
});

test('a stream that is damaged, cut or mixed with other bytes ends the reduction with an error that names the rank', async (t) => {
  const length = 3_000;
  const chunkElements = 256;
  await using w = await world(2);
  let damage = (data: Buffer, _at: number, _near: { destroy(): void }) => data;
  await using line = await between(w.exchanges[1]!.address, (near) => {
    let at = -WELCOME_BYTES; // it passes
    return (data) => {
      const from = at;
      at += data.length;
      return damage(data, from, near);
    };
  });
  const addresses = [w.exchanges[0]!.address, line.address];
  let generation = 0;
  const kinds = fc.constantFrom('flip', 'cut', 'insert', 'overwrite');
  await fc.assert(
    fc.asyncProperty(
      ...([kinds, fc.nat(), fc.nat(7), fc.uint8Array({ minLength: 1, maxLength: 300 })] as const),
      ...([
        fc.constantFrom('mesh' as const, 'ring' as const),
        fc.constantFrom('f32' as const, 'bf16' as const),
      ] as const),
      async (kind, offset, bit, garbage, topology, wire) => {
        const bytes = length * (wire === 'f32' ? 4 : 2) + 2 * Math.ceil(length / 2 / chunkElements) * HEADER_BYTES;
        const target = offset % bytes;
        garbage[0]! ^= 0xa5;
        let done = false;
        damage = (data, from, near) => {
          const i = target - from;
          if (done || i < 0 || i >= data.length) return data;
          done = true;
          if (kind === 'insert') return Buffer.concat([data.subarray(0, i), garbage, data.subarray(i)]);
          if (kind === 'cut') setImmediate(() => near.destroy());
          if (kind === 'cut') return data.subarray(0, i);
          if (kind === 'flip') data[i]! ^= 1 << bit;
          else for (const [k, byte] of garbage.subarray(0, data.length - i).entries()) data[i + k]! ^= byte || 1;
          return data;
        };
        generation++;
        const segments = all(length, 2, topology);
        const gradients = [0, 1].map((rank) => gradientOf(rank + generation, length));
        const changes = { generation, addresses, wire, chunkElements };
        await Promise.all(w.exchanges.map((x, rank) => x.connect(w.plan(rank, segments, changes), never)));
        w.exchanges.forEach((x, rank) => {
          x.gradient.set(gradients[rank]!);
        });
        const [zero, one] = await Promise.allSettled(
          w.exchanges.map((x) => x.reduce(1, 0, AbortSignal.timeout(20_000))),
        );
        t.true(done);
        t.is(zero!.status, 'rejected', kind);
        const { code, message, details } = (zero as PromiseRejectedResult).reason as BraidError;
        t.true(['PROTOCOL', 'WORKER_LOST'].includes(code), message);
        t.is(details.rank, 1, message);
        t.regex(message, /rank 1\b/);
        // The other one may have had all it needed; else it has lost its peer.
        if (one!.status === 'rejected') t.is(one!.reason.code, 'WORKER_LOST');
        else t.true(sameBits(w.exchanges[1]!.reduced, expectedSum(gradients, topology, wire)));
        t.true(sameBits(w.exchanges[0]!.gradient, gradients[0]!));
      },
    ),
    { numRuns: 150 },
  );
});

/** Bytes of the welcome, and of the frames of one slice of 8 chunks. */
const SLICE_BYTES = WELCOME_BYTES + 8 * (HEADER_BYTES + 4 * CHUNK_ELEMENTS);
for (const [promise, passes, waits] of [
  ['at once', WELCOME_BYTES, /in the reduce-scatter of step 1, bucket 0, waiting for rank 1/],
  [
    'in the middle of a frame',
    WELCOME_BYTES + 5_000_000,
    /in the reduce-scatter of step 1, bucket 0, waiting for rank 1/,
  ],
  ['between its two phases', SLICE_BYTES, /in the all-gather of step 1, bucket 0, waiting for rank 1/],
] as const) {
  test(`a peer that freezes ${promise} is named when the reduction is given up`, async (t) => {
    const frozen = await freeze(passes, 0);
    t.is(frozen.code, 'CANCELLED');
    t.regex(frozen.message, waits);
  });
}

test('a peer that stops reading is named when the reduction is given up', async (t) => {
  const { code, message } = await freeze(SLICE_BYTES, 1);
  t.is(code, 'CANCELLED');
  t.regex(message, /in the all-gather of step 1, bucket 0, sending to rank 1 \(/);
});

/**
 * Two ranks reduce two slices of 8 chunks, and nothing more of what rank `1 - dialing` sends is taken after so many bytes.
 * @returns what rank 0 ends with when it is given up
 */
async function freeze(passes: number, dialing: 0 | 1): Promise<BraidError> {
  await using w = await world(2);
  await using line = await between(w.exchanges[1 - dialing]!.address, (_, far) => {
    let passed = 0;
    return (data) => {
      const onwards = data.subarray(0, Math.max(0, passes - passed));
      passed += data.length;
      if (passed >= passes) far.pause();
      return onwards;
    };
  });
  const addresses = w.exchanges.map(({ address }, rank) => (rank === dialing ? address : line.address));
  await Promise.all(
    w.exchanges.map((x, rank) => x.connect(w.plan(rank, all(16 * CHUNK_ELEMENTS, 2), { addresses }), never)),
  );
  const controller = new AbortController();
  const [zero, one] = w.exchanges.map((x) => x.reduce(1, 0, controller.signal).catch((error) => error));
  await quiet(w.exchanges);
  controller.abort(new BraidError('CANCELLED', 'the step took too long'));
  await one;
  return await zero;
}

/** Resolves when none of them has moved a byte for a while. */
async function quiet(exchanges: Exchange[]): Promise<void> {
  for (let before = -1; ; ) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    const moved = exchanges.reduce((sum, { traffic }) => sum + traffic.sentBytes + traffic.receivedBytes, 0);
    if (moved === before) return;
    before = moved;
  }
}
