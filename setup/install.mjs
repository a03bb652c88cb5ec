/**
 * The set-up: npm packages, TensorFlow, its addon, a smoke test. Every step looks whether it is done, works aside and
 * renames, so that set-up can be stopped anywhere, started again, and run by several at once.
 */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { addonFolder, buildAddon, isBuilt, placeAddon } from './addon.mjs';
import { note, runLogged } from './child.mjs';
import { explain, failureFrom, SetupFailure } from './failure.mjs';
import { exclusively } from './lock.mjs';
import { hasGpu, hostPath, installHint, missingTools, requirePlatform, TOOLS, thisMachine } from './machine.mjs';
import { installPackages, packagesInStep, RUNTIME } from './packages.mjs';
import { readReady, writeReady } from './ready.mjs';
import {
  chooseBuild,
  existingTensorFlow,
  isUnpacked,
  pinnedTensorFlow,
  readPins,
  unpackTensorFlow,
} from './tensorflow.mjs';

/** The project's folder. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

const PACKAGES_BYTES = 750e6; // node_modules
const NPM_CACHE_BYTES = 250e6;
const SPARE_BYTES = 200e6; // logs, the addon, the first run

/**
 * @typedef {object} Surroundings  all that set-up reads of the world
 * @property {string} root
 * @property {NodeJS.ProcessEnv} env
 * @property {import('./machine.mjs').Machine} machine
 * @property {(text: string) => void} print progress; a line may come in parts
 * @property {() => number} now milliseconds
 * @property {AbortSignal} signal
 */

/**
 * Brings everything into step; returns at once where it already is.
 * @param {Surroundings} surroundings @throws {SetupFailure}
 */
export async function setUp(surroundings) {
  const { root, env, print, signal } = surroundings;
  if (readReady(root, env) !== undefined) return;
  requirePlatform(surroundings.machine);
  await exclusively(
    root,
    { onWait: () => print('braid: waiting for another set-up of this folder to end\n'), signal },
    async () => {
      if (readReady(root, env) !== undefined) return; // the other one did it all
      await bringIntoStep(surroundings);
    },
  );
}

/** @param {Surroundings} surroundings */
async function bringIntoStep({ root, env, machine, print, now, signal }) {
  const path = hostPath(root, env);
  const state = join(root, '.braid');
  mkdirSync(state, { recursive: true });
  const log = join(state, 'setup.log');
  writeFileSync(log, '');
  const workshop = { root, log, env: childEnv(env, path), signal };

  const pins = readPins();
  const existing = env.BRAID_TENSORFLOW ? existingTensorFlow(env.BRAID_TENSORFLOW) : undefined;
  const build = existing ? undefined : chooseBuild(env, () => hasGpu(path));
  const tensorflow = existing ?? pinnedTensorFlow(root, pins, build ?? 'cpu');
  const packagesMissing = !packagesInStep(root);
  const tensorflowMissing = existing === undefined && !isUnpacked(tensorflow);

  let announced = false;
  const onStep = async (/** @type {string} */ label, /** @type {() => Promise<void>} */ work) => {
    if (!announced) print('braid: setting up (once; what is done is kept)\n');
    announced = true;
    print(`  ${`${label} `.padEnd(LABEL_COLUMNS, '.')} `);
    note(log, `\n== ${label}\n`);
    const start = now();
    try {
      await work();
    } catch (error) {
      print('failed\n');
      throw error;
    }
    print(`${((now() - start) / 1000).toFixed(1)} s\n`);
  };

  if (packagesMissing || tensorflowMissing || !isBuilt(addonFolder(root, tensorflow))) {
    requireTools(path, existing === undefined);
    const cache = tensorflowMissing ? wheelCache(env, state) : state;
    requireSpace(machine, root, cache, {
      rootBytes:
        (packagesMissing ? PACKAGES_BYTES + NPM_CACHE_BYTES : 0) +
        (tensorflowMissing ? unpackedBytes(pins, tensorflow) : 0),
      cacheBytes: tensorflowMissing ? downloadBytes(pins, tensorflow, cache) : 0,
    });
    if (packagesMissing) await onStep('npm packages', () => installPackages(workshop));
    if (tensorflowMissing && build !== undefined) await unpackTensorFlow(workshop, pins, build, { cache, onStep });
  }
  const folder = addonFolder(root, tensorflow);
  if (!isBuilt(folder)) await onStep('build the TensorFlow addon', () => buildAddon(workshop, tensorflow, folder));
  placeAddon(root, folder);
  const result = join(folder, 'smoke.json');
  if (!existsSync(result)) await onStep('try it out', () => smokeTest(workshop, result));
  const found = JSON.parse(readFileSync(result, 'utf8'));
  writeReady(root, env, tensorflow, found.tensorflow);
  prune(root, pins);
  if (announced && build === 'gpu' && !found.gpu) print('  TensorFlow reaches no GPU: `npx braid doctor` says more\n');
  if (announced) print('braid: ready\n');
}

