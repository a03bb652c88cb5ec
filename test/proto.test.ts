import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Server } from '@grpc/grpc-js';
import test from 'ava';
import fc from 'fast-check';
import protobuf from 'protobufjs';
import { BraidError } from '../core/errors.ts';
import { connect } from '../proto/calls.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { workerService } from '../proto/load.ts';
import type { Call, Messages, Part, WorkerService } from '../proto/messages.ts';
import { decodePart, encodePart } from '../proto/part-codec.ts';
import { collect, PART_BYTES, parts, payloads } from '../proto/parts.ts';

const root = protobuf.loadSync(new URL('../proto/braid.proto', import.meta.url).pathname);
const stamp = { run: 'quickstart-1', generation: 3, step: 41 };
const never = new AbortController().signal;

const partArbitrary: fc.Arbitrary<Part> = fc.record({
  run: fc.string(),
  generation: fc.maxSafeNat(),
  step: fc.maxSafeNat(),
  total: fc.maxSafeNat(),
  offset: fc.maxSafeNat(),
  data: fc.uint8Array({ maxLength: 300 }),
  crc32: fc.nat(0xffffffff),
  last: fc.boolean(),
  round: fc.nat(),
  lossScale: fc.nat(),
  goodUpdates: fc.nat(),
});

function plain(part: Part): Part {
  return { ...part, data: new Uint8Array(part.data) };
}

test('messages.ts has the fields of braid.proto, and no others', (t) => {
  const source = readFileSync(new URL('../proto/messages.ts', import.meta.url), 'utf8');
  const namespace = root.lookup('braid.v1') as protobuf.Namespace;
  for (const type of namespace.nestedArray) {
    if (!(type instanceof protobuf.Type)) continue;
    const body = new RegExp(`export (?:interface|type) ${type.name} (?:= )?\\{([^}]*)\\}`).exec(source)?.[1];
    t.not(body, undefined, type.name);
    const fields = [...body!.matchAll(/^ {2}(\w+)\??:/gm)].map((match) => match[1]!);
    t.deepEqual(
      fields,
      type.fieldsArray.map((field) => protobuf.util.camelCase(field.name)),
      type.name,
    );
  }
});

test('a Part by hand is the Part of any protobuf library', (t) => {
  const type = root.lookupType('braid.v1.Part');
  fc.assert(
    fc.property(partArbitrary, (part) => {
      const theirs = type.toObject(type.decode(encodePart(part)), { longs: Number, defaults: true });
      t.deepEqual(plain(theirs as Part), plain(part));
      t.deepEqual(plain(decodePart(Buffer.from(type.encode(type.fromObject(part)).finish()))), plain(part));
    }),
  );
});

test('bytes that are not a Part are refused, or read within their bounds', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
      try {
        t.true(decodePart(Buffer.from(bytes)).data.length <= bytes.length);
      } catch (error) {
        t.is((error as BraidError).code, 'PROTOCOL');
      }
    }),
    { numRuns: 1000 },
  );
});

test('a field of a later version is passed over', (t) => {
  const part = { ...[...parts(stamp, Buffer.from('abc'))][0]!, crc32: 5 };
  const later = Buffer.concat([encodePart(part), Buffer.from([15 * 8 + 2 - 128 + 128, 2, 9, 9])]);
  t.deepEqual(plain(decodePart(later)), plain(part));
});

test('any payload comes back whole, in shared memory', async (t) => {
  const sizes = fc.oneof(fc.nat(2000), fc.constantFrom(PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7));
  await fc.assert(
    fc.asyncProperty(sizes, fc.nat(), async (size, seed) => {
      const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 31 + seed) % 251);
      const back = await collect(parts(stamp, bytes), { maxBytes: size, expect: stamp });
      t.true(back.buffer instanceof SharedArrayBuffer);
      t.is(Buffer.compare(back, bytes), 0);
    }),
    { numRuns: 30 },
  );
});

test('payloads that follow one another come back one by one', async (t) => {
  function* shards() {
    for (let step = 5; step < 8; step++) yield* parts({ ...stamp, step }, Buffer.alloc(step, step));
  }
  const seen: [number, number][] = [];
  for await (const { step, bytes } of payloads(shards(), { maxBytes: 10 })) seen.push([step, bytes.length]);
  t.deepEqual(seen, [
    [5, 5],
    [6, 6],
    [7, 7],
  ]);
});

