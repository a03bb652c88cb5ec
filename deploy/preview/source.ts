/** Where a page's numbers come from: a running coordinator (live.ts) or a Prometheus (prometheus.ts). */
import type { Dashboard } from '../dashboards/dashboard.ts';
import type { Labels, Query } from '../dashboards/queries.ts';

export interface Result {
  labels: Labels;
  /** One for each of a look's times; null: there was none. */
  values: (number | null)[];
}

export interface Happening {
  /** ISO 8601. */
  at: string;
  text: string;
}

export interface Look {
  /** The run's own name; '' before it has one. */
  run: string;
  /** Seconds since 1970, the newest last. */
  times: number[];
  results: Map<Query, Result[]>;
  events: Happening[];
  /** Why there is nothing newer; null: there is. */
  lost: string | null;
}

export interface Source {
  /** For the page's top: what is looked at. */
  name: string;
  look(dashboard: Dashboard): Promise<Look>;
}
