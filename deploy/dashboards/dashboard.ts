/** What a dashboard is made of: data alone, from which Grafana's JSON is made and Braid's own page. */
import type { Query } from './queries.ts';

/** What a number is in, and so how it is written. */
export type Unit =
  | 'count'
  | 'ratio'
  | 'seconds'
  | 'bytes'
  | 'bytesPerSecond'
  | 'perSecond'
  | 'imagesPerSecond'
  | 'nats';

export interface Line {
  /** Its name; `{{label}}` stands for a label's value. */
  legend: string;
  query: Query;
}

interface Base {
  title: string;
  /** What it shows, and what to think of it: one or two sentences. */
  about: string;
  /** Of 24. */
  width: number;
  /** Workers' own endpoints tell it, which the coordinator does not know: only a Prometheus has it. */
  ofWorkers?: true;
}

/** One number, the newest. */
export interface Stat extends Base {
  kind: 'stat';
  unit: Unit;
  query: Query;
  /** From these values on it deserves a look, and action. */
  thresholds?: { warning: number; critical?: number };
}

/** Lines over time. */
export interface Chart extends Base {
  kind: 'chart';
  unit: Unit;
  lines: Line[];
  /** Lines on top of one another, which together make a whole. */
  stacked?: boolean;
  /** What it means that there is no line. */
  none?: string;
}

/** A row for each set of labels, as of now. */
export interface Table extends Base {
  kind: 'table';
  /** Labels that name a row. */
  by: string[];
  columns: { title: string; unit: Unit; query: Query }[];
}

/** What happened last; from a Prometheus: which alerts fire. */
export interface Events extends Base {
  kind: 'events';
}

export type Panel = Stat | Chart | Table | Events;

export interface Dashboard {
  /** In addresses and names of files. */
  name: string;
  title: string;
  about: string;
  rows: Row[];
}

export interface Row {
  title: string;
  panels: Panel[];
  /** Left out where nothing tells of it, such as without a GPU. */
  optional?: true;
}

/** Every query of a panel, each with the name of what it gives. */
export function queriesOf(panel: Panel): Line[] {
  if (panel.kind === 'stat') return [{ legend: panel.title, query: panel.query }];
  if (panel.kind === 'chart') return panel.lines;
  if (panel.kind === 'events') return [];
  return panel.columns.map(({ title, query }) => ({ legend: title, query }));
}

export const panelsOf = (dashboard: Dashboard): Panel[] => dashboard.rows.flatMap(({ panels }) => panels);
