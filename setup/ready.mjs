/**
 * Whether set-up has nothing to do, told from stats alone: this runs before every command. What set-up depends on and
 * what it made is listed, with size and time, in .braid/ready.json; whoever touches any of it makes set-up look closely.
 */
import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join, relative, sep } from 'node:path';
import { ADDON } from './addon.mjs';
import { gpuTraces, hostPath } from './machine.mjs';
import { INSTALLED_LOCK, RUNTIME } from './packages.mjs';

const FILE = '.braid/ready.json';

const INPUTS = ['package-lock.json', 'setup/tensorflow.json', 'setup/addon.mjs', 'setup/smoke.mjs'];
const OUTPUTS = [INSTALLED_LOCK, RUNTIME, ADDON];

/**
 * @typedef {object} Ready
 * @property {string} choice what the environment asked for, and the GPU traces it was decided on
 * @property {Record<string, string>} stats path -> size and time
 * @property {{tensorflow: string, build: string, libraries: string}} found for `braid doctor`
 */

/** @param {string} root @param {NodeJS.ProcessEnv} env @returns {Ready | undefined} undefined when set-up must run */
export function readReady(root, env) {
  try {
    /** @type {Ready} */
    const ready = JSON.parse(readFileSync(join(root, FILE), 'utf8'));
    if (ready.choice !== choiceOf(root, env)) return undefined;
    const same = Object.entries(ready.stats).every(([path, stat]) => statOf(root, path) === stat);
    return same ? ready : undefined;
  } catch {
    return undefined; // no such file, or one of the listed files is gone
  }
}

/** @param {string} root @param {NodeJS.ProcessEnv} env @param {import('./tensorflow.mjs').TensorFlow} tensorflow @param {string} version */
export function writeReady(root, env, { build, libraries, link }, version) {
  const inside = libraries.startsWith(root + sep);
  const paths = [
    ...INPUTS,
    ...OUTPUTS,
    ...link.map((name) => join(inside ? relative(root, libraries) : libraries, name)),
  ];
  /** @type {Ready} */
  const ready = {
    choice: choiceOf(root, env),
    stats: Object.fromEntries(paths.map((path) => [path, statOf(root, path)])),
    found: { tensorflow: version, build, libraries: inside ? relative(root, libraries) : libraries },
  };
  mkdirSync(join(root, '.braid'), { recursive: true });
  writeFileSync(join(root, `${FILE}.part`), JSON.stringify(ready, null, 2));
  renameSync(join(root, `${FILE}.part`), join(root, FILE));
}

/** @param {string} root @param {NodeJS.ProcessEnv} env */
function choiceOf(root, env) {
  return JSON.stringify([env.BRAID_DEVICE || 'auto', env.BRAID_TENSORFLOW ?? '', gpuTraces(hostPath(root, env))]);
}

/** @param {string} root @param {string} path relative to root, or absolute */
function statOf(root, path) {
  const { size, mtimeMs } = statSync(path.startsWith(sep) ? path : join(root, path));
  return `${size} bytes at ${mtimeMs}`;
}
