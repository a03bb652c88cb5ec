/** Starting again: the same command at the first start, after SIGTERM, and when all is done. What Kubernetes does to a run. */
import { once } from 'node:events';
import { connect as dial } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { stringify } from 'yaml';
import type { RunEvent } from '../coordinator/events.ts';
import { BraidError, isTemporary } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { connect } from '../proto/calls.ts';
import { coordinatorService } from '../proto/load.ts';
import { VERSION } from '../proto/version.ts';
import { TrainProcess } from '../rig/braid-process.ts';
import { temporaryFolder } from '../rig/folder.ts';
import { patterns } from '../rig/patterns.ts';
import { lastCheckpoint, smallRecipe, startCluster } from './fake-cluster.ts';

const recipe = smallRecipe({ cluster: { placement: 'together' } });
const sigterm = () => new BraidError('CANCELLED', 'stopped by SIGTERM', { details: { signal: 'SIGTERM' } });

/** An onEvent that does something when a step is done. */
const after = (step: number, act: () => void) => (event: RunEvent) => {
  if (event.kind === 'step' && event.progress.step === step) act();
};

test('--resume where there is no run yet begins it, and says so', async (t) => {
  const said: string[] = [];
  const log = { ...silentLog, warn: (text: string) => said.push(text) };
  const whole = startCluster({ recipe });
  await whole.running;
  const first = startCluster({ recipe, run: { resume: true, log } });
  await first.running;
  t.regex(said.join(), /holds no run to go on with: this one begins/);
  t.deepEqual(lastCheckpoint(first.folder), lastCheckpoint(whole.folder));
});

test('SIGTERM to the coordinator leaves its workers waiting for the next one, with their state', async (t) => {
  const controller = new AbortController();
  const onEvent = after(1, () => controller.abort(sigterm()));
  const cluster = startCluster({ recipe, run: { signal: controller.signal, onEvent } });
  const error = await t.throwsAsync(cluster.running, { instanceOf: BraidError });
  t.true(isTemporary(error, controller.signal.reason));
  t.is(lastCheckpoint(cluster.folder).name, 'step-00000002');
  await Promise.all(cluster.workers.map(({ gone }) => gone));
  for (const { why } of cluster.workers) {
    t.is(why?.code, 'WORKER_LOST');
    t.regex(why!.message, /^the coordinator is away: stopped after step 2 of 6/);
  }
  t.false(cluster.calls.some((call) => call.includes(' stop ')));
});

test('a run that fails tells its workers why, so that they fail with it', async (t) => {
  const fault = { rank: 0, rpc: 'compute', step: 1, what: 'not a number' } as const;
  const cluster = startCluster({ recipe, fault });
  const error = await t.throwsAsync(cluster.running, { instanceOf: BraidError });
  t.is(error.code, 'NON_FINITE');
  t.false(isTemporary(error, undefined));
  await Promise.all(cluster.workers.map(({ gone }) => gone));
  t.deepEqual(
    cluster.workers.map(({ why }) => why?.code),
    ['NON_FINITE', 'NON_FINITE'],
  );
});

test('a run that is done is known as such: no worker is waited for, and who comes hears that it is over', async (t) => {
  const first = startCluster({ recipe });
  const summary = await first.running;
  const end = new AbortController();
  const listening = Promise.withResolvers<Extract<RunEvent, { kind: 'listening' }>>();
  const done = Promise.withResolvers<void>();
  const onEvent = (event: RunEvent) => {
    if (event.kind === 'listening') listening.resolve(event);
    if (event.kind === 'done') done.resolve();
  };
  const again = startCluster({
    recipe,
    workers: 0,
    run: { resume: true, stay: true, runFolder: first.folder, signal: end.signal, onEvent },
  });
  const { address, metrics } = await listening.promise;
  await done.promise;
  t.is((await fetch(`http://${metrics}/readyz`)).status, 200);
  const coordinator = connect(coordinatorService, address, { peer: 'the coordinator' });
  const offer = { version: VERSION, host: 'test', pid: 7, threads: 1, device: 'fake', generation: 0 };
  const answers = coordinator.join(
    { ...offer, address: '127.0.0.1:9', exchangeAddress: '127.0.0.1:9' },
    { signal: new AbortController().signal },
  );
  for await (const { over } of answers) t.true(over);
  coordinator.close();
  end.abort(sigterm());
  t.deepEqual(await again.running, JSON.parse(JSON.stringify(summary)));
});

test('all workers leave at once: the step they came to is kept, and the run goes on from it', async (t) => {
  const controller = new AbortController();
  const leaving: Promise<void>[] = [];
  const cluster = startCluster({
    recipe,
    run: {
      signal: controller.signal,
      onEvent: (event) => {
        after(1, () => leaving.push(...cluster.workers.map((worker) => worker.leave().catch(() => {}))))(event);
        if (event.kind === 'checkpoint') controller.abort(sigterm());
      },
    },
  });
  const error = await t.throwsAsync(cluster.running, { instanceOf: BraidError });
  t.is(error.code, 'CANCELLED');
  await Promise.all(leaving);
  t.regex(lastCheckpoint(cluster.folder).name, /^step-0000000[23]$/); // the step under way is finished
  const whole = startCluster({ recipe });
  const again = startCluster({ recipe, run: { resume: true, runFolder: cluster.folder } });
  await Promise.all([whole.running, again.running]);
  t.deepEqual(lastCheckpoint(again.folder), lastCheckpoint(whole.folder));
});

test('a process that is to end does not wait for a peer whose node is gone', async (t) => {
  await using folder = temporaryFolder();
  const training = { epochs: 1, batch: 64, learningRate: 0.1 };
  const file = folder.write(
    'recipe.yaml',
    stringify({ name: 'alone', ...patterns(folder, 64, 64), method: { name: 'ffl' }, training }),
  );
  const argv = [file, '--listen', '127.0.0.1:0', '--runs', join(folder.path, 'runs')];
  const coordinator = new TrainProcess(argv, { command: 'coordinator' });
  await coordinator.printed(/coordinator on .*:\d+,/);
  const port = Number(/coordinator on .*?:(\d+),/.exec(coordinator.output)![1]);
  const peer = dial({ port, host: '127.0.0.1', allowHalfOpen: true }); // never ends its side
  peer.on('error', () => {}); // reset at last
  const EMPTY_SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
  peer.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), EMPTY_SETTINGS]));
  await once(peer, 'data');
  coordinator.child.kill('SIGTERM');
  t.is((await coordinator.ended()).code, 75);
  peer.destroy();
});
