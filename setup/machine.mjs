/** What this machine is and has: platform, tools, disk, GPUs. Nothing here installs or changes anything. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync, statfsSync, statSync } from 'node:fs';
import { delimiter, dirname, join, resolve } from 'node:path';
import { SetupFailure } from './failure.mjs';

/**
 * @typedef {object} Machine
 * @property {string} platform as process.platform
 * @property {string} arch as process.arch
 * @property {string} glibc version, or '' where the C library is another (musl)
 * @property {(directory: string) => number} freeBytes what the user may still write there
 */

/** Node 24 and the TensorFlow wheels (manylinux_2_27) are linked against this or later. */
export const OLDEST_GLIBC = [2, 28];

/** What set-up calls, and how to get it. */
export const TOOLS = {
  npm: { why: 'brings the JavaScript packages', debian: 'npm', fedora: 'npm' },
  python3: { why: 'unpacks the TensorFlow wheel', debian: 'python3', fedora: 'python3' },
  pip: { why: 'downloads the TensorFlow wheel', debian: 'python3-pip', fedora: 'python3-pip' },
  'g++': { why: 'builds the addon that calls TensorFlow', debian: 'g++', fedora: 'gcc-c++' },
};

/** @returns {Machine} */
export function thisMachine() {
  return { platform: process.platform, arch: process.arch, glibc: glibcVersion(), freeBytes };
}

function glibcVersion() {
  if (process.platform !== 'linux') return '';
  // Without this the report looks up the names of all network interfaces' peers.
  const report = /** @type {{excludeNetwork?: boolean, getReport(): any}} */ (/** @type {unknown} */ (process.report));
  report.excludeNetwork = true;
  return String(report.getReport().header.glibcVersionRuntime ?? '');
}

/** @param {string} directory it or the nearest folder above it that exists @returns {number} bytes */
function freeBytes(directory) {
  let at = resolve(directory);
  while (!existsSync(at)) at = dirname(at);
  const { bavail, bsize } = statfsSync(at);
  return bavail * bsize;
}

/**
 * PATH without this project's own node_modules/.bin, which npm puts first: `npm ci` wipes that folder while npm,
 * started through the Node in it, would still be running.
 * @param {string} root @param {NodeJS.ProcessEnv} env
 */
export function hostPath(root, env) {
  const own = join(root, 'node_modules');
  return (env.PATH ?? '')
    .split(delimiter)
    .filter((folder) => folder !== '' && !resolve(folder).startsWith(own))
    .join(delimiter);
}

/** @param {string} name @param {string} path as $PATH @returns {string | undefined} the first executable of that name */
export function which(name, path) {
  for (const folder of path.split(delimiter)) {
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      if (statSync(file).isFile()) return file;
    } catch {
      // Not here: the next folder may have it.
    }
  }
  return undefined;
}

/** @param {string} path as $PATH @returns {(keyof typeof TOOLS)[]} the tools that set-up needs and does not find */
export function missingTools(path) {
  const missing = /** @type {(keyof typeof TOOLS)[]} */ (
    ['npm', 'python3', 'g++'].filter((name) => !which(name, path))
  );
  if (!missing.includes('python3') && !hasPip(path)) missing.push('pip');
  return missing;
}

/** @param {string} path */
function hasPip(path) {
  const python = which('python3', path);
  // Finding the module takes a third of the time of running it.
  const look = 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)';
  return python !== undefined && spawnSync(python, ['-c', look], { stdio: 'ignore' }).status === 0;
}

/** @param {(keyof typeof TOOLS)[]} names @returns {string} the commands that install them */
export function installHint(names) {
  const debian = names.map((name) => TOOLS[name].debian).join(' ');
  const fedora = names.map((name) => TOOLS[name].fedora).join(' ');
  return `Debian and Ubuntu: apt-get install ${debian}; Fedora and RHEL: dnf install ${fedora}`;
}

/**
 * Refuses a machine that Braid cannot run on at all.
 * @param {Machine} machine @throws {SetupFailure}
 */
export function requirePlatform({ platform, arch, glibc }) {
  if (platform !== 'linux' || arch !== 'x64') {
    throw new SetupFailure(
      `this machine is ${platform} ${arch}: Braid runs on linux x64 only.`,
      'use a Linux machine (or WSL 2, or a container) with an x86-64 processor and an x64 Node.',
    );
  }
  const [major = 0, minor = 0] = glibc.split('.').map(Number);
  const [oldestMajor, oldestMinor] = /** @type {[number, number]} */ (OLDEST_GLIBC);
  if (major < oldestMajor || (major === oldestMajor && minor < oldestMinor)) {
    throw new SetupFailure(
      glibc === '' ? 'this Linux has no glibc (Alpine has musl).' : `this Linux has glibc ${glibc}, which is too old.`,
      `use a distribution with glibc ${OLDEST_GLIBC.join('.')} or later: Debian 10, Ubuntu 20.04, RHEL 8 or newer.`,
    );
  }
}

/**
 * Traces of an NVIDIA GPU that a stat can see: they decide when set-up has to look again, and cost no process.
 * @param {string} path as $PATH @returns {string[]}
 */
export function gpuTraces(path) {
  const traces = ['/dev/nvidiactl', '/proc/driver/nvidia/version', '/usr/lib/wsl/lib/libcuda.so.1'].filter((file) =>
    existsSync(file),
  );
  const smi = which('nvidia-smi', path);
  return smi === undefined ? traces : [...traces, smi];
}

/**
 * Whether there is an NVIDIA GPU that this process may use. The driver's /proc entry alone is not enough:
 * a container started without its GPUs still shows it.
 * @param {string} path as $PATH
 */
export function hasGpu(path) {
  if (existsSync('/dev/nvidiactl') && existsSync('/proc/driver/nvidia/gpus')) {
    if (readdirSync('/proc/driver/nvidia/gpus').length > 0) return true;
  }
  return listGpus(path).length > 0;
}

/**
 * @typedef {{index: string, name: string, memoryMiB: number, driver: string}} Gpu
 * @param {string} path as $PATH @returns {Gpu[]} as nvidia-smi lists them; none where it is missing or fails
 */
export function listGpus(path) {
  const smi = which('nvidia-smi', path);
  if (smi === undefined) return [];
  const query = ['--query-gpu=index,name,memory.total,driver_version', '--format=csv,noheader,nounits'];
  const { status, stdout } = spawnSync(smi, query, { encoding: 'utf8', timeout: SMI_TIMEOUT_MS });
  if (status !== 0) return [];
  return stdout
    .split('\n')
    .map((line) => line.split(',').map((cell) => cell.trim()))
    .filter((cells) => cells.length === 4)
    .map(([index = '', name = '', memory = '', driver = '']) => ({ index, name, memoryMiB: Number(memory), driver }));
}

const SMI_TIMEOUT_MS = 20_000; // a driver that is not loaded yet takes several seconds a GPU to start