const LABEL_COLUMNS = 48; // the longest label is a GPU wheel's

/** @param {NodeJS.ProcessEnv} env @param {string} path */
function childEnv(env, path) {
  // Under `npm start` and `npx`, npm tells its scripts about itself in variables that another npm would obey.
  const own =
    /^npm_(lifecycle|package|command|execpath|node_execpath|config_(local_prefix|global|omit|include|production|ignore_scripts|dry_run))/i;
  const kept = Object.entries(env).filter(
    ([name]) => !own.test(name) && name !== 'INIT_CWD' && name !== 'NODE_OPTIONS',
  );
  return { ...Object.fromEntries(kept), PATH: path };
}

/** @param {string} path @param {boolean} needsPip */
function requireTools(path, needsPip) {
  const missing = missingTools(path).filter((name) => name !== 'pip' || needsPip);
  if (missing.length === 0) return;
  const why = missing.map((name) => `${name} (${TOOLS[name].why})`).join(', ');
  throw new SetupFailure(
    `not found on this machine: ${why}.`,
    `install ${missing.length > 1 ? 'them' : 'it'}. ${installHint(missing)}.`,
  );
}

/**
 * Where downloaded wheels are kept for every clone of this user, or, where the home folder cannot be written, for this one.
 * @param {NodeJS.ProcessEnv} env @param {string} state
 */
export function wheelCache(env, state) {
  const base = env.XDG_CACHE_HOME || (env.HOME ? join(env.HOME, '.cache') : '');
  if (base !== '') {
    const folder = join(base, 'braid', 'wheels');
    try {
      mkdirSync(folder, { recursive: true });
      accessSync(folder, constants.W_OK);
      return folder;
    } catch {
      // A read-only home, as containers have it.
    }
  }
  return join(state, 'wheels');
}

/** @param {import('./tensorflow.mjs').Pins} pins @param {import('./tensorflow.mjs').TensorFlow} tensorflow */
function unpackedBytes({ builds }, { build }) {
  return (builds[build]?.unpackedMB ?? 0) * 1e6;
}

/** The wheels not there yet; pip holds the one at hand twice. @param {import('./tensorflow.mjs').Pins} pins @param {import('./tensorflow.mjs').TensorFlow} tensorflow @param {string} cache */
function downloadBytes({ builds }, { build }, cache) {
  const missing = (builds[build]?.wheels ?? []).filter(({ sha256 }) => !existsSync(join(cache, sha256)));
  const sizes = missing.map(({ megabytes }) => megabytes * 1e6);
  return sizes.reduce((sum, size) => sum + size, 0) + Math.max(0, ...sizes);
}

