/** Metrics of runs: what a worker with a GPU tells, and what a coordinator tells of one that froze or died. */
import { chmodSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import test from 'ava';
import type { RunEvent } from '../coordinator/events.ts';
import type { Fault } from '../rig/fake-worker.ts';
import { readingOf } from '../worker/gpu.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import { TrainProcess, temporaryFolder, writePatterns, writeRecipe } from './training.ts';

/** Values by series, as Prometheus reads them. */
async function scrape(address: string): Promise<Map<string, number>> {
  const text = await (await fetch(`http://${address}/metrics`)).text();
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ')))]),
  );
}

test("nvidia-smi's lines are read, and what it does not know is left out", (t) => {
  t.deepEqual(readingOf('1024, 81559, 37'), {
    memoryUsedBytes: 1024 * 2 ** 20,
    memoryTotalBytes: 81559 * 2 ** 20,
    utilisation: 0.37,
  });
  t.deepEqual(readingOf('5, 10, [N/A]'), {
    memoryUsedBytes: 5 * 2 ** 20,
    memoryTotalBytes: 10 * 2 ** 20,
    utilisation: null,
  });
  t.is(readingOf('Unable to determine the device handle for GPU0000:01:00.0: Unknown Error'), null);
});

test('a worker tells of its GPU, its input, its sessions and its traffic; the coordinator of its signs of life', async (t) => {
  await using folder = temporaryFolder();
  const recipe = writeRecipe(folder, {
    name: 'told',
    data: { format: 'idx', path: writePatterns(folder, 64, 8), mean: [0.5], std: [0.5], augment: { pad: 0 } },
    branches: [{ network: 'resnet', count: 2, depth: 8 }],
    method: { name: 'ffl' },
    training: { epochs: 5000, batch: 16, learningRate: 0.01, milestones: [] },
    checkpoint: { everySteps: 2, keep: 1 },
    cluster: { replicas: 1, heartbeatSeconds: 1 },
  });
  folder.write(
    'bin/nvidia-smi',
    `#!/bin/sh
echo "$@" > ${folder.path}/asked; echo $$ > ${folder.path}/pid
while echo "1024, 81559, 37"; do sleep 0.1; done
`,
  );
  chmodSync(join(folder.path, 'bin/nvidia-smi'), 0o755);
  const coordinator = new TrainProcess([recipe, '--runs', join(folder.path, 'runs'), '--listen', '127.0.0.1:0'], {
    command: 'coordinator',
  });
  t.teardown(() => coordinator.child.kill('SIGKILL'));
  await coordinator.printed(/coordinator on \S+,/);
  const [, address, metrics] = /coordinator on (\S+), metrics on http:\/\/(\S+)\/metrics/.exec(coordinator.output)!;
  const worker = new TrainProcess(['--coordinator', address!, '--threads', '1', '--metrics-port', '0'], {
    command: 'worker',
    before: `export PATH=${folder.path}/bin:$PATH CUDA_VISIBLE_DEVICES=3`,
  });
  t.teardown(() => worker.child.kill('SIGKILL'));
  await coordinator.printed(/checkpoint/);
  await pause(1500); // for a sign of life, and for nvidia-smi
  const own = await scrape(/metrics on http:\/\/(\S+)\/metrics/.exec(worker.output)![1]!);
  t.is(own.get('braid_worker_gpu_memory_used_bytes{gpu="3"}'), 1024 * 2 ** 20);
  t.is(own.get('braid_worker_gpu_memory_total_bytes{gpu="3"}'), 81559 * 2 ** 20);
  t.is(own.get('braid_worker_gpu_utilisation_ratio{gpu="3"}'), 0.37);
  t.regex(readFileSync(join(folder.path, 'asked'), 'utf8'), /^--id=3 --query-gpu=memory\.used,memory\.total,utili/);
  const info = [...own.keys()].find((series) => series.startsWith('braid_worker_info{'))!;
  t.regex(info, /run="told-[\da-f]{8}",member="0",.*rank="0"/);
  for (const series of [
    'braid_worker_state{state="training"}',
    'braid_worker_phase_seconds_count{phase="compute"}',
    'braid_worker_phase_seconds_count{phase="commit"}',
    'braid_worker_device_seconds_total{phase="compute"}',
    'braid_worker_device_seconds_total{phase="apply"}',
    'braid_worker_device_seconds_total{phase="read"}',
    'braid_worker_decode_seconds_total',
    'braid_worker_bytes_total{link="shards",direction="received"}',
    'braid_worker_bytes_total{link="state",direction="received"}',
    'braid_worker_bytes_total{link="state",direction="sent"}',
    'process_resident_memory_bytes',
  ]) {
    t.true(own.get(series)! > 0, series);
  }
  t.true(own.get('braid_worker_decoded_images_total')! >= 16 * own.get('braid_worker_step')!);
  t.is(own.get('braid_worker_tensors'), 0); // every feed and result has been given back
  t.is(own.get('braid_worker_rejoins_total'), 0);

  const told = await scrape(metrics!);
  t.is(told.get('braid_run_state{state="waiting"}'), 0);
  t.is(told.get('braid_members{state="training"}'), 1);
  t.is(told.get('braid_members_wanted'), 1);
  for (const stat of ['min', 'median', 'max']) {
    t.true(told.get(`braid_member_resident_bytes{stat="${stat}"}`)! > 50e6);
    t.true(told.get(`braid_member_event_loop_lag_seconds{stat="${stat}"}`)! >= 0);
    t.true(told.get(`braid_member_phase_seconds{phase="compute",stat="${stat}"}`)! > 0);
  }
  t.true(told.get('braid_longest_silence_seconds')! < 5);
  t.true(told.get('braid_bytes_total{link="state",direction="sent"}')! > 10e3);
  t.true(told.get('braid_checkpoint_size_bytes')! > 10e3);
  t.true(told.get('braid_checkpoint_interval_seconds')! > 0);
  t.true(Math.abs(told.get('braid_checkpoint_timestamp_seconds')! - Date.now() / 1000) < 60);
  t.true(told.get('braid_seconds_left')! > 0);
  t.false([...told.keys()].some((series) => series.startsWith('braid_member_silent_seconds')));

  const status = await new TrainProcess(['--coordinator', address!], { command: 'status' }).ended();
  t.regex(status.output, / {2}1024 MiB {2}/);
  coordinator.child.kill('SIGINT');
  await coordinator.ended();
  t.is((await worker.ended()).code, 0, worker.output);
  const smi = readFileSync(join(folder.path, 'pid'), 'utf8').trim();
  while (existsSync(`/proc/${smi}`)) await pause(50);
});