const spoilt: [string, (all: Part[]) => Part[], RegExp][] = [
  ['a flipped bit', (all) => all.map((p, i) => (i === 1 ? { ...p, data: flip(p.data) } : p)), /damaged/],
  ['parts out of order', ([a, b, c]) => [a!, c!, b!], /begins at byte/],
  ['a part missing', ([a, , c]) => [a!, c!], /begins at byte/],
  ['a part twice', ([a, b, c]) => [a!, b!, b!, c!], /begins at byte/],
  ['the end missing', ([a, b]) => [a!, b!], /ended at 2097152 of 2097160 bytes/],
  ['nothing at all', () => [], /before its first part/],
  ['no last mark', (all) => all.map((p) => ({ ...p, last: false })), /not marked/],
  ['an early last mark', ([a, b, c]) => [a!, { ...b!, last: true }, c!], /last part came at/],
  ['another total midway', ([a, b, c]) => [a!, { ...b!, total: 7 }, c!], /says 7 bytes in all/],
  ['another step midway', ([a, b, c]) => [a!, { ...b!, step: 7 }, c!], /step 7 inside a payload of step 41/],
  ['more data than said', ([a, b, c]) => [a!, b!, { ...c!, data: b!.data, crc32: b!.crc32 }], /runs past 2097160/],
  ['a second payload', (all) => [...all, ...all], /second payload/],
];
for (const [what, spoil, message] of spoilt) {
  test(`a payload with ${what} is refused`, async (t) => {
    const all = [...parts(stamp, Buffer.alloc(2 * PART_BYTES + 8, 3))];
    const error = await t.throwsAsync(collect(spoil(all), { maxBytes: 1 << 30 }), { instanceOf: BraidError });
    t.is(error.code, 'PROTOCOL');
    t.regex(error.message, message);
  });
}

test('a payload above the bound is refused before memory is taken for it', async (t) => {
  const huge = { ...[...parts(stamp, Buffer.alloc(1))][0]!, total: 1e15, last: false };
  const error = await t.throwsAsync(collect([huge], { maxBytes: 1000 }), { instanceOf: BraidError });
  t.regex(error.message, /1000000000000000 bytes where at most 1000/);
});

test('a payload of another generation is stale, one of another run is a stranger', async (t) => {
  const all = [...parts(stamp, Buffer.alloc(4))];
  const stale = await t.throwsAsync(collect(all, { maxBytes: 4, expect: { generation: 4 } }), {
    instanceOf: BraidError,
  });
  t.is(stale.code, 'STALE_GENERATION');
  const stranger = await t.throwsAsync(collect(all, { maxBytes: 4, expect: { run: 'x' } }), { instanceOf: BraidError });
  t.is(stranger.code, 'VERSION_MISMATCH');
});

function flip(data: Uint8Array): Uint8Array {
  const copy = new Uint8Array(data);
  copy[100]! ^= 1;
  return copy;
}

// ---------------------------------------------------------------- over real connections

/** A server with some rpcs of a worker, and a client of it, over a unix socket and over TCP. */
async function withWorker(
  handlers: Partial<WorkerService>,
  use: (worker: ReturnType<typeof connect<WorkerService>>) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-'));
  for (const wanted of [`unix:${folder}/s`, '127.0.0.1:0']) {
    const server = new Server(serverOptions);
    const missing = () => {
      throw new BraidError('INTERNAL', 'not part of this test');
    };
    const all = Object.fromEntries(Object.keys(workerService.methods).map((rpc) => [rpc, missing]));
    implement(server, workerService, { ...all, ...handlers } as WorkerService);
    const address = await listen(server, wanted);
    const worker = connect(workerService, address, { peer: 'worker 1 (test)' });
    try {
      await use(worker);
    } finally {
      worker.close();
      server.forceShutdown();
    }
  }
  rmSync(folder, { recursive: true });
}

