/** Arrows point one way: reads every import and says which file strays. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** What each folder may import, besides itself. */
const ARROWS: Record<string, string[]> = {
  core: [],
  proto: ['core'],
  nn: ['core'],
  input: ['core'],
  worker: ['nn', 'proto', 'input', 'core'],
  coordinator: ['nn', 'proto', 'input', 'core'],
  sizing: ['coordinator', 'nn', 'proto', 'input', 'core'],
  compare: ['coordinator', 'nn', 'proto', 'input', 'core'],
  deploy: ['core'],
  // setup: cli/doctor.ts only, since the doctor must run where nothing is set up yet. bench: the command that runs it.
  cli: ['compare', 'deploy', 'sizing', 'coordinator', 'worker', 'nn', 'proto', 'input', 'core', 'setup', 'bench'],
  setup: [],
};

/** Which folders may import the packages whose names start so. */
const PACKAGES: Record<string, string[]> = {
  '@tensorflow/': ['nn'],
  // input: data sets lie in S3 too, and are read by the coordinator or by the workers. coordinator: checkpoints.
  '@aws-sdk/': ['input', 'coordinator'],
  '@peculiar/': ['cli'],
  '@grpc/': ['proto', 'coordinator', 'worker'],
  'grpc-health-check': ['proto'],
  '@opentelemetry/': ['proto'],
  // input: the records of a TFRecord are protobufs.
  protobufjs: ['proto', 'nn', 'input'],
  hyparquet: ['input'],
  piscina: ['worker'],
  'prom-client': ['core'],
  '@grafana/': ['deploy'],
};

interface Import {
  from: string; // file, relative to the project
  to: string; // file, relative to the project, or a package's name
  isPackage: boolean;
}

function importsOf(file: string): Import[] {
  // Comments name files too; strings with // are left alone, since only whole-line comments are dropped.
  const source = readFileSync(join(ROOT, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '');
  const patterns = [
    /\bfrom\s*'([^']+)'/g,
    /\bimport\s*\(?\s*'([^']+)'/g,
    /\bnew URL\(\s*'([^']+\.m?[tj]s)'/g,
    /\brequire\(\s*'([^']+)'/g,
  ];
  const targets = patterns.flatMap((pattern) => [...source.matchAll(pattern)].map((match) => match[1]!));
  return targets.map((target) =>
    target.startsWith('.')
      ? { from: file, to: relative(ROOT, resolve(ROOT, dirname(file), target)), isPackage: false }
      : { from: file, to: target, isPackage: true },
  );
}

const folderOf = (file: string) => file.split('/')[0]!;

const files = Object.keys(ARROWS)
  .filter((folder) => existsSync(join(ROOT, folder)))
  .flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' }).map((file) => join(folder, file)),
  )
  .filter((file) => /\.m?ts$|\.mjs$/.test(file))
  .filter((file) => !file.startsWith('deploy/check/')); // a proof, as those in test/: it may use all there is
const imports = files.flatMap(importsOf);

test('every file imports only from the folders that its own may point at', (t) => {
  const strays = imports
    .filter(({ isPackage }) => !isPackage)
    .filter(({ from, to }) => folderOf(to) !== folderOf(from) && !ARROWS[folderOf(from)]!.includes(folderOf(to)))
    .map(({ from, to }) => `${from} must not import ${to}`);
  t.deepEqual(strays, []);
});

test('only cli/doctor.ts reaches into setup/', (t) => {
  const strays = imports.filter(({ from, to }) => folderOf(to) === 'setup' && folderOf(from) !== 'setup');
  t.deepEqual(
    strays.map(({ from }) => from).filter((from) => from !== 'cli/doctor.ts'),
    [],
  );
});

test('TensorFlow, gRPC and the other heavy packages are imported only where they belong', (t) => {
  const strays = imports
    .filter(({ isPackage }) => isPackage)
    .flatMap(({ from, to }) =>
      Object.entries(PACKAGES)
        .filter(([prefix, folders]) => to.startsWith(prefix) && !folders.includes(folderOf(from)))
        .filter(() => from !== 'setup/smoke.mjs') // set-up's own trial of the addon
        .map(() => `${from} must not import ${to}`),
    );
  t.deepEqual(strays, []);
});

test('setup/ and bin/ import nothing but Node itself: they run before any package is there', (t) => {
  const strays = [...imports, ...importsOf('bin/braid.mjs')]
    .filter(({ from, isPackage }) => isPackage && /^(setup|bin)\//.test(from))
    .filter(({ to }) => !to.startsWith('node:'));
  t.deepEqual(strays, []);
});

test('every relative import names a file that exists', (t) => {
  const missing = imports
    .filter(({ isPackage, to }) => !isPackage && !existsSync(join(ROOT, to)))
    .map(({ from, to }) => `${from} imports ${to}`);
  t.deepEqual(missing, []);
});

test('the arrows themselves have no cycle', (t) => {
  const reach = (folder: string, seen: string[]): string[] =>
    (ARROWS[folder] ?? []).flatMap((next) =>
      seen.includes(next) ? [[...seen, next].join(' -> ')] : reach(next, [...seen, next]),
    );
  t.deepEqual(
    Object.keys(ARROWS).flatMap((folder) => reach(folder, [folder])),
    [],
  );
});
