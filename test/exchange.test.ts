/** The gradient exchange, over real sockets: what it sums, and who may take part. */
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import test from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import { Exchange, type ExchangePlan, type Segment } from '../worker/exchange/exchange.ts';
import { decodeHeader, encodeHeader, HEADER_BYTES } from '../worker/exchange/frame.ts';
import { hello } from '../worker/exchange/handshake.ts';
import { CHUNK_ELEMENTS } from '../worker/exchange/slices.ts';
import {
  all,
  dialUnix,
  expectedSum,
  frame,
  gradientOf,
  header,
  never,
  SECRET,
  sameBits,
  say,
  scriptedPeer,
  world,
} from './exchange-world.ts';

/** Names of who reads the others' gradients in place, by rank. */
const READERS = { nobody: () => false, everybody: () => true, 'every other rank': (rank: number) => rank % 2 === 0 };

for (const [how, topology, wire, readers] of [
  ['over sockets', 'mesh', 'f32', 'nobody'],
  ['over sockets, bf16', 'mesh', 'bf16', 'nobody'],
  ['read in place', 'mesh', 'f32', 'everybody'],
  ['some read in place', 'mesh', 'f32', 'every other rank'],
  ['all could be read in place, but bf16 travels', 'mesh', 'bf16', 'everybody'],
  ['over sockets', 'ring', 'f32', 'nobody'],
  ['over sockets, bf16', 'ring', 'bf16', 'nobody'],
  ['all could be read in place', 'ring', 'f32', 'everybody'],
] as const) {
  for (const ranks of [1, 2, 3, 4, 5, 6, 7, 8]) {
    test(`${ranks} ranks in a ${topology}, ${how}: all end with the documented sum, bit for bit, at any length and chunk size`, async (t) => {
      await using w = await world(ranks, { inPlace: READERS[readers] });
      let generation = 0;
      const lengths = fc.oneof(fc.nat(2 * ranks), fc.nat(70), fc.nat(6_000));
      const chunks = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 100, max: 2_000 }));
      await fc.assert(
        fc.asyncProperty(lengths, chunks, async (length, chunk) => {
          generation++;
          const chunkElements = Math.max(chunk, Math.ceil(length / ranks / 64)); // a test is not to send a million frames
          await w.connect(() => all(length, ranks, topology), { generation, wire, chunkElements });
          const gradients = w.exchanges.map((_, rank) => gradientOf(rank + generation, length));
          const expected = expectedSum(gradients, topology, wire);
          const results = await w.reduce(gradients);
          w.exchanges.forEach((x, rank) => {
            t.true(sameBits(x.reduced, expected));
            t.true(sameBits(x.gradient, gradients[rank]!));
            t.deepEqual(results[rank]!.segmentNorms, results[0]!.segmentNorms);
          });
          const norm = Math.hypot(...expected);
          t.true(Math.abs(results[0]!.segmentNorms[0]! - norm) <= 1e-12 * norm);
          const sent = results.reduce((sum, r) => sum + r.sentBytes, 0);
          const received = results.reduce((sum, r) => sum + r.receivedBytes, 0);
          t.is(sent, received);
          const payload = 2 * (ranks - 1) * length * (wire === 'bf16' ? 2 : 4);
          const frames = 60 * 2 * ranks * (ranks - 1) * (Math.ceil(length / ranks / chunkElements) + 1);
          if (readers === 'nobody' || topology === 'ring' || wire === 'bf16') t.true(sent >= payload);
          if (how === 'read in place') t.true(sent <= frames);
        }),
        {
          numRuns: 10,
          examples: [
            [0, 1],
            [1, 1],
            [ranks - 1, 7],
            [16 * ranks, 16],
            [5_003, 1_000],
          ],
        },
      );
    });
  }
}

for (const topology of ['mesh', 'ring'] as const) {
  test(`in a ${topology} segments of many frames of the usual size are summed, over unix sockets and TCP`, async (t) => {
    const length = 7 * CHUNK_ELEMENTS + 5;
    const gradients = [0, 1, 2].map((rank) => gradientOf(rank, length));
    const expected = expectedSum(gradients, topology, 'f32');
    for (const transport of ['unix', 'tcp'] as const) {
      await using w = await world(3, { transport });
      await w.connect(() => all(length, 3, topology));
      await w.reduce(gradients);
      t.true(w.exchanges.every((x) => sameBits(x.reduced, expected)));
    }
  });
}

