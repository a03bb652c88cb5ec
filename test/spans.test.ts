/** Spans: how they nest, how they cross processes, and what a collector gets of a run of real processes. */
import { fileURLToPath } from 'node:url';
import { loadPackageDefinition, Server, ServerCredentials } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import test from 'ava';
import { silentLog } from '../core/log.ts';
import { following, onSpan, type Span, traceparent, within } from '../core/spans.ts';
import { exportSpans } from '../proto/otlp.ts';
import { freePort } from '../rig/free-port.ts';
import { temporaryFolder, trainProcess, writePatterns, writeRecipe } from './training.ts';

/** Spans that ended while `work` went on. */
async function spansOf(work: () => Promise<unknown>): Promise<Span[]> {
  const spans: Span[] = [];
  const stop = onSpan((span) => spans.push(span));
  await work();
  stop();
  return spans;
}

test.serial('spans nest along awaits, whatever goes on beside them', async (t) => {
  const pause = () => new Promise((resolve) => setImmediate(resolve));
  const spans = await spansOf(() =>
    within(
      'step',
      async () => {
        await Promise.all(
          ['a', 'b'].map((name) =>
            within(name, async () => {
              await pause();
              await within(`inside ${name}`, pause);
            }),
          ),
        );
        await within('beside', pause, { root: true });
      },
      { attributes: { step: 7 }, sampled: true },
    ),
  );
  const named = (name: string) => spans.find((span) => span.name === name)!;
  const step = named('step');
  t.is(step.parent, null);
  t.deepEqual(step.attributes, { step: 7 });
  for (const name of ['a', 'b']) {
    t.is(named(name).parent!.spanId, step.context.spanId);
    t.is(named(`inside ${name}`).parent!.spanId, named(name).context.spanId);
    t.is(named(`inside ${name}`).context.traceId, step.context.traceId);
    t.true(named(`inside ${name}`).context.sampled);
  }
  t.is(named('beside').parent, null);
  t.not(named('beside').context.traceId, step.context.traceId);
  t.false(named('beside').context.sampled);
  t.true(step.startMs <= named('a').startMs && named('a').endMs <= step.endMs);
  t.true(Math.abs(step.endMs - Date.now()) < 60_000);
});

test.serial('what fails says so, and is thrown as it was', async (t) => {
  const error = new Error('no');
  const spans = await spansOf(() =>
    t.throwsAsync(
      within('a', () => Promise.reject(error)),
      { is: error },
    ),
  );
  t.is(spans[0]!.error, 'no');
});

test.serial(
  'a traceparent makes what follows a part of the other span; one that cannot be read does nothing',
  async (t) => {
    const header = `00-${'a1'.repeat(16)}-${'b2'.repeat(8)}-01`;
    const spans = await spansOf(async () => {
      await following(
        () => header,
        () => within('there', async () => t.regex(traceparent()!, /^00-(a1){16}-[\da-f]{16}-01$/)),
      );
      for (const wrong of [undefined, '', 'x', `${header}0`, header.replace(/a/g, '0').replace(/1/g, '0')]) {
        await following(
          () => wrong,
          () => within('alone', async () => {}),
        );
      }
    });
    const [there, ...alone] = spans;
    t.like(there!.parent, { traceId: 'a1'.repeat(16), spanId: 'b2'.repeat(8), remote: true, sampled: true });
    t.deepEqual(
      alone.map(({ parent }) => parent),
      [null, null, null, null, null],
    );
  },
);

test.serial('while nobody listens, nothing is made and nothing is sent along', async (t) => {
  await within('a', async () => t.is(traceparent(), null));
  const header = () => {
    t.fail();
    return '';
  };
  t.is(
    following(header, () => 5),
    5,
  );
});

// ---------------------------------------------------------------- a collector

interface Received {
  service: string;
  member: string | undefined;
  trace: string;
  id: string;
  parent: string;
  name: string;
  kind: number;
  start: bigint;
  end: bigint;
  attributes: Record<string, unknown>;
}

type KeyValues = { key: string; value: Record<string, unknown> }[];

/** fixtures/trace-service.proto's. */
interface ExportRequest {
  resourceSpans: {
    resource: { attributes: KeyValues };
    scopeSpans: {
      spans: {
        traceId: Buffer;
        spanId: Buffer;
        parentSpanId?: Buffer;
        name: string;
        kind: number;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
        attributes?: KeyValues;
      }[];
    }[];
  }[];
}

