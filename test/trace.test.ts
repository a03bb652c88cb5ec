/** `braid train --trace`: one file of all processes, on one clock. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import turbo from '@julusian/jpeg-turbo';
import test from 'ava';
import { Random } from '../core/random.ts';
import { chromeTrace } from '../core/trace-file.ts';
import { type Folder, patterns, temporaryFolder, trainProcess, writePatterns, writeRecipe } from './training.ts';

const STEPS = 6;

interface Event {
  ph: string;
  name: string;
  pid: number;
  tid: number;
  ts: number;
  dur: number;
  args: { name?: string; span?: string; parent?: string; phase?: string };
}

const eventsOf = (json: string): Event[] => JSON.parse(json).traceEvents;
const end = ({ ts, dur }: Event) => ts + dur;

/** In every row, events are inside of one another or apart. */
function nested(events: Event[]): boolean {
  return [...Map.groupBy(events, ({ pid, tid }) => `${pid} ${tid}`).values()].every((row) =>
    row.every((a) =>
      row.every(
        (b) =>
          a === b ||
          end(a) <= b.ts ||
          end(b) <= a.ts ||
          (a.ts <= b.ts && end(b) <= end(a)) ||
          (b.ts <= a.ts && end(a) <= end(b)),
      ),
    ),
  );
}

test('what overlaps without nesting is in rows of its own', (t) => {
  const span = (name: string, startMs: number, endMs: number) => ({
    name,
    spanId: name,
    parentId: null,
    startMs,
    endMs,
    attributes: {},
  });
  const spans = [span('b', 2, 5), span('a', 0, 4), span('in a', 1, 3), span('after', 5, 6)];
  const events = eventsOf(chromeTrace([{ name: 'p', spans }])).filter(({ ph }) => ph === 'X');
  t.true(nested(events));
  t.deepEqual(
    events.map(({ name, tid }) => [name, tid]),
    [
      ['a', 1],
      ['in a', 1],
      ['b', 2],
      ['after', 1],
    ],
  );
  t.like(events[2], { ts: 2000, dur: 3000 });
});

/** Photographs that take a while to decode. @returns their folder */
function writePhotographs(folder: Folder, split: string, count: number): string {
  const side = 400;
  for (let i = 0; i < count; i++) {
    const random = new Random(7, i);
    const pixels = Buffer.from(Uint8Array.from({ length: side * side * 3 }, () => random.int(256)));
    const options = { format: turbo.FORMAT_RGB, height: side, width: side, quality: 80, subsampling: turbo.SAMP_444 };
    folder.write(`${split}/class-${i % 2}/${i}.jpg`, turbo.compressSync(pixels, options));
  }
  return join(folder.path, split);
}

test.serial(
  'two workers: every process is there, spans nest, and shards are decoded while the device computes',
  async (t) => {
    await using folder = temporaryFolder();
    const recipe = writeRecipe(folder, {
      name: 'traced',
      data: {
        format: 'folder',
        path: writePhotographs(folder, 'train', 16),
        testPath: writePhotographs(folder, 'test', 4),
        mean: [120, 120, 120],
        std: [70, 70, 70],
        augment: { pad: 0 },
        resizedCrop: { size: 32, evaluationResize: 32 },
      },
      branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
      method: { name: 'ffl' },
      training: { epochs: STEPS, batch: 16, milestones: [1] },
      evaluation: { batch: 4, everyEpochs: STEPS },
      cluster: { replicas: 2, threads: 1, prefetch: 1 },
    });
    const file = join(folder.path, 'trace.json');
    const { code, output } = await trainProcess([recipe, '--runs', join(folder.path, 'runs'), '--trace', file]);
    t.is(code, 0, output);
    const all = eventsOf(readFileSync(file, 'utf8'));
    const processes = all.filter(({ name }) => name === 'process_name').map(({ args }) => args.name!);
    t.is(processes.length, 3);
    t.regex(processes.join(), /^coordinator,worker 0 .*,worker 1 /);
    const spans = all.filter(({ ph }) => ph === 'X');
    t.true(nested(spans));
    const of = (pid: number, name: string) => spans.filter((span) => span.pid === pid && span.name === name);
    t.is(of(0, 'step').length, STEPS);
    for (const worker of [1, 2]) {
      const computed = of(worker, 'compute');
      t.is(computed.length, STEPS);
      // A worker's compute is inside of the coordinator's call, as far as the clocks are known.
      const calls = new Map(of(0, 'compute').map((call) => [call.args.span, call]));
      for (const span of computed) {
        const call = calls.get(span.args.parent!)!;
        t.true(span.ts > call.ts - 50_000 && end(span) < end(call) + 50_000);
      }
      const runs = of(worker, 'session').filter(({ args }) => args.phase!.startsWith('compute'));
      t.is(runs.length, STEPS);
      const overlapping = of(worker, 'decode').filter((decode) =>
        runs.some((run) => decode.ts < end(run) && run.ts < end(decode)),
      );
      t.true(overlapping.length > 0);
    }
    t.true(of(1, 'reduce').length === STEPS && of(2, 'reduce').length === STEPS);
  },
);

test.serial(
  "split: the method's threads are there, with what they gather and scatter, and workers' calls are part of it",
  async (t) => {
    await using folder = temporaryFolder();
    const recipe = writeRecipe(folder, {
      name: 'traced',
      ...patterns(folder, 64, 16),
      method: { name: 'ffl' },
      training: { epochs: 1, batch: 16, microBatches: 2 },
      evaluation: { batch: 16 },
      cluster: { placement: 'split', replicas: 2, methodThreads: 2, threads: 1 },
    });
    const file = join(folder.path, 'trace.json');
    const { code, output } = await trainProcess([recipe, '--runs', join(folder.path, 'runs'), '--trace', file]);
    t.is(code, 0, output);
    const all = eventsOf(readFileSync(file, 'utf8'));
    const rows = new Set(
      all.flatMap(({ pid, name, args }) => (pid === 0 && name === 'thread_name' ? [args.name] : [])),
    );
    for (const row of ['calls', 'method 0', 'method 1', 'device']) t.true(rows.has(row), row);
    const spans = all.filter(({ ph }) => ph === 'X');
    t.true(nested(spans));
    const [steps, replicas, branches, pieces] = [4, 2, 2, 2];
    const of = (name: string) => spans.filter((span) => span.pid === 0 && span.name === name);
    t.is(of('fuse').length, steps * replicas * pieces);
    t.is(of('scatter').length, steps * replicas * branches * pieces);
    const gathered = new Set(of('gather').map(({ args }) => args.span));
    const forward = spans.filter(({ pid, name }) => pid > 0 && name === 'forward');
    t.true(forward.length > 0 && forward.every(({ args }) => gathered.has(args.parent)));
  },
);

test('a trace that cannot be written is refused before anything is started', async (t) => {
  await using folder = temporaryFolder();
  const recipe = new URL('../recipes/quickstart.yaml', import.meta.url).pathname;
  const data = [
    '--set',
    `data.path=${writePatterns(folder, 256, 40)}`,
    '--set',
    'data.fetch=null',
    '--set',
    'data.classes=4',
  ];
  const { code, output } = await trainProcess([
    recipe,
    ...data,
    '--runs',
    join(folder.path, 'runs'),
    '--trace',
    '/nowhere/trace.json',
  ]);
  t.is(code, 1);
  t.regex(output, /cannot write the trace \/nowhere\/trace\.json/);
});