test('rounds of one step have segments and topologies of their own', async (t) => {
  await using w = await world(3);
  const [first] = all(1_000, 3, 'ring') as [Segment];
  const [second] = all(300, 3) as [Segment];
  const third = { ...second, name: 'third', offset: 300 };
  await w.connect(() => [first], { rounds: [[first], [second, third]] });
  const gradients = [0, 1, 2].map((rank) => gradientOf(rank, 1_000));
  await w.reduce(gradients);
  t.true(w.exchanges.every((x) => sameBits(x.reduced, expectedSum(gradients, 'ring', 'f32'))));
  const results = await Promise.all(w.exchanges.map((x) => x.reduce(0, 1, never)));
  const halves = [0, 300].map((from) =>
    expectedSum(
      gradients.map((g) => g.subarray(from, from + 300)),
      'mesh',
      'f32',
    ),
  );
  for (const [rank, { reduced }] of w.exchanges.entries()) {
    t.true(halves.every((half, i) => sameBits(reduced.subarray(300 * i, 300 * i + 300), half)));
    t.is(results[rank]!.segmentNorms.length, 2);
  }
});

test('segments with groups of their own are summed apart, and steps follow one another without waiting for the slowest', async (t) => {
  await using w = await world(4);
  // Two replicas of two branches: the trunk is everyone's, rank 0 and 2 own branch 0, 1 and 3 branch 1.
  const trunk = 5_000;
  const branch = 300_000;
  await w.connect((rank) => [
    { name: 'trunk', offset: 0, length: trunk, ranks: [0, 1, 2, 3], topology: 'ring' },
    { name: 'branch', offset: trunk, length: branch, ranks: rank % 2 === 0 ? [0, 2] : [1, 3], topology: 'mesh' },
  ]);
  const gradients = w.exchanges.map((_, rank) => gradientOf(rank, trunk + branch));
  w.exchanges.forEach((x, rank) => {
    x.gradient.set(gradients[rank]!);
  });
  for (let step = 0; step < 5; step++) await Promise.all(w.exchanges.map((x) => x.reduce(step, 0, never)));
  w.exchanges.forEach((x, rank) => {
    const cut = (r: number, from: number, to: number) => gradients[r]!.subarray(from, to);
    const trunkSum = expectedSum(
      [0, 1, 2, 3].map((r) => cut(r, 0, trunk)),
      'ring',
      'f32',
    );
    const branchSum = expectedSum(
      [rank % 2, (rank % 2) + 2].map((r) => cut(r, trunk, trunk + branch)),
      'mesh',
      'f32',
    );
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

test('a generation that is not later than the last one, and a plan that contradicts itself, are refused', async (t) => {
  await using w = await world(1);
  await w.connect(() => all(10, 1), { generation: 4 });
  await t.throwsAsync(
    w.connect(() => all(10, 1), { generation: 4 }),
    { code: 'STALE_GENERATION' },
  );
  const x = w.exchanges[0]!;
  const plan = (change: Partial<ExchangePlan>) => x.connect(w.plan(0, all(10, 1), { generation: 5, ...change }), never);
  await t.throwsAsync(plan({ gradientLength: 11 }), { code: 'PROTOCOL', message: /cover 10 of the gradient's 11/ });
  const [whole] = all(10, 1) as [Segment];
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [1, 0] }]] }), { message: /not ascending/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [1] }]] }), { message: /lack rank 0/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, ranks: [0, 3] }]] }), { message: /past the 1 workers/ });
  await t.throwsAsync(plan({ rounds: [[{ ...whole, offset: 2 }]] }), { message: /begins at 2/ });
});

