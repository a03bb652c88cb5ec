/** Makes rules.yaml, a PrometheusRule, of deploy/prometheus: node deploy/kubernetes/components/monitoring/rules.ts */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse, stringify } from 'yaml';

const RULES = new URL('./rules.yaml', import.meta.url);

export function rulesPage(): string {
  const groups = ['recording', 'alerts'].flatMap((name) => {
    const file = new URL(`../../../prometheus/${name}.yml`, import.meta.url);
    return parse(readFileSync(file, 'utf8')).groups;
  });
  const rule = { apiVersion: 'monitoring.coreos.com/v1', kind: 'PrometheusRule', metadata: { name: 'braid' } };
  return `# Made of deploy/prometheus by rules.ts.\n${stringify({ ...rule, spec: { groups } }, { lineWidth: 0 })}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(RULES, rulesPage());
