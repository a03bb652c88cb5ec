/**
 * `npm run check:monitoring [-- --pictures]`: a real run, scraped by a real Prometheus. A worker is slowed, one frozen, one killed,
 * and at last the coordinator; every panel and every alert must have found series by then, and the alerts of the workers must
 * have come to a webhook through a real Alertmanager.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { setTimeout } from 'node:timers/promises';
import { parse, stringify } from 'yaml';
import { DASHBOARDS, withoutWorkersOwn } from '../../deploy/dashboards/all.ts';
import { panelsOf, queriesOf } from '../../deploy/dashboards/dashboard.ts';
import type { Sample } from '../../deploy/dashboards/queries.ts';
import { parseExposition } from '../../deploy/preview/exposition.ts';
import { Prometheus } from '../../deploy/preview/prometheus.ts';
import { Recent } from '../../deploy/preview/recent.ts';
import { servePreview } from '../../deploy/preview/server.ts';
import { openChromium } from '../../rig/chromium.ts';
import { debianProgram } from '../../rig/debian.ts';
import { freePort } from '../../rig/free-port.ts';
import { patterns, TrainProcess, temporaryFolder, writeRecipe } from '../training.ts';

const WORKERS = 3;
const SCOPE = { matchers: 'job="braid"', window: '1m', keep: [] };
const LIMIT_MS = 300_000;
/** Before a picture is taken: charts look back a minute. */
const SETTLED_SECONDS = 90;

await using open = new AsyncDisposableStack();
const folder = open.use(temporaryFolder());
const say = (text: string) => process.stdout.write(`  ✔ ${text}\n`);

// ---- the run
const [listen, prometheusPort, alertmanagerPort, webhookPort, clusterPort, ...metricsPorts] = await Promise.all(
  Array.from({ length: 6 + WORKERS }, freePort),
);
const recipe = writeRecipe(folder, {
  name: 'watched',
  ...patterns(folder, 2400, 240),
  method: { name: 'ffl', rampUp: { kind: 'exponential', epochs: 60 } },
  training: { epochs: 10_000, batch: 24, learningRate: 0.0001, milestones: [50] }, // it learns while it is watched
  cluster: { placement: 'together', replicas: WORKERS, minReplicas: 1, heartbeatSeconds: 1, heartbeatMisses: 6 },
  checkpoint: { everySteps: 200 },
  metrics: { port: metricsPorts[0] },
});
const address = `127.0.0.1:${listen}`;
const start = (argv: string[], command: string, before?: string) => {
  const started = new TrainProcess(argv, { command, ...(before !== undefined && { before }) });
  open.defer(() => void started.child.kill('SIGKILL'));
  return started;
};
const coordinator = start([recipe, '--listen', address, '--runs', `${folder.path}/runs`], 'coordinator');
await coordinator.printed(/coordinator on/);
// A stand-in tells of a GPU once it is asked to, after the pictures.
const nvidiaSmi = folder.write(
  'bin/nvidia-smi',
  `#!/bin/sh
while sleep 0.5 && kill -0 $PPID; do [ -e ${folder.path}/gpu ] && echo "1024, 81559, 37"; done
`,
);
chmodSync(nvidiaSmi, 0o755);
const workers = metricsPorts.slice(1).map((port) => {
  const argv = ['--coordinator', address, '--threads', '1', '--metrics-port', `${port}`];
  return start(argv, 'worker', `export PATH=${folder.path}/bin:$PATH CUDA_VISIBLE_DEVICES=0`);
});

