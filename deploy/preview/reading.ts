/** A dashboard with what a source gives for it: what the page draws. */
import { type Dashboard, type Panel, queriesOf, type Table } from '../dashboards/dashboard.ts';
import type { Labels } from '../dashboards/queries.ts';
import type { Look } from './source.ts';

export function readingOf(dashboard: Dashboard, look: Look) {
  const { run, lost } = look;
  const rows = dashboard.rows
    .filter(({ optional, panels }) => !optional || panels.some((panel) => isTold(panel, look)))
    .map(({ title, panels }) => ({ title, panels: panels.map((panel) => filled(panel, look)) }));
  return { run, lost, rows };
}

function isTold(panel: Panel, { results }: Look): boolean {
  return queriesOf(panel).some(({ query }) => results.get(query)?.some(({ values }) => values.some(isNumber)));
}

function filled(panel: Panel, { times, results, events }: Look) {
  const { kind, title, about, width } = panel;
  const base = { kind, title, about, width };
  if (panel.kind === 'events') return { ...base, events };
  if (panel.kind === 'table') {
    const told = panel.columns.filter(({ query }) => results.get(query)?.some(({ values }) => isNumber(values.at(-1))));
    const columns = told.map((column) => ({ title: column.title, unit: column.unit }));
    return { ...base, by: panel.by, columns, cells: cellsOf(panel.by, told, results) };
  }
  const lines = queriesOf(panel).flatMap(({ legend, query }) =>
    (results.get(query) ?? [])
      .filter(({ values }) => values.some(isNumber))
      .map(({ labels, values }) => ({ name: named(legend, labels), values }))
      .sort((a, b) => inOrder(a.name, b.name)),
  );
  if (panel.kind === 'stat') {
    const { unit, thresholds } = panel;
    return { ...base, unit, thresholds, lines: lines.map(({ name, values }) => ({ name, values: values.slice(-1) })) };
  }
  const { unit, stacked, none } = panel;
  return { ...base, unit, stacked, none, times, lines };
}

function cellsOf(by: string[], columns: Table['columns'], results: Look['results']) {
  const rows = new Map<string, { names: string[]; values: (number | null)[] }>();
  for (const [i, { query }] of columns.entries()) {
    for (const { labels, values } of results.get(query) ?? []) {
      const number = values.at(-1) ?? null;
      if (number === null) continue;
      const names = by.map((name) => labels[name] ?? '');
      const key = JSON.stringify(names);
      const row = rows.get(key) ?? { names, values: columns.map(() => null) };
      rows.set(key, row);
      row.values[i] = number;
    }
  }
  return [...rows.values()].sort((a, b) => inOrder(a.names.join(), b.names.join()));
}

const isNumber = (value: number | null | undefined) => value != null;

const named = (legend: string, labels: Labels) => legend.replace(/\{\{(\w+)\}\}/g, (_, name) => labels[name] ?? '');

const inOrder = (a: string, b: string) => a.localeCompare(b, 'en', { numeric: true });
