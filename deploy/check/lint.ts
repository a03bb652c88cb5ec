/** kube-score over every overlay, hadolint over the image's file, Docker Compose over its own. What is ignored has its reason here. */
import { join } from 'node:path';
import type { Manifest } from './control-plane.ts';
import { overlays, render } from './manifests.ts';
import type { Report } from './report.ts';
import { BIN, CACHE, output } from './tools.ts';

const IGNORED = [
  // The tag names one build, and a node that has it need not ask a registry that may be down: a worker restarts often.
  'container-image-pull-policy',
  // There is one coordinator, and workers are many on one node where that has many GPUs.
  'statefulset-has-host-podantiaffinity',
  // Liveness and readiness are two services of one health port, which kube-score does not tell apart.
  'pod-probes-identical',
];
const DOCKERFILE = new URL('../images/Dockerfile', import.meta.url).pathname;
const COMPOSE = new URL('../compose/compose.yaml', import.meta.url).pathname;

export async function checkLint(report: Report): Promise<void> {
  for (const overlay of overlays) {
    await report.check(`kube-score: ${overlay}`, async () => {
      const known = (await render(overlay)).flatMap(unfold);
      const args = [join(BIN, 'kube-score'), 'score', '--output-format', 'ci'];
      const ignored = IGNORED.flatMap((test) => ['--ignore-test', test]);
      const text = known.map((manifest) => JSON.stringify(manifest)).join('\n---\n');
      const said = await output([...args, ...ignored, '-'], { input: text });
      if (/^\[(CRITICAL|WARNING)\]/m.test(said)) throw new Error(said.replace(/^\[(OK|SKIPPED)\].*\n/gm, ''));
    });
  }
  await report.check('hadolint: Dockerfile', () => output([join(CACHE, 'hadolint/bin/hadolint'), DOCKERFILE]));
  await report.check('docker compose config', () =>
    output([join(BIN, 'docker-compose'), '--file', COMPOSE, 'config', '--quiet']),
  );
}

/** A JobSet's jobs, which kube-score does not look into. */
function unfold(manifest: Manifest): Manifest[] {
  if (manifest.kind !== 'JobSet') return [manifest];
  return manifest['spec'].replicatedJobs.map(({ name, template }: Manifest & { name: string }) => ({
    ...{ apiVersion: 'batch/v1', kind: 'Job', metadata: { ...manifest.metadata, name } },
    spec: template.spec,
  }));
}
