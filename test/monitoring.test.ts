/** Dashboards, rules and runbooks fit one another, and the metrics that there are. The live proof: npm run check:monitoring. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import test from 'ava';
import { parse } from 'yaml';
import { createMetrics, createWorkerMetrics } from '../core/metrics.ts';
import { DASHBOARDS } from '../deploy/dashboards/all.ts';
import { panelsOf } from '../deploy/dashboards/dashboard.ts';
import {
  across,
  age,
  mean,
  over,
  quantileOf,
  RECORDED,
  rate,
  type Sample,
  top,
  value,
} from '../deploy/dashboards/queries.ts';
import { generated } from '../deploy/grafana/generated.ts';
import { parseExposition } from '../deploy/preview/exposition.ts';
import { Recent } from '../deploy/preview/recent.ts';
import { debianProgram } from '../rig/debian.ts';

interface Rule {
  alert: string;
  expr: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

const ROOT = new URL('../', import.meta.url);
const read = (path: string) => readFileSync(new URL(path, ROOT), 'utf8');
const alerts: Rule[] = parse(read('deploy/prometheus/alerts.yml')).groups.flatMap(
  ({ rules }: { rules: Rule[] }) => rules,
);
const names = alerts.map(({ alert }) => alert).sort();

/** Everything that can be asked for: a histogram's series, too. */
async function metricNames(): Promise<Set<string>> {
  const metrics = await Promise.all(
    [createMetrics(), createWorkerMetrics()].map(({ registry }) => registry.getMetricsAsJSON()),
  );
  return new Set(
    metrics
      .flat()
      .flatMap(({ name, type }) =>
        `${type}` === 'histogram' ? ['_bucket', '_sum', '_count'].map((suffix) => `${name}${suffix}`) : [name],
      ),
  );
}

test('what is made of deploy/dashboards is as committed: npm run dashboards', (t) => {
  for (const { file, text } of generated()) {
    const normal = (content: string) => (file.pathname.endsWith('.json') ? JSON.parse(content) : content);
    t.deepEqual(normal(readFileSync(file, 'utf8')), normal(text), file.pathname);
  }
});

test('every metric that a panel, a recording rule or an alert asks for exists', async (t) => {
  const known = await metricNames();
  const json = DASHBOARDS.map(({ name }) => read(`deploy/grafana/${name}.json`));
  const text = [...json, read('deploy/prometheus/recording.yml'), read('deploy/prometheus/alerts.yml')].join('\n');
  const expressions = [...text.matchAll(/"?expr"?: (.*)/g)].map((match) => match[1]).join('\n');
  const asked = new Set(expressions.match(/\b(braid|process|nodejs)_\w+/g));
  t.true(asked.size > 40);
  t.deepEqual(
    [...asked].filter((name) => !known.has(name)),
    [],
  );
  const recorded = new Set(expressions.match(/\bbraid:[\w:]+/g));
  t.deepEqual(
    [...recorded].filter((name) => !RECORDED.has(name)),
    [],
  );
});

test('every alert has a severity, words, and a runbook that says what it means, what to look at and what to do', (t) => {
  for (const { alert, labels, annotations } of alerts) {
    t.true(['warning', 'critical'].includes(labels.severity ?? ''), alert);
    t.truthy(annotations.summary && annotations.description, alert);
    t.is(annotations.runbook, `docs/runbooks/${alert}.md`);
    const headings = read(annotations.runbook!).match(/^#+ .*/gm);
    t.deepEqual(headings, [`# ${alert}`, '## What it means', '## What to look at', '## What to do']);
  }
  const pages = readdirSync(new URL('docs/runbooks', ROOT)).map((file) => file.replace('.md', ''));
  t.deepEqual(pages.sort(), names);
});

test('every alert has a test in which it fires and one in which it does not', (t) => {
  const tests: { name: string }[] = parse(read('deploy/prometheus/rules.test.yml')).tests;
  t.deepEqual(
    tests.map(({ name }) => name).sort(),
    names.flatMap((name) => [`${name} does not`, `${name} fires`]),
  );
});

test('promtool: the rules are right, and fire when they should and only then', async (t) => {
  let promtool: string;
  try {
    promtool = await debianProgram('prometheus', 'usr/bin/promtool');
  } catch (error) {
    t.log(`SKIPPED: promtool cannot be had here: ${(error as Error).message}`);
    return t.pass();
  }
  const cwd = new URL('deploy/prometheus', ROOT);
  const run = promisify(execFile);
  await t.notThrowsAsync(run(promtool, ['check', 'config', 'prometheus.yml'], { cwd }));
  const { stdout, stderr } = await run(promtool, ['test', 'rules', 'rules.test.yml'], { cwd });
  t.regex(stdout + stderr, /SUCCESS/);
});

test('a row of panels fills whole lines of 24', (t) => {
  for (const { name, rows } of DASHBOARDS) {
    for (const { title, panels } of rows) {
      t.is(panels.reduce((sum, { width }) => sum + width, 0) % 24, 0, `${name}: ${title}`);
    }
  }
  t.true(DASHBOARDS.flatMap(panelsOf).length > 30);
});

test('without a Prometheus the same numbers come out', (t) => {
  const recent = new Recent(60);
  const scrape = (at: number, text: string) => recent.add(at, parseExposition(text));
  scrape(
    0,
    'n_total{a="x"} 10\nn_total{a="y"} 0\ng 1\nh_bucket{le="1"} 0\nh_bucket{le="2"} 0\nh_bucket{le="+Inf"} 0\nh_sum 0\nh_count 0',
  );
  scrape(
    10,
    'n_total{a="x"} 30\nn_total{a="y"} 5\ng 4\nh_bucket{le="1"} 5\nh_bucket{le="2"} 10\nh_bucket{le="+Inf"} 10\nh_sum 11\nh_count 10',
  );
  // y has begun again from 0
  scrape(
    20,
    'n_total{a="x"} 50\nn_total{a="y"} 1\ng{b="\\"q\\""} 7\ng 5\nh_bucket{le="1"} 10\nh_bucket{le="2"} 20\nh_bucket{le="+Inf"} 20\nh_sum 22\nh_count 20',
  );
  const numbers = (samples: Sample[]) => samples.map(({ value: number }) => number);
  t.deepEqual(rate('n_total', { by: ['a'] }).at(recent), [
    { labels: { a: 'x' }, value: 2 },
    { labels: { a: 'y' }, value: 0.3 },
  ]);
  t.deepEqual(rate('n_total', { where: { a: 'x|z' } }).at(recent), [{ labels: {}, value: 2 }]);
  t.deepEqual(value('g', { by: ['b'] }).at(recent), [
    { labels: { b: '' }, value: 5 },
    { labels: { b: '"q"' }, value: 7 },
  ]);
  t.deepEqual(numbers(mean('h').at(recent)), [1.1]);
  t.deepEqual(numbers(quantileOf(0.75, 'h').at(recent)), [1.5]);
  t.deepEqual(numbers(top(1, rate('n_total', { by: ['a'] })).at(recent)), [2]);
  t.deepEqual(numbers(across(0.5, rate('n_total', { by: ['a'] })).at(recent)), [1.15]);
  t.deepEqual(numbers(age('g').at(recent)), [13]);
  t.deepEqual(numbers(over(value('g'), value('nothing')).at(recent)), []);
  // What the newest scrape lacks is over, and what is older than the window forgotten.
  scrape(90, 'g 6');
  t.deepEqual(value('n_total').at(recent), []);
  t.deepEqual(rate('n_total').at(recent), []);
});
