/** Step: TensorFlow's libraries and C headers, from its pinned wheels or from an installation that the user names. */
import { createHash } from 'node:crypto';
import {
  createReadStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { runLogged } from './child.mjs';
import { SetupFailure } from './failure.mjs';
import { exclusively } from './lock.mjs';

/**
 * @typedef {object} Wheel  one line of the pins
 * @property {string} name @property {string} version @property {string} sha256 of the file
 * @property {number} megabytes to download @property {string[]} take paths inside, folders ending in /
 *
 * @typedef {object} Pins  setup/tensorflow.json
 * @property {string} version
 * @property {{version: string, abi: string, platforms: string[]}} python whose wheels they are; any python3 can download them
 * @property {Record<string, {unpackedMB: number, preload: string[], wheels: Wheel[]}>} builds
 *
 * @typedef {object} TensorFlow  a TensorFlow to build the addon against
 * @property {string} id changes whenever the addon must be built anew
 * @property {'cpu' | 'gpu' | 'existing'} build
 * @property {string} libraries folder of the shared libraries, absolute
 * @property {string} include folder that holds tensorflow/c/c_api.h, absolute
 * @property {string[]} link file names to link against
 * @property {string[]} preload file names of the CUDA libraries to load ahead
 * @property {string[]} cuda folders that hold those, absolute
 */

const UNPACKER = fileURLToPath(new URL('unpack.py', import.meta.url));
export const PINS = fileURLToPath(new URL('tensorflow.json', import.meta.url));

/** @param {string} [file] @returns {Pins} */
export function readPins(file = PINS) {
  return JSON.parse(readFileSync(file, 'utf8'));
}

/**
 * The build that BRAID_DEVICE asks for: `cpu`, `gpu`, or (`auto`, the default) gpu where there is one.
 * @param {NodeJS.ProcessEnv} env @param {() => boolean} hasGpu @returns {'cpu' | 'gpu'}
 */
export function chooseBuild(env, hasGpu) {
  const device = env.BRAID_DEVICE || 'auto';
  if (device === 'cpu' || device === 'gpu') return device;
  if (device === 'auto') return hasGpu() ? 'gpu' : 'cpu';
  throw new SetupFailure(
    `BRAID_DEVICE is ${JSON.stringify(device)}.`,
    'set it to cpu, gpu or auto, or leave it out (auto).',
  );
}

/** @param {string} root @param {Pins} pins @param {'cpu' | 'gpu'} build @returns {TensorFlow} what that build is once it is there */
export function pinnedTensorFlow(root, pins, build) {
  const { preload, wheels } = pinsOf(pins, build);
  const id = `${build}-${pins.version}-${sha256(JSON.stringify([preload, wheels])).slice(0, 12)}`;
  const folder = join(root, '.braid', 'tensorflow', id);
  return {
    id,
    build,
    libraries: join(folder, 'tensorflow'),
    include: join(folder, 'tensorflow', 'include'),
    link: ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2'],
    preload,
    // The layout of the wheels themselves, side by side: what the RUNPATHs of all these libraries expect.
    cuda: wheels.flatMap(({ take }) => take.filter((path) => path.endsWith('/lib/')).map((path) => join(folder, path))),
  };
}

/** @param {Pins} pins @param {string} build */
function pinsOf(pins, build) {
  const pinned = pins.builds[build];
  if (pinned === undefined)
    throw new SetupFailure(
      `setup/tensorflow.json has no build ${build}.`,
      'restore it: git checkout setup/tensorflow.json',
    );
  return pinned;
}

/** @param {TensorFlow} tensorflow a pinned one @returns {boolean} whether every file is there in full */
export function isUnpacked(tensorflow) {
  const folder = dirname(tensorflow.libraries);
  try {
    /** @type {[string, number][]} */
    const contents = JSON.parse(readFileSync(join(folder, CONTENTS), 'utf8'));
    return contents.every(([path, size]) => statSync(join(folder, path)).size === size);
  } catch {
    return false;
  }
}

const CONTENTS = 'contents.json'; // [path, bytes] of every unpacked file

/**
 * Downloads (once a user, whatever number of clones) and unpacks a pinned build. It grows in a folder aside, wheel by
 * wheel, and is renamed when whole.
 * @param {import('./child.mjs').Workshop} workshop
 * @param {Pins} pins @param {'cpu' | 'gpu'} build
 * @param {{cache: string, onStep: (label: string, work: () => Promise<void>) => Promise<void>}} options
 */
export async function unpackTensorFlow(workshop, pins, build, { cache, onStep }) {
  const { libraries } = pinnedTensorFlow(workshop.root, pins, build);
  const folder = dirname(libraries);
  const partial = `${folder}.partial`;
  mkdirSync(partial, { recursive: true });
  for (const wheel of pinsOf(pins, build).wheels) {
    const mark = join(partial, `.unpacked-${wheel.sha256}`);
    if (existsSync(mark)) continue;
    const label = `${wheel.name} ${wheel.version}`;
    let file = await cachedWheel(wheel, cache);
    if (file === undefined) {
      await onStep(`download ${label} (${wheel.megabytes} MB)`, async () => {
        file = await downloadWheel(workshop, pins, wheel, cache);
      });
    }
    const unpack = ['python3', UNPACKER, String(file), partial, ...wheel.take];
    await onStep(`unpack ${label}`, async () => {
      await runLogged(workshop, `Unpacking ${label}`, /** @type {[string, ...string[]]} */ (unpack));
    });
    writeFileSync(mark, '');
  }
  writeFileSync(join(partial, CONTENTS), JSON.stringify(filesUnder(partial)));
  rmSync(folder, { recursive: true, force: true });
  renameSync(partial, folder);
}

/** @param {string} folder @returns {[string, number][]} */
function filesUnder(folder) {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((path) => !basename(path).startsWith('.'))
    .map((path) => ({ path, stat: statSync(join(folder, path)) }))
    .filter(({ stat }) => stat.isFile())
    .map(({ path, stat }) => [path, stat.size]);
}

/** @param {Wheel} wheel @param {string} cache @returns {Promise<string | undefined>} its file, if it is there and is what the pin says */
async function cachedWheel({ sha256 }, cache) {
  const folder = join(cache, sha256);
  const name = existsSync(folder) ? readdirSync(folder).find((entry) => entry.endsWith('.whl')) : undefined;
  if (name === undefined) return undefined;
  const hash = createHash('sha256');
  await pipeline(createReadStream(join(folder, name), { highWaterMark: 1 << 20 }), hash);
  if (hash.digest('hex') === sha256) return join(folder, name);
  rmSync(folder, { recursive: true, force: true });
  return undefined;
}

/**
 * pip downloads it and refuses it when its hash is not the pinned one.
 * @param {import('./child.mjs').Workshop} workshop @param {Pins} pins @param {Wheel} wheel @param {string} cache
 * @returns {Promise<string>} its file
 */
function downloadWheel(workshop, pins, wheel, cache) {
  const folder = join(cache, wheel.sha256);
  const label = `${wheel.name} ${wheel.version}`;
  return exclusively(folder, { onWait: () => {}, signal: workshop.signal }, async () => {
    const there = await cachedWheel(wheel, cache); // another clone's set-up may have just brought it
    if (there !== undefined) return there;
    const partial = `${folder}.partial`;
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(join(partial, 'tmp'), { recursive: true });
    const requirements = join(partial, 'requirements.txt');
    writeFileSync(requirements, `${wheel.name}==${wheel.version} --hash=sha256:${wheel.sha256}\n`);
    const { version, abi, platforms } = pins.python;
    const target = ['--python-version', version, '--implementation', 'cp', '--abi', abi, '--abi', 'none'];
    for (const platform of [...platforms, 'any']) target.push('--platform', platform);
    const pip = ['python3', '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--require-hashes', ...target];
    pip.push('--no-cache-dir', '--progress-bar=off', '--requirement', requirements, '--dest', join(partial, 'wheel'));
    await runLogged(workshop, `Downloading ${label}`, /** @type {[string, ...string[]]} */ (pip), {
      // pip's own temporary files beside the wheel, so that a run that was killed leaves none in /tmp.
      env: { TMPDIR: join(partial, 'tmp'), PIP_REQUIRE_VIRTUALENV: '0', PIP_RESUME_RETRIES: '5' },
    });
    renameSync(join(partial, 'wheel'), folder);
    rmSync(partial, { recursive: true, force: true });
    const [file] = readdirSync(folder);
    return join(folder, String(file));
  });
}

/**
 * An installation that BRAID_TENSORFLOW names: Python's `tensorflow` folder or the site-packages above it (as in
 * NVIDIA's containers), or the C library's own layout (lib/ and include/).
 * @param {string} given @returns {TensorFlow} @throws {SetupFailure} naming what is missing
 */
export function existingTensorFlow(given) {
  const directory = resolve(given);
  const layouts = [
    { libraries: directory, include: join(directory, 'include'), main: 'libtensorflow_cc.so.2' },
    {
      libraries: join(directory, 'tensorflow'),
      include: join(directory, 'tensorflow', 'include'),
      main: 'libtensorflow_cc.so.2',
    },
    { libraries: join(directory, 'lib'), include: join(directory, 'include'), main: 'libtensorflow_cc.so.2' },
    { libraries: join(directory, 'lib'), include: join(directory, 'include'), main: 'libtensorflow.so.2' },
  ];
  const layout = layouts.find(({ libraries, main }) => existsSync(join(libraries, main)));
  const remedy =
    'point BRAID_TENSORFLOW at the `tensorflow` folder of a Python installation of TensorFlow 2.15 or later, or unset it: set-up then brings its own.';
  if (layout === undefined)
    throw new SetupFailure(`BRAID_TENSORFLOW=${given}: no libtensorflow_cc.so.2 there.`, remedy);
  const framework = 'libtensorflow_framework.so.2';
  for (const file of [join(layout.libraries, framework), join(layout.include, 'tensorflow', 'c', 'c_api.h')]) {
    if (!existsSync(file)) throw new SetupFailure(`BRAID_TENSORFLOW=${given}: ${file} is missing.`, remedy);
  }
  const { size, mtimeMs } = statSync(join(layout.libraries, layout.main));
  const nvidia = join(dirname(layout.libraries), 'nvidia');
  const cuda = existsSync(nvidia)
    ? readdirSync(nvidia)
        .map((name) => join(nvidia, name, 'lib'))
        .filter(existsSync)
    : [];
  const preload = pinsOf(readPins(), 'gpu').preload.filter((name) =>
    cuda.some((folder) => existsSync(join(folder, name))),
  );
  return {
    id: `existing-${basename(directory)}-${sha256(JSON.stringify([layout, size, mtimeMs, cuda])).slice(0, 12)}`,
    build: 'existing',
    libraries: layout.libraries,
    include: layout.include,
    link: [layout.main, framework],
    preload,
    cuda,
  };
}

/** @param {string} text */
function sha256(text) {
  return createHash('sha256').update(text).digest('hex');
}
