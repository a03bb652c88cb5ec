/** `braid status`, asked of a running cluster, and what its page says. */
import test from 'ava';
import { statusPage } from '../cli/status.ts';
import type { RunEvent } from '../coordinator/events.ts';
import type { MemberStatus, WatchResponse } from '../proto/messages.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import { TrainProcess } from './training.ts';

function member(changes: Partial<MemberStatus>): MemberStatus {
  const known = { member: 0, host: 'a', pid: 7, device: 'CPU', state: 'training', rank: 0 };
  return { ...known, seenSeconds: 0.5, slow: false, imagesPerSecond: 120.4, ...changes };
}

const status: NonNullable<MemberStatus['status']> = {
  member: 0,
  generation: 1,
  step: 30,
  phase: 'reduce',
  phaseSeconds: 1.25,
  residentBytes: 900 << 20,
  readyShards: 2,
  deviceBytes: 0,
  eventLoopLagSeconds: 0.0124,
};

const run: WatchResponse = {
  run: 'ffl-1234',
  generation: 1,
  step: 30,
  steps: 120,
  epoch: 0,
  epochs: 4,
  imagesPerSecond: 240.2,
  secondsLeft: 65,
  metrics: '127.0.0.1:9400',
  members: [member({ status })],
  events: ['2026-01-01T00:00:00.000Z worker 0 joined from a'],
};

const lineOf = (page: string, first: string) => page.split('\n').find((line) => line.trim().startsWith(first))!;
const cells = (line: string) => line.trim().split(/ {2,}/);

test('the page has the progress, a line a worker, and what happened last', (t) => {
  const gpu = member({ member: 1, rank: 1, device: 'NVIDIA H100', status: { ...status, deviceBytes: 3 * 2 ** 30 } });
  const page = statusPage({ ...run, members: [...run.members, gpu] });
  t.is(
    lineOf(page, 'ffl-1234'),
    'ffl-1234  [#####...............] step 30/120  epoch 1/4  generation 1  240 images/s, 1:05 left',
  );
  const head = cells(lineOf(page, 'worker'));
  const [own, other] = [cells(lineOf(page, '0 ')), cells(lineOf(page, '1 '))];
  t.deepEqual(Object.fromEntries(head.map((name, i) => [name, own[i]])), {
    worker: '0',
    rank: '0',
    host: 'a',
    pid: '7',
    device: 'CPU',
    state: 'training',
    step: '30',
    doing: 'reduce 1.3 s',
    'images/s': '120',
    memory: '900 MiB',
    GPU: '-',
    ready: '2',
    lag: '12 ms',
    seen: '0.5 s ago',
  });
  t.is(other[head.indexOf('GPU')], '3072 MiB');
  t.regex(page, /\n {2}(2025-12-31|2026-01-01) \d\d:\d\d:00 {2}worker 0 joined from a\n$/); // the day depends on where this is
});

test('where there is no room for all workers, those that want looking at stay', (t) => {
  const members = Array.from({ length: 1000 }, (_, i) => member({ member: i, rank: i }));
  members[700] = member({ member: 700, rank: 700, slow: true });
  members[800] = member({ member: 800, rank: 800, seenSeconds: 7 });
  const { rank: _, ...unranked } = member({ member: 900, state: 'waiting' });
  members[900] = unranked;
  const page = statusPage({ ...run, members }, 6);
  const shown = page.split('\n').filter((line) => / ago$/.test(line));
  t.deepEqual(
    shown.map((line) => cells(line)[0]),
    ['800', '700', '900', '0', '1'],
  );
  t.regex(shown[0]!, /training, silent/);
  t.regex(shown[1]!, /training, slow/);
  t.regex(page, /^ {2}and 995 more$/m);
});

test('a run without a step yet has a page', (t) => {
  t.regex(statusPage({ ...run, step: 0, steps: 0, imagesPerSecond: 0 }), /\[\.{20}\] step 0\/0 {2}/);
});

test('`braid status` asks a running coordinator, once or again and again', async (t) => {
  const listening = Promise.withResolvers<string>();
  const ending = new AbortController();
  const { running } = startCluster({
    recipe: smallRecipe(),
    fault: { rank: 1, rpc: 'compute', step: 4, what: 'hang' },
    run: {
      hard: ending.signal,
      onEvent: (event: RunEvent) => {
        if (event.kind === 'listening') listening.resolve(event.address);
      },
    },
  });
  const address = await listening.promise;
  const watching = new TrainProcess(['--coordinator', address, '--watch'], { command: 'status' });
  await watching.printed(/step 4\/6 .*images\/s/);
  await watching.printed(/ 0 +0 +test +7 +fake +training +4/); // as the next heartbeat tells
  const { code, output } = await new TrainProcess(['--coordinator', address], { command: 'status' }).ended();
  t.is(code, 0, output);
  t.regex(output, /small-run {2}\[#{13}\.{7}\] step 4\/6 {2}epoch 2\/2 {2}generation 1/);
  t.deepEqual(cells(lineOf(output, '0 ')).slice(0, 7), ['0', '0', 'test', '7', 'fake', 'training', '4']);
  t.regex(output, /^ {2}[\d-]{10} [\d:]{8} {2}worker 1 joined from test$/m);
  t.regex(output, /^ {2}[\d-]{10} [\d:]{8} {2}epoch 1 evaluated$/m);
  watching.child.kill('SIGINT');
  t.is((await watching.ended()).code, 0);
  ending.abort(new Error('over'));
  await t.throwsAsync(running);
});