const HELLO = { run: 'test', secret: SECRET, generation: 3, rank: 1, to: 0, memory: null };
for (const [promise, change, code] of [
  ['of an earlier generation', { generation: 2 }, 'STALE_GENERATION'],
  ['of another run', { run: 'other' }, 'VERSION_MISMATCH'],
  ['of a stranger', { secret: 'guessed' }, 'UNAUTHORIZED'],
  ['of a stranger, of a generation to come', { secret: 'guessed', generation: 9 }, 'UNAUTHORIZED'],
  ['meant for another rank', { to: 1 }, 'PROTOCOL'],
  ['of a rank that shares nothing', { rank: 7 }, 'PROTOCOL'],
  ['of a rank that is connected already', {}, 'PROTOCOL'],
] as const) {
  test(`a hello ${promise} is refused with a reason`, async (t) => {
    await using w = await world(2);
    await w.connect(() => all(10, 2), { generation: 3 });
    const answer = await say(w.exchanges[0]!.address, hello({ ...HELLO, ...change }));
    const { header } = decodeHeader(answer.subarray(0, HEADER_BYTES));
    t.is(header.phase, 'refuse');
    t.is(JSON.parse(answer.subarray(HEADER_BYTES).toString()).code, code);
    await Promise.all(w.exchanges.map((x) => x.reduce(0, 0, never))); // nobody else is disturbed
  });
}

for (const [promise, change] of [
  ['of a process that is not there', { pid: 2 ** 22 + 1 }],
  ['of pages that are others', { name: 'braid-0123456789' }],
  ['of what is no memory', { fd: 0 }],
] as const) {
  test(`an offer ${promise} is not taken: gradients are sent`, async (t) => {
    await using w = await world(1, { inPlace: () => true });
    await using peer = await scriptedPeer();
    const [x] = w.exchanges as [Exchange];
    const connecting = x.connect(w.plan(0, all(32, 2), { addresses: [x.address, peer.address] }), never);
    const receive = dialUnix(x.address);
    const memory = { pid: process.pid, fd: 1, name: 'braid-of-a-test', ...change };
    receive.write(hello({ ...HELLO, generation: 1, memory }));
    const [answer] = (await once(receive, 'data')) as [Buffer];
    t.is(decodeHeader(answer).header.phase, 'welcome');
    t.is(answer[HEADER_BYTES], 0);
    (await peer.accepted()).write(frame({ ...header(1), phase: 'welcome', step: 0 }, Buffer.from([0])));
    await connecting;
    receive.destroy();
  });
}

test.serial('once all have met, nobody finds the memory of a generation any more', async (t) => {
  await using w = await world(2, { inPlace: () => true });
  for (const generation of [1, 2, 3]) {
    await w.connect(() => all(10, 2), { generation });
    await w.reduce([gradientOf(0, 10), gradientOf(1, 10)]);
  }
  const open = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return ''; // that of this listing
    }
  });
  t.deepEqual(
    open.filter((path) => path.startsWith('/memfd:braid')),
    [],
  );
});

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
  const later = w.exchanges[1]!.connect(w.plan(1, all(10, 2), { generation: 8 }), never);
  await w.exchanges[0]!.connect(w.plan(0, all(10, 1), { generation: 7 }), never);
  await Promise.all([later, w.exchanges[0]!.connect(w.plan(0, all(10, 2), { generation: 8 }), never)]);
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

test('a peer with the secret of a coordinator that has come back is waited with until this side is prepared, too', async (t) => {
  await using w = await world(2, { secret: 'of-the-second-coordinator' });
  const segments = () => all(10, 2);
  await w.connect(segments);
  const next = { generation: 2, secret: 'of-the-second-coordinator' };
  const early = w.exchanges[0]!.connect(w.plan(0, segments(), next), never);
  await setTimeout(200); // its hello is here by now
  await w.exchanges[1]!.connect(w.plan(1, segments(), next), never);
  await t.notThrowsAsync(early);
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

test('what a generation took is given back when the next one comes', async (t) => {
  const [length, generations] = [4_000_000, 40];
  await using w = await world(2, { inPlace: () => true });
  const gradients = [0, 1].map((rank) => new Float32Array(length).fill(rank));
  const before = process.memoryUsage.rss();
  for (let generation = 1; generation <= generations; generation++) {
    await w.connect(() => all(length, 2), { generation });
    await w.reduce(gradients);
  }
  const grown = process.memoryUsage.rss() - before;
  t.true(grown < 0.3 * generations * 2 * 8 * length, `${(grown / 2 ** 20).toFixed()} MiB more`); // each has gradient and sum
});