test('unary calls carry every field, and absent stays absent', async (t) => {
  const request = {
    ...{ run: 'r', generation: 2, recipe: '{}', rank: 1, replica: 0, shardSizes: [64, 63], height: 32, width: 28 },
    ...{
      channels: 3,
      classes: 10,
      recordBytes: 2 ** 33,
      trainIndex: 'ab'.repeat(32),
      testIndex: '',
      exchangeAddresses: ['unix:/a', 'b:1'],
      groups: [{ segment: 'all', ranks: [0, 1], topology: 'TOPOLOGY_MESH' as const }],
    },
  };
  const answer = {
    variables: '[]',
    stateLength: 5,
    rounds: [{ gradientLength: 4, segments: ['all'], losses: ['total'] }],
    classifiers: [],
    outputLengths: [7, 9],
  };
  const seen: unknown[] = [];
  const prepare = async (got: unknown) => {
    seen.push(got);
    return answer;
  };
  await withWorker({ prepare }, async (worker) => {
    t.deepEqual({ ...(await worker.prepare(request, { signal: never })) }, answer);
    await worker.prepare({ ...request, branch: 0 }, { signal: never });
  });
  t.is((seen[0] as { branch?: number }).branch, undefined);
  t.is((seen[1] as { branch?: number }).branch, 0);
  t.like(seen[0], request as object);
});

test('megabytes go both ways, on streams that wait for their reader', async (t) => {
  const bytes = Buffer.alloc(40 * PART_BYTES + 5, 'braid');
  let received: Uint8Array | undefined;
  const handlers: Partial<WorkerService> = {
    async *readState(request) {
      yield* parts(request, bytes);
    },
    async writeState(stream) {
      received = await collect(stream, { maxBytes: bytes.length });
      return {};
    },
  };
  await withWorker(handlers, async (worker) => {
    const state = await collect(worker.readState(stamp, { signal: never }), { maxBytes: bytes.length, expect: stamp });
    t.is(Buffer.compare(state, bytes), 0);
    await worker.writeState(parts(stamp, bytes), { signal: never });
    t.is(Buffer.compare(received!, bytes), 0);
  });
});

test('a stream without a reader is produced no further than a few parts', async (t) => {
  let produced = 0;
  const handlers: Partial<WorkerService> = {
    async *readState(request) {
      for (const part of parts(request, new Uint8Array(200 * PART_BYTES))) {
        produced++;
        yield part;
      }
    },
  };
  await withWorker(handlers, async (worker) => {
    produced = 0;
    for await (const part of worker.readState(stamp, { signal: never })) {
      t.is(part.offset, 0);
      await worker
        .commit(
          { ...stamp, learningRate: 1, last: true, round: 0, skip: false, lossScale: 1, goodUpdates: 0 },
          { signal: never },
        )
        .catch(() => {}); // a round trip later
      break;
    }
    t.true(produced < 100, `${produced} parts`);
  });
});

const refused = new BraidError('STALE_GENERATION', 'this call is for generation 6, wörker 3 is in 7', {
  remedy: 'Rejoin.\nThen try again.',
});
const failures: [string, Partial<WorkerService>, (worker: WorkerService) => Promise<unknown>][] = [
  ['a unary call', { reduce: () => Promise.reject(refused) }, (w) => w.reduce(stamp, { signal: never })],
  [
    'a server stream, after some parts',
    {
      async *readState(request) {
        yield* parts(request, Buffer.alloc(5));
        throw refused;
      },
    },
    (w) => collect(w.readState(stamp, { signal: never }), { maxBytes: 5 }),
  ],
  [
    'a client stream, before it is read',
    { writeState: () => Promise.reject(refused) },
    (w) => w.writeState(parts(stamp, new Uint8Array(60 * PART_BYTES)), { signal: never }),
  ],
];
for (const [what, handlers, call] of failures) {
  test(`an error in ${what} arrives with its code, message and remedy`, async (t) => {
    await withWorker(handlers, async (worker) => {
      const error = await t.throwsAsync(call(worker), { instanceOf: BraidError });
      t.is(error.code, refused.code);
      t.is(error.message, refused.message);
      t.is(error.remedy, refused.remedy);
    });
  });
}