/** What a coordinator's metrics told while and after a run of two workers lost one, and went on with another. */
async function lost(what: Fault['what']): Promise<{ after: Map<string, number>; longest: Map<string, number> }> {
  let address = '';
  let after: Promise<Map<string, number>> | undefined;
  const { running } = startCluster({
    recipe: smallRecipe({ cluster: { heartbeatSeconds: 0.5, heartbeatMisses: 6 } }),
    fault: { rank: 1, rpc: 'compute', step: 2, what },
    respawn: true,
    run: {
      onEvent: (event: RunEvent) => {
        if (event.kind === 'listening') address = event.metrics;
        if (event.kind === 'epoch') after ??= scrape(address);
      },
    },
  });
  const longest = new Map<string, number>();
  while (after === undefined) {
    await pause(50);
    for (const [series, value] of address === '' ? [] : await scrape(address)) {
      if (series.includes('silen')) longest.set(series, Math.max(value, longest.get(series) ?? 0));
    }
  }
  await running;
  return { after: await after, longest };
}

test('a worker that freezes is seen to be silent, and counted as frozen', async (t) => {
  const { after, longest } = await lost('freeze');
  const silence = (member: number) => longest.get(`braid_member_silent_seconds{member="${member}",host="test"}`) ?? 0;
  t.true(silence(1) > 2);
  t.true(silence(0) < silence(1));
  t.true(longest.get('braid_longest_silence_seconds')! > 2);
  t.true(after.get('braid_workers_lost_total{reason="frozen"}')! >= 1); // a machine that is busy may freeze another one
  t.is(after.get('braid_workers_lost_total{reason="disconnected"}'), 0);
  t.true(after.get('braid_retries_total')! >= 1);
  t.true(after.get('braid_errors_total{code="WORKER_LOST"}')! >= 1);
});

test('a worker that dies is counted as disconnected', async (t) => {
  const { after } = await lost('die');
  t.is(after.get('braid_workers_lost_total{reason="disconnected"}'), 1);
  t.is(after.get('braid_workers_lost_total{reason="failed"}'), 0);
});
