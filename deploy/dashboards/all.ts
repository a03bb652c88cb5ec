import { CLUSTER } from './cluster.ts';
import type { Dashboard } from './dashboard.ts';
import { FAULTS } from './faults.ts';
import { RUN } from './run.ts';

export const DASHBOARDS = [RUN, CLUSTER, FAULTS];

/** What a coordinator alone can fill. */
export function withoutWorkersOwn(dashboards: Dashboard[]): Dashboard[] {
  return dashboards.map((dashboard) => ({
    ...dashboard,
    rows: dashboard.rows
      .map((row) => ({ ...row, panels: row.panels.filter(({ ofWorkers }) => ofWorkers !== true) }))
      .filter(({ panels }) => panels.length > 0),
  }));
}
