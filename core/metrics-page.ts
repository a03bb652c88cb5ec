/** docs/metrics.md, made of the definitions: `npm run docs:metrics` writes it, test/metrics.test.ts compares. */
import { writeFileSync } from 'node:fs';
import { type Labels, processMetrics } from './instruments.ts';
import { COORDINATOR_METRICS, WORKER_METRICS } from './metrics.ts';

export const METRICS_PAGE = new URL('../docs/metrics.md', import.meta.url).pathname;

interface Row {
  name: string;
  kind: string;
  help: string;
  labels?: Labels;
}

export async function metricsPage(): Promise<string> {
  const ofProcess = await processMetrics().getMetricsAsJSON();
  return `# Metrics

Prometheus reads them at \`http://<host>:<port>/metrics\`: the coordinator's on \`metrics.port\` of the recipe, a worker's on its
\`--metrics-port\`. This page is made of \`core/metrics.ts\` by \`npm run docs:metrics\`.

A label's values in \`code\` are all there are, and counters of such labels begin at 0; a gauge is there once it is known. What there is one of for each worker is on
the worker's own endpoint; the coordinator tells of all workers together, by \`stat\`. The number of its series does not grow with
the number of workers.

## The coordinator

${table(Object.values(COORDINATOR_METRICS))}
## A worker

${table(Object.values(WORKER_METRICS))}
## Every process

prom-client's own: the process's memory is \`process_resident_memory_bytes\`, its event loop's lag \`nodejs_eventloop_lag_p99_seconds\`.

${table(ofProcess.map(({ name, help, type }) => ({ name, kind: String(type), help })))}`;
}

function table(rows: Row[]): string {
  const cells = [
    ['metric', 'kind', 'labels', 'meaning'],
    ...rows.map(({ name, kind, help, labels = {} }) => [`\`${name}\``, kind, labelsOf(labels), help]),
  ];
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  const [head, ...body] = cells.map((row) => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |\n`);
  const line = `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |\n`;
  return [head, line, ...body].join('');
}

function labelsOf(labels: Labels): string {
  return Object.entries(labels)
    .map(([name, values]) => {
      const bound = typeof values === 'string' ? values : values.map((value) => `\`${value}\``).join(', ');
      return `**${name}**: ${bound}`;
    })
    .join('; ');
}

if (import.meta.main) writeFileSync(METRICS_PAGE, await metricsPage());
