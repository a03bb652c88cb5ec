/**
 * Libraries that stand in for CUDA's, so that a torch built for CUDA loads on a machine that has none.
 *
 * One small library defines every CUDA function that torch's libraries name, each answering "no device"; empty ones
 * carry the file names that torch is linked to, and lead to it. (Were the functions in those, the loader would look
 * for symbol versions in them.) They lie beside torch's libraries, where its search path ends.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BraidError } from '../../core/errors.ts';

const NO_DEVICE = 100; // cudaErrorNoDevice
const CUDA_LIBRARY = /^lib(cu(?!da\.so)|nccl|nv)/; // not libcuda.so: that is the driver, and loaded only if there
const CUDA_FUNCTION = /^(__cuda|cu|nccl|nvrtc|nvshmem|nvJitLink)\w+$/;
const LISTING_BYTES = 64 << 20; // torch's tables of symbols are some megabytes

/** @throws BraidError SETUP when a tool of the compiler is missing or fails */
export function writeStandIns(venv: string): void {
  const libraries = torchLibraries(venv);
  const defined = new Set(libraries.flatMap((file) => symbols(file, '--defined-only')));
  const wanted = new Set(libraries.flatMap((file) => symbols(file, '--undefined-only')));
  const functions = [...wanted].filter((name) => CUDA_FUNCTION.test(name) && !defined.has(name));
  const names = new Set(libraries.flatMap(needed).filter((name) => CUDA_LIBRARY.test(name)));

  const folder = join(libraries[0]!, '..');
  const source = join(mkdtempSync(join(tmpdir(), 'braid-stand-ins-')), 'no-cuda.c');
  try {
    writeFileSync(source, functions.map((name) => `int ${name}(void) { return ${NO_DEVICE}; }\n`).join(''));
    link(folder, 'libno_cuda.so', [source]);
    for (const name of names) link(folder, name, ['-Wl,--no-as-needed', `-L${folder}`, '-lno_cuda']);
  } finally {
    rmSync(join(source, '..'), { recursive: true });
  }
}

function torchLibraries(venv: string): string[] {
  const python = readdirSync(join(venv, 'lib')).find((name) => name.startsWith('python'));
  const folder = join(venv, 'lib', python ?? '', 'site-packages/torch/lib');
  return readdirSync(folder)
    .filter((name) => /^lib(torch|c10|shm).*\.so$/.test(name))
    .map((name) => join(folder, name));
}

/** Names of the dynamic symbols, without their versions. */
function symbols(file: string, which: '--defined-only' | '--undefined-only'): string[] {
  const lines = tool('nm', ['-D', '--format=posix', which, file]).split('\n');
  return lines.map((line) => line.split(/[ @]/, 1)[0]!);
}

/** Names of the libraries that this one is linked to. */
function needed(file: string): string[] {
  return Array.from(tool('readelf', ['-d', file]).matchAll(/\(NEEDED\).*\[(.+)\]/g), ([, name]) => name!);
}

function link(folder: string, name: string, inputs: string[]): void {
  tool('g++', [
    '-x',
    'c',
    '-shared',
    '-fPIC',
    '-o',
    join(folder, name),
    `-Wl,-soname,${name}`,
    '-Wl,-rpath,$ORIGIN',
    ...inputs,
  ]);
}

function tool(name: string, args: string[]): string {
  try {
    return execFileSync(name, args, { encoding: 'utf8', maxBuffer: LISTING_BYTES, stdio: ['ignore', 'pipe', 'pipe'] });
  } catch (cause) {
    throw new BraidError('SETUP', `${name} ${args.at(-1)}: ${(cause as Error).message}`, {
      remedy: 'Install the C++ compiler and its binutils (Debian and Ubuntu: apt-get install g++).',
      cause,
    });
  }
}