// ---- what watches it
const arrived = new Set<string>();
const webhook = createServer(async (request, response) => {
  const { alerts } = JSON.parse(Buffer.concat(await request.toArray()).toString());
  for (const { labels } of alerts) arrived.add(labels.alertname);
  response.end();
}).listen(webhookPort, '127.0.0.1');
open.defer(() => void webhook.close());
const alertmanagerConfig = {
  route: { receiver: 'hook', group_wait: '1s', group_interval: '1s', group_by: ['alertname'] },
  receivers: [{ name: 'hook', webhook_configs: [{ url: `http://127.0.0.1:${webhookPort}` }] }],
};
const prometheusConfig = parse(readFileSync('deploy/prometheus/prometheus.yml', 'utf8'));
Object.assign(prometheusConfig.global, { scrape_interval: '1s', scrape_timeout: '1s', evaluation_interval: '1s' });
prometheusConfig.scrape_configs[0].static_configs[0].targets = metricsPorts.map((port) => `127.0.0.1:${port}`);
prometheusConfig.alerting.alertmanagers[0].static_configs[0].targets = [`127.0.0.1:${alertmanagerPort}`];
for (const rules of prometheusConfig.rule_files) copyFileSync(`deploy/prometheus/${rules}`, `${folder.path}/${rules}`);
const daemon = (file: string, argv: string[]): ChildProcess => {
  const child = spawn(file, argv, { cwd: folder.path, stdio: 'ignore' });
  open.defer(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  return child;
};
// Debian's build reads its templates from /usr/share: it gets the package's own there, in a mount namespace.
daemon('unshare', [
  ...['--user', '--map-root-user', '--mount'],
  ...['sh', '-c', 'mount --bind "$0/usr/share" /usr/share && exec "$0/usr/bin/prometheus-alertmanager" "$@"'],
  await debianProgram('prometheus-alertmanager', ''),
  `--config.file=${folder.write('alertmanager.yml', stringify(alertmanagerConfig))}`,
  `--web.listen-address=127.0.0.1:${alertmanagerPort}`,
  `--cluster.listen-address=127.0.0.1:${clusterPort}`,
  `--storage.path=${folder.path}/alertmanager`,
]);
daemon(await debianProgram('prometheus', 'usr/bin/prometheus'), [
  `--config.file=${folder.write('prometheus.yml', stringify(prometheusConfig))}`,
  `--web.listen-address=127.0.0.1:${prometheusPort}`,
  `--storage.tsdb.path=${folder.path}/prometheus`,
]);
const url = `http://127.0.0.1:${prometheusPort}`;
const now = () => Date.now() / 1000;
const begun = now();

interface Answer {
  status: string;
  error?: string;
  data: { result: { metric: Record<string, string>; value: [number, string]; values: [number, string][] }[] };
}

/** @returns the series that a query has found at any time so far */
async function found(query: string): Promise<Answer['data']['result']> {
  const body = new URLSearchParams({ query, start: `${begun}`, end: `${now()}`, step: '1' });
  const answer = (await (await fetch(`${url}/api/v1/query_range`, { method: 'POST', body })).json()) as Answer;
  if (answer.status !== 'success') throw new Error(`${query}: ${answer.error}`);
  return answer.data.result;
}

async function until(what: string, reached: () => Promise<boolean> | boolean): Promise<void> {
  const limit = AbortSignal.timeout(LIMIT_MS);
  while (!(await Promise.resolve(reached()).catch(() => false))) {
    if (limit.aborted) throw new Error(`${what}: not within ${LIMIT_MS / 1000} s\n${coordinator.output.slice(-2000)}`);
    await setTimeout(500);
  }
}

const seen = (query: string) => async () => (await found(query)).length > 0;

// ---- it trains, and is evaluated and saved
await until(
  'an evaluation and a checkpoint',
  seen('braid_accuracy_ratio and on (job) braid_checkpoint_size_bytes > 0'),
);
say('a run with a coordinator and three workers is scraped by Prometheus');

// ---- two readings of one thing
const recent = new Recent(60);
for (let i = 0; i < 30; i++) {
  const text = await (await fetch(`http://127.0.0.1:${metricsPorts[0]}/metrics`)).text();
  recent.add(now(), parseExposition(text));
  await setTimeout(1_000);
}
const lines = withoutWorkersOwn(DASHBOARDS)
  .flatMap(panelsOf)
  .filter(({ kind }) => kind !== 'table')
  .flatMap(queriesOf);
const compared = await Promise.all(
  lines.map(async ({ query }) => {
    const here = keyed(query.at(recent));
    const expression = query.promql(SCOPE);
    const asked = new URLSearchParams({ query: expression });
    const answer = (await (await fetch(`${url}/api/v1/query?${asked}`)).json()) as Answer;
    const there = keyed(
      answer.data.result.map(({ metric, value: [, text] }) => {
        const { __name__, job, ...labels } = metric;
        return { labels, value: Number(text) };
      }),
    );
    return { expression, here, there };
  }),
);
const apart = compared.flatMap(({ here, there }) =>
  [...here].flatMap(([key, a]) => {
    const b = there.get(key) ?? Number.NaN;
    return Number.isFinite(a) && Number.isFinite(b)
      ? [a === b ? 0 : Math.abs(a - b) / Math.max(Math.abs(a), Math.abs(b))]
      : [];
  }),
);
apart.sort((a, b) => a - b);
assert(apart.length > 60);
assert(apart[Math.floor(apart.length / 2)]! < 0.1, `half of ${apart.length} numbers are apart by more than a tenth`);
const alone = compared.filter(({ here, there }) => here.size > 0 && there.size === 0);
assert.deepEqual(
  alone.map(({ expression }) => expression),
  [],
);
say(
  `without a Prometheus the same comes out: ${apart.length} numbers, the median apart by ${(100 * apart[Math.floor(apart.length / 2)]!).toFixed(1)} %`,
);

function keyed(samples: Sample[]): Map<string, number> {
  return new Map(
    samples.map(({ labels, value }) => {
      const own = Object.entries(labels).filter(([name]) => name !== 'instance');
      return [JSON.stringify(own.sort()), value];
    }),
  );
}

// ---- a straggler, a frozen worker, a killed one
const [slow, frozen, killed] = workers as [TrainProcess, TrainProcess, TrainProcess];
let slowed = true;
const slowing = (async () => {
  while (slowed) {
    slow.child.kill('SIGSTOP');
    await setTimeout(30); // shorter than a step: every one is slowed
    slow.child.kill('SIGCONT');
    await setTimeout(6);
  }
})();
await until('a straggler', seen('braid_straggler_seconds'));
slowed = false;
await slowing;
say('a slow worker is named');
frozen.child.kill('SIGSTOP');
await until('BraidWorkerFrozen', () => arrived.has('BraidWorkerFrozen'));
frozen.child.kill('SIGKILL');
say('a frozen worker: BraidWorkerFrozen has come to the webhook');
killed.child.kill('SIGKILL');
await until('BraidWorkerLost', () => arrived.has('BraidWorkerLost'));
say('a killed worker: BraidWorkerLost has come to the webhook');

// ---- what it looks like
const pictures = process.argv.includes('--pictures');
if (pictures) await setTimeout(Math.max(0, 1000 * (begun + SETTLED_SECONDS - now())));
const preview = await servePreview({ dashboards: DASHBOARDS, source: new Prometheus(url, 'braid', now), port: 0 });
open.defer(preview.close);
const browser = await openChromium();
open.defer(() => browser.close());
const page = await browser.newPage();
const scheme = (value: string) => page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
for (const [i, { name, title }] of DASHBOARDS.entries()) {
  await scheme(i === 1 ? 'dark' : 'light');
  await page.setViewport({ width: 1360, height: 800 });
  await page.goto(`${preview.url}/#${name}`);
  await page.waitForSelector('canvas');
  await setTimeout(1_000);
  assert.equal(await page.title(), `${title} · Braid`);
  if (pictures) await page.screenshot({ path: `docs/monitoring-${name}.png`, fullPage: true });
  await page.goto('about:blank');
}
say('every dashboard is drawn in a browser from Prometheus');

folder.write('gpu', '');
await until('a GPU', seen('braid_worker_gpu_utilisation_ratio'));
say('a worker tells of the GPU that its machine has (nvidia-smi is a stand-in)');

// ---- nobody is there any more
coordinator.child.kill('SIGKILL');
const gone = alertsOf().find(({ alert }) => alert === 'BraidCoordinatorGone')!;
await until('BraidCoordinatorGone', seen(gone.expr));
say('a killed coordinator: BraidCoordinatorGone finds it');

// ---- every panel, every alert
const panels = DASHBOARDS.flatMap(panelsOf)
  .flatMap(queriesOf)
  .map(({ query }) => query.promql(SCOPE));
// Both sides of every comparison are there, whichever is larger; the run is younger than what BraidSlow compares it with.
const alerts = alertsOf().map(({ expr }) =>
  expr.replaceAll(/ (==|>|<) (?!bool)/g, ' $1 bool ').replace(' offset 10m', ''),
);
const empty: string[] = [];
for (const expression of [...panels, ...alerts]) if ((await found(expression)).length === 0) empty.push(expression);
assert.deepEqual(empty, []);
say(`${panels.length} queries of panels and ${alerts.length} alerts have found series`);

function alertsOf(): { alert: string; expr: string }[] {
  return parse(readFileSync('deploy/prometheus/alerts.yml', 'utf8')).groups[0].rules;
}
