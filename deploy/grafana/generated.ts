/** The files that are made of deploy/dashboards. */
import { stringify } from 'yaml';
import { DASHBOARDS } from '../dashboards/all.ts';
import { RECORDED } from '../dashboards/queries.ts';
import { grafanaDashboard } from './dashboards.ts';

const at = (file: string) => new URL(`../${file}`, import.meta.url);

export function generated(): { file: URL; text: string }[] {
  const dashboards = DASHBOARDS.map((dashboard) => ({
    file: at(`grafana/${dashboard.name}.json`),
    text: `${JSON.stringify(grafanaDashboard(dashboard), null, 2)}\n`,
  }));
  return [...dashboards, { file: at('prometheus/recording.yml'), text: recordingRules() }];
}

/** What panels ask of many series, worked out once. */
function recordingRules(): string {
  const scope = { matchers: '', window: '1m', keep: ['job'] };
  const rules = [...RECORDED].map(([record, query]) => ({ record, expr: query.promql(scope) }));
  const header = '# Made of deploy/dashboards by: npm run dashboards\n';
  return header + stringify({ groups: [{ name: 'braid-recording', rules }] }, { lineWidth: 0 });
}
