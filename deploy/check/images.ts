/**
 * The CPU image, built without a daemon, and run as its pods are: no root, no capability, nothing to write to but /tmp. Needs
 * Debian's buildah, mmdebstrap, podman and runc.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { temporaryFolder } from '../../rig/folder.ts';
import { freePort } from '../../rig/free-port.ts';
import { patterns } from '../../rig/patterns.ts';
import type { Report } from './report.ts';
import { output } from './tools.ts';

const ROOT = new URL('../..', import.meta.url).pathname;
const BASE = 'localhost/braid-check-debian';
const IMAGE = 'localhost/braid-check-cpu';
/** This machine's, for a network whose registries have a certificate authority of their own. */
const AUTHORITIES = '/etc/ssl/certs/ca-certificates.crt';
/** Limits are named since who is confined may not raise them to podman's own. */
const RUN = ['podman', '--runtime=runc', 'run', '--rm', '--ulimit=nofile=8192:8192', '--ulimit=nproc=8192:8192'];
const AS_A_POD = [
  '--read-only',
  '--tmpfs=/tmp',
  '--cap-drop=all',
  '--security-opt=no-new-privileges',
  '--network=host',
];
const LIMITED = 'id -u && touch /tmp/file && ! touch /opt/braid/file && grep CapBnd /proc/self/status';
const PAGES = ['/', '/page.js', '/chart.js', '/format.js', '/page.css', '/uplot.js', '/uplot.css', '/api/dashboards'];

export async function checkImages(report: Report): Promise<void> {
  await using folder = temporaryFolder('braid-images-');
  chmodSync(folder.path, 0o755); // for another user
  const inImage = (...args: string[]) => [...RUN, ...AS_A_POD, `--volume=${folder.path}:${folder.path}:ro`, ...args];
  await report.check('the CPU image is built', async () => {
    await build(folder.path);
    const bytes = await output(['podman', 'image', 'inspect', '--format={{.Size}}', IMAGE]);
    report.note(`${(Number(bytes) / 1e9).toFixed(2)} GB`);
  });
  await report.check('it runs as user 10001, without a capability, and writes to /tmp alone', async () => {
    const said = await output(inImage('--entrypoint=sh', IMAGE, '-c', LIMITED));
    if (!/^10001\nCapBnd:\s0+\n$/.test(said)) throw new Error(said);
  });
  await report.check('it trains', async () => {
    const recipe = {
      name: 'image',
      ...patterns(folder, 250, 90),
      method: { name: 'ffl' },
      training: { epochs: 2, batch: 64 },
    };
    const file = folder.write('recipe.yaml', stringify(recipe));
    await output(inImage(IMAGE, 'train', file, '--runs=/tmp/runs'));
  });
  await report.check('braid dashboard has all of its page', async () => {
    const port = await freePort();
    const [podman, ...args] = inImage(IMAGE, 'dashboard', '--prometheus=http://127.0.0.1:9', `--port=${port}`);
    const child = spawn(podman!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child.stdout, 'data'); // where the page is
    for (const page of PAGES) {
      const { status } = await fetch(`http://127.0.0.1:${port}${page}`);
      if (status !== 200) throw new Error(`${page}: ${status}`);
    }
    child.kill('SIGTERM');
    const [code] = await once(child, 'close');
    if (code !== 0) throw new Error(`it ended with ${code}`);
  });
}

/** @param folder for the base's archive */
async function build(folder: string): Promise<void> {
  const known = await output(['podman', 'images', '--quiet', BASE]);
  if (known === '') {
    const archive = join(folder, 'debian.tar');
    // As Docker's image of Debian has it: no caches of apt's.
    const caches = ['pkgcache', 'srcpkgcache'].map((cache) => `--aptopt=Dir::Cache::${cache} ""`);
    await output([
      'mmdebstrap',
      '--quiet',
      '--variant=minbase',
      '--include=ca-certificates',
      ...caches,
      'trixie',
      archive,
    ]);
    await output(['podman', 'import', '--quiet', archive, BASE]);
  }
  await output(
    [
      ...['buildah', 'build', '--layers', '--isolation=chroot', '--pull=never', '--format=docker', '--target=cpu'],
      ...[`--volume=${AUTHORITIES}:${AUTHORITIES}:ro`, `--build-arg=BASE=${BASE}`, `--tag=${IMAGE}`],
      ...['--file=deploy/images/Dockerfile', '.'],
    ],
    { cwd: ROOT },
  );
}
