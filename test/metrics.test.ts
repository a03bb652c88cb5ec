/** The metrics' definitions, their page, and what keeps their number small. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { oneOf, sampled } from '../core/instruments.ts';
import { COORDINATOR_METRICS, createMetrics, createWorkerMetrics, WORKER_METRICS } from '../core/metrics.ts';
import { METRICS_PAGE, metricsPage } from '../core/metrics-page.ts';

test('docs/metrics.md is in step with the definitions', async (t) => {
  t.is(readFileSync(METRICS_PAGE, 'utf8'), await metricsPage(), 'npm run docs:metrics');
});

test("names follow Prometheus's conventions, each with its help", (t) => {
  const coordinators = Object.values(COORDINATOR_METRICS).map(({ name }) => name);
  const workers = Object.values(WORKER_METRICS).map(({ name }) => name);
  t.is(new Set([...coordinators, ...workers]).size, coordinators.length + workers.length);
  t.true(workers.every((name) => name.startsWith('braid_worker_')));
  t.false(coordinators.some((name) => name.startsWith('braid_worker_')));
  for (const { name, kind, help } of [...Object.values(COORDINATOR_METRICS), ...Object.values(WORKER_METRICS)]) {
    t.regex(name, /^braid_[a-z_]+$/);
    t.regex(help, /\w.*\.$/);
    t.is(name.endsWith('_total'), kind === 'counter', name);
  }
});

test('two runs in one process do not mix, and both tell of the process', async (t) => {
  const [a, b] = [createMetrics(), createMetrics()];
  a.step.set(5);
  t.regex(await a.registry.metrics(), /^braid_step 5$/m);
  t.notRegex(await b.registry.metrics(), /^braid_step /m); // not known yet
  for (const { registry } of [a, b, createWorkerMetrics()]) {
    const text = await registry.metrics();
    t.regex(text, /^process_resident_memory_bytes \d{7,}$/m);
    t.regex(text, /^nodejs_eventloop_lag_p99_seconds [\d.e-]+$/m);
  }
});

test('counters whose labels are known beforehand begin at 0, so that their first increase is seen', async (t) => {
  const text = await createMetrics().registry.metrics();
  for (const reason of COORDINATOR_METRICS.workersLost.labels.reason) {
    t.true(text.includes(`braid_workers_lost_total{reason="${reason}"} 0\n`), reason);
  }
  t.true(text.includes('braid_retries_total 0\n'));
  t.false(text.includes('braid_loss{'));
});

test('a sampled gauge is asked when it is scraped, and forgets the labels that are gone', async (t) => {
  const metrics = createMetrics();
  let state: 'waiting' | 'training' = 'waiting';
  let silent: [{ member: string; host: string }, number][] = [[{ member: '7', host: 'a' }, 3]];
  sampled(metrics.runState, () => oneOf(COORDINATOR_METRICS.runState.labels.state, state));
  sampled(metrics.silence, () => silent);
  sampled(metrics.longestSilence, () => silent.length);
  const before = await metrics.registry.metrics();
  t.true(before.includes('braid_run_state{state="waiting"} 1\nbraid_run_state{state="training"} 0\n'));
  t.true(before.includes('braid_member_silent_seconds{member="7",host="a"} 3\n'));
  t.true(before.includes('braid_longest_silence_seconds 1\n'));
  state = 'training';
  silent = [];
  const after = await metrics.registry.metrics();
  t.true(after.includes('braid_run_state{state="training"} 1\n'));
  t.false(after.includes('member="7"'));
});