/** @param {import('./machine.mjs').Machine} machine @param {string} root @param {string} cache @param {{rootBytes: number, cacheBytes: number}} needs */
function requireSpace(machine, root, cache, { rootBytes, cacheBytes }) {
  const together = !existsSync(cache) || statSync(cache).dev === statSync(root).dev;
  const needs = together
    ? [{ folder: root, bytes: rootBytes + cacheBytes }]
    : [
        { folder: root, bytes: rootBytes },
        { folder: cache, bytes: cacheBytes },
      ];
  for (const { folder, bytes } of needs) {
    if (bytes === 0) continue;
    const free = machine.freeBytes(folder);
    if (free >= bytes + SPARE_BYTES) continue;
    const [wanted, found] = [bytes + SPARE_BYTES, free].map((value) => `${(value / 1e9).toFixed(1)} GB`);
    throw new SetupFailure(
      `the disk of ${folder} has ${found} free: set-up needs ${wanted}.`,
      'free some space, or clone Braid onto a larger disk.',
    );
  }
}

/** @param {import('./child.mjs').Workshop} workshop @param {string} result the file that takes what it found */
export async function smokeTest(workshop, result) {
  const script = join(workshop.root, 'setup', 'smoke.mjs');
  try {
    const output = await runLogged(workshop, 'Trying out TensorFlow', [join(workshop.root, RUNTIME), script], {
      env: { TF_CPP_MIN_LOG_LEVEL: '2' },
    });
    const line = output.trim().split('\n').at(-1) ?? '';
    JSON.parse(line);
    writeFileSync(`${result}.part`, line);
    renameSync(`${result}.part`, result);
  } catch (error) {
    throw error instanceof SetupFailure ? smokeFailure(error) : error;
  }
}

/** @param {SetupFailure} failure */
function smokeFailure(failure) {
  const options = { output: failure.output, killer: failure.killer };
  if (failure.killer === 'SIGILL') {
    return new SetupFailure(
      'this processor lacks instructions that TensorFlow is compiled for (AVX).',
      'use a machine with AVX, or a TensorFlow built without it: BRAID_TENSORFLOW=<its folder>.',
      options,
    );
  }
  const library = /(\S+\.so[\d.]*): cannot open shared object file/.exec(failure.output)?.[1];
  if (library !== undefined) {
    return new SetupFailure(
      `TensorFlow needs ${library}, which is not on this machine.`,
      `install the package that has ${library} (Debian: apt-get install apt-file, then apt-file search ${library}).`,
      options,
    );
  }
  return failure;
}

/** TensorFlow builds that the pins no longer name. @param {string} root @param {import('./tensorflow.mjs').Pins} pins */
function prune(root, pins) {
  const folder = join(root, '.braid', 'tensorflow');
  if (!existsSync(folder)) return;
  const named = /** @type {const} */ (['cpu', 'gpu']).map((build) =>
    basename(dirname(pinnedTensorFlow(root, pins, build).libraries)),
  );
  for (const entry of readdirSync(folder)) {
    if (!named.includes(entry.replace(/\.partial$/, ''))) rmSync(join(folder, entry), { recursive: true, force: true });
  }
}

/**
 * What commands call: sets up this folder, tells progress on stderr, and a failure in one clear message.
 * @returns {Promise<boolean>} whether Braid can start; if not, process.exitCode is set
 */
export async function setUpOrExplain() {
  const stop = new AbortController();
  const onSignal = (/** @type {NodeJS.Signals} */ name) => stop.abort(name);
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  const print = (/** @type {string} */ text) => void process.stderr.write(text);
  try {
    await setUp({
      root: ROOT,
      env: process.env,
      machine: thisMachine(),
      print,
      now: () => performance.now(),
      signal: stop.signal,
    });
    return true;
  } catch (error) {
    const failure = stop.signal.aborted ? stopped(stop.signal.reason) : asFailure(error);
    print(explain(failure));
    process.exitCode = failure.exitCode;
    return false;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

/** @param {string} signal */
function stopped(signal) {
  const exitCode = signal === 'SIGTERM' ? 143 : 130;
  return new SetupFailure('set-up was stopped.', 'run the same command again: it goes on where it stopped.', {
    exitCode,
  });
}

/** @param {unknown} error @returns {SetupFailure} */
function asFailure(error) {
  if (error instanceof SetupFailure) return error;
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return failureFrom('Set-up', text);
}
