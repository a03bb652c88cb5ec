/** Prometheus's text format, as /metrics gives it. https://prometheus.io/docs/instrumenting/exposition_formats/ */
import type { Labels } from '../dashboards/queries.ts';

export interface Scraped {
  metric: string;
  labels: Labels;
  value: number;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED: Record<string, string> = { '\\\\': '\\', '\\"': '"', '\\n': '\n' };

export function parseExposition(text: string): Scraped[] {
  return text.split('\n').flatMap((line) => {
    const match = line.startsWith('#') ? null : LINE.exec(line);
    if (match === null) return [];
    const [, metric = '', inner = '', number = ''] = match;
    const labels = [...inner.matchAll(LABEL)].map(([, name = '', text = '']) => [
      name,
      text.replace(/\\[\\"n]/g, (escaped) => ESCAPED[escaped]!),
    ]);
    return [{ metric, labels: Object.fromEntries(labels), value: numberOf(number) }];
  });
}

function numberOf(text: string): number {
  return Number(text.replace('+Inf', 'Infinity').replace('-Inf', '-Infinity'));
}
