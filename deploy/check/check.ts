/**
 * npm run check:deploy: everything in deploy/, with real components. As root on Linux, with Go, pip, and Debian's buildah,
 * mmdebstrap, podman and runc; a first start builds Kubernetes.
 *
 *     npm run check:deploy                           all of it, with 100 nodes
 *     npm run check:deploy -- cluster --nodes 1000   one part: lint, cluster, pods or images
 */
import { parseArgs } from 'node:util';
import { checkCluster } from './cluster.ts';
import { checkImages } from './images.ts';
import { checkLint } from './lint.ts';
import { checkPods } from './pods.ts';
import { Report } from './report.ts';
import { installTools } from './tools.ts';

const { values, positionals } = parseArgs({
  options: { nodes: { type: 'string', default: '100' } },
  allowPositionals: true,
});
const write = (line: string) => void process.stdout.write(`${line}\n`);
const report = new Report(write);
const folders = await installTools(write);
const PARTS = {
  lint: () => checkLint(report),
  cluster: () => checkCluster(report, folders, Number(values.nodes)),
  pods: () => checkPods(report),
  images: () => checkImages(report),
};
for (const [name, run] of Object.entries(PARTS)) {
  if (positionals.length > 0 && !positionals.includes(name)) continue;
  write(name);
  await report.check(`${name} came to its end`, run);
}
write(`${report.passed} passed, ${report.failed.length} failed`);
process.exitCode = report.failed.length === 0 ? 0 : 1;
