/** `npm run dashboards`: writes Grafana's dashboards and Prometheus's recording rules, both made of deploy/dashboards. */
import { writeFileSync } from 'node:fs';
import { generated } from './generated.ts';

for (const { file, text } of generated()) writeFileSync(file, text);