test('anything else that a handler throws is INTERNAL with its message', async (t) => {
  await withWorker({ reduce: () => Promise.reject(new TypeError('x is undefined')) }, async (worker) => {
    const error = await t.throwsAsync(worker.reduce(stamp, { signal: never }), { instanceOf: BraidError });
    t.is(error.code, 'INTERNAL');
    t.is(error.message, 'x is undefined');
  });
});

/** Waits until its caller is gone, then says so. */
function hanging() {
  const { promise: entered, resolve: enter } = Promise.withResolvers<void>();
  const { promise: left, resolve: leave } = Promise.withResolvers<void>();
  const wait = (signal: AbortSignal) =>
    new Promise<never>((_, reject) => {
      enter();
      signal.addEventListener('abort', () => {
        leave();
        reject(signal.reason);
      });
    });
  return { entered, left, wait };
}

const hangs: [
  string,
  (wait: (s: AbortSignal) => Promise<never>) => Partial<WorkerService>,
  (w: WorkerService, c: Call) => Promise<unknown>,
][] = [
  ['unary call', (wait) => ({ reduce: (_, { signal }) => wait(signal) }), (w, c) => w.reduce(stamp, c)],
  [
    'server stream',
    (wait) => ({
      async *readState(request, { signal }) {
        await wait(signal);
        yield* parts(request, Buffer.alloc(5));
      },
    }),
    (w, c) => collect(w.readState(stamp, c), { maxBytes: 5 }),
  ],
  [
    'client stream',
    (wait) => ({ writeState: (_: Messages<Part>, { signal }) => wait(signal) }),
    (w, c) => w.writeState(parts(stamp, new Uint8Array(60 * PART_BYTES)), c),
  ],
];
for (const [what, handlers, call] of hangs) {
  test(`a ${what} whose signal aborts throws its reason here and aborts the signal there`, async (t) => {
    let hang = hanging();
    await withWorker(
      handlers((signal) => hang.wait(signal)),
      async (worker) => {
        hang = hanging();
        const controller = new AbortController();
        const calling = call(worker, { signal: controller.signal });
        await hang.entered;
        controller.abort(new BraidError('CANCELLED', 'Ctrl-C'));
        const error = await t.throwsAsync(calling, { instanceOf: BraidError });
        t.is(error.message, 'Ctrl-C');
        await hang.left;
      },
    );
  });

  test(`a ${what} past its time is given up naming the peer`, async (t) => {
    let hang = hanging();
    await withWorker(
      handlers((signal) => hang.wait(signal)),
      async (worker) => {
        hang = hanging();
        const error = await t.throwsAsync(call(worker, { signal: never, timeoutMs: 300 }), { instanceOf: BraidError });
        t.is(error.code, 'WORKER_LOST');
        t.regex(error.message, /worker 1 \(test\)/);
      },
    );
  });
}

test('a peer that is not there is WORKER_LOST, at once and while waiting for it', async (t) => {
  const worker = connect(workerService, '127.0.0.1:1', { peer: 'worker 0 (nowhere)' });
  const error = await t.throwsAsync(worker.reduce(stamp, { signal: never }), { instanceOf: BraidError });
  t.is(error.code, 'WORKER_LOST');
  t.regex(error.message, /worker 0 \(nowhere\)/);
  const waiting = await t.throwsAsync(worker.ready({ signal: never, timeoutMs: 50 }), { instanceOf: BraidError });
  t.regex(waiting.message, /did not answer within 0.05 s: connect ECONNREFUSED 127\.0\.0\.1:1$/);
  worker.close();
});

test('an address that is taken, open to others, too long or no address is refused with what to do', async (t) => {
  const first = new Server();
  const address = await listen(first, '127.0.0.1:0');
  for (const [wanted, message] of [
    [address, /cannot listen on 127.0.0.1:\d+/],
    ['0.0.0.0:0', /reached from other machines/],
    [`unix:/tmp/${'x'.repeat(120)}`, /at most 107 bytes/],
    ['nonsense', /not an address/],
  ] as const) {
    const error = await t.throwsAsync(listen(new Server(), wanted), { instanceOf: BraidError });
    t.is(error.code, 'SETUP');
    t.regex(error.message, message);
    t.not(error.remedy, '');
  }
  first.forceShutdown();
});