/** A collector of OTLP over gRPC that keeps what it gets. */
async function collector() {
  const file = fileURLToPath(new URL('./fixtures/trace-service.proto', import.meta.url));
  const { service } = (
    loadPackageDefinition(loadSync(file, { longs: String })) as never as {
      opentelemetry: { proto: { collector: { trace: { v1: { TraceService: { service: never } } } } } };
    }
  ).opentelemetry.proto.collector.trace.v1.TraceService;
  const spans: Received[] = [];
  const valuesOf = (attributes: KeyValues = []) =>
    Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));
  const server = new Server();
  server.addService(service, {
    Export: (call: { request: ExportRequest }, answer: (error: null, response: object) => void) => {
      for (const { resource, scopeSpans } of call.request.resourceSpans) {
        const of = valuesOf(resource.attributes);
        for (const span of scopeSpans.flatMap((each) => each.spans)) {
          spans.push({
            service: String(of['service.name']),
            member: of['braid.member'] as string | undefined,
            trace: span.traceId.toString('hex'),
            id: span.spanId.toString('hex'),
            parent: span.parentSpanId?.toString('hex') ?? '',
            name: span.name,
            kind: span.kind,
            start: BigInt(span.startTimeUnixNano),
            end: BigInt(span.endTimeUnixNano),
            attributes: valuesOf(span.attributes),
          });
        }
      }
      answer(null, {});
    },
  });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  return { endpoint: `http://127.0.0.1:${port}`, spans, close: () => server.forceShutdown() };
}

test.serial('a collector that cannot be reached is named once, and holds nothing up', async (t) => {
  const lines: string[] = [];
  const log = { ...silentLog, warn: (message: string) => lines.push(message) };
  const endpoint = `http://127.0.0.1:${await freePort()}`;
  const close = exportSpans({ endpoint, service: 'braid-worker', attributes: {}, log });
  for (let i = 0; i < 1000; i++) await within('step', async () => {}, { sampled: true });
  await close();
  t.is(lines.length, 1);
  t.regex(lines[0]!, new RegExp(`^traces do not reach ${endpoint}, and are lost: `));
});

test.serial('a step is one trace over a coordinator and two workers', async (t) => {
  await using folder = temporaryFolder();
  const { endpoint, spans, close } = await collector();
  const recipe = writeRecipe(folder, {
    name: 'traced',
    data: { format: 'idx', path: writePatterns(folder, 32, 8), mean: [0.5], std: [0.5], augment: { pad: 0 } },
    branches: [{ network: 'resnet', count: 2, depth: 8 }],
    method: { name: 'ffl' },
    training: { epochs: 1, batch: 8, learningRate: 0.01, milestones: [] },
    cluster: { replicas: 2, threads: 1, inputThreads: 1 },
    tracing: { endpoint, everySteps: 2 },
  });
  const { code, output } = await trainProcess([recipe, '--runs', `${folder.path}/runs`]);
  close();
  t.is(code, 0, output);
  const steps = spans.filter(({ name }) => name === 'step');
  t.deepEqual(
    steps.map(({ attributes }) => Number(attributes['step'])),
    [0, 2],
  );
  for (const step of steps) {
    const trace = spans.filter((span) => span.trace === step.trace);
    const parentOf = (span: Received) => trace.find(({ id }) => id === span.parent);
    t.is(step.service, 'braid-coordinator');
    t.is(step.parent, '');
    t.is(trace.filter((span) => parentOf(span) === undefined).length, 1); // no loose ends
    for (const phase of ['compute', 'reduce', 'commit']) {
      const own = trace.find(({ name, service }) => name === phase && service === 'braid-coordinator')!;
      t.is(own.parent, step.id);
      const workers = trace.filter(({ name, service }) => name === phase && service === 'braid-worker');
      t.deepEqual(workers.map(({ member }) => String(member)).sort(), ['0', '1']);
      for (const worker of workers) {
        t.is(worker.parent, own.id);
        t.is(worker.kind, 2); // SERVER
        t.true(worker.end > worker.start);
      }
    }
    const sessions = trace.filter(({ name }) => name === 'session');
    t.deepEqual(sessions.map((session) => `${session.member} ${session.attributes['phase']}`).sort(), [
      '0 apply',
      '0 compute@4',
      '1 apply',
      '1 compute@4',
    ]);
    t.deepEqual(new Set(sessions.map((session) => parentOf(session)!.name)), new Set(['compute', 'commit']));
  }
  t.deepEqual(new Set(spans.map(({ trace }) => trace)).size, 2);
});
