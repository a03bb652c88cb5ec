/** Checkpoints in a folder: whole or not there, however their writer ends; kept, checked and refused. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import test from 'ava';
import fc from 'fast-check';
import { readCheckpoint, readWeights, superfluous, writeCheckpoint } from '../coordinator/checkpoints.ts';
import { FolderStore } from '../coordinator/checkpoints-folder.ts';
import { requireEqual } from '../coordinator/checkpoints-manifest.ts';
import { CheckpointWriter, type WriterOptions } from '../coordinator/checkpoints-writer.ts';
import { BraidError } from '../core/errors.ts';
import { encodeSafetensors, type TensorData } from '../nn/safetensors.ts';
import type { TensorMap } from '../nn/variables.ts';
import { factsOf, flatOf, flipLastBit, KEEP_ALL, stateOf } from './checkpoints.ts';

const temporary = mkdtempSync(join(tmpdir(), 'braid-test-'));
test.after.always(() => rmSync(temporary, { recursive: true }));

function folder(): string {
  return mkdtempSync(join(temporary, 'f-'));
}

async function written(step = 1): Promise<{ store: FolderStore; path: string; name: string }> {
  const store = new FolderStore(folder());
  const { path } = await writeCheckpoint(store, factsOf(step), stateOf(step), KEEP_ALL);
  return { store, path, name: path.slice(store.where.length + 1) };
}

const namesIn = (store: FolderStore) => readdirSync(store.where).sort();

test('what is written is read back, bit for bit', async (t) => {
  const numbers = fc.float32Array({ minLength: 1, maxLength: 50 });
  await fc.assert(
    fc.asyncProperty(numbers, numbers, async (weight, momentum) => {
      const weights: TensorMap = new Map([['w', { shape: [weight.length], data: weight }]]);
      const momenta: TensorMap = new Map([['w', { shape: [momentum.length], data: momentum }]]);
      const store = new FolderStore(folder());
      await writeCheckpoint(store, factsOf(7), { weights, momenta, averages: new Map() }, KEEP_ALL);
      const back = await readCheckpoint(store, 'step-00000007');
      t.deepEqual(new Uint8Array(back.weights.get('w')!.data.buffer), new Uint8Array(weight.slice().buffer));
      t.deepEqual(new Uint8Array(back.momenta.get('w')!.data.buffer), new Uint8Array(momentum.slice().buffer));
      t.like(back.manifest, { ...factsOf(7), format: 1 });
    }),
    { numRuns: 20 },
  );
});

// ---------------------------------------------------------------- which are kept

test('the newest are kept, by step and not by name', async (t) => {
  const store = new FolderStore(folder());
  for (const step of [99_999_999, 100_000_000, 100_000_001]) {
    await writeCheckpoint(store, factsOf(step), stateOf(step), { keep: 2, keepEverySteps: 0 });
  }
  t.deepEqual(namesIn(store), ['step-100000000', 'step-100000001']);
});

test('those after a multiple of keepEverySteps are kept for good', async (t) => {
  const store = new FolderStore(folder());
  for (const step of [10, 20, 30, 40, 50]) {
    await writeCheckpoint(store, factsOf(step), stateOf(step), { keep: 1, keepEverySteps: 20 });
  }
  t.deepEqual(namesIn(store), ['step-00000020', 'step-00000040', 'step-00000050']);
});

test('the newest stay, and no more than the newest and the multiples', (t) => {
  const steps = fc.uniqueArray(fc.nat(200)).map((all) => all.sort((a, b) => a - b).map((step) => ({ step })));
  fc.assert(
    fc.property(steps, fc.integer({ min: 1, max: 5 }), fc.nat(20), (all, keep, keepEverySteps) => {
      const going = new Set(superfluous(all, { keep, keepEverySteps }));
      all.forEach((each, i) => {
        const newest = i >= all.length - keep;
        const multiple = keepEverySteps > 0 && each.step % keepEverySteps === 0;
        if (going.has(each) === (newest || multiple)) throw new Error(`${each.step}`);
      });
    }),
  );
  t.pass();
});

test('a run that goes back gives up what came later, once it has a checkpoint of its own', async (t) => {
  const store = new FolderStore(folder());
  for (const step of [1, 2, 3]) await writeCheckpoint(store, factsOf(step), stateOf(step), KEEP_ALL);
  await writeCheckpoint(store, factsOf(2), stateOf(22), KEEP_ALL);
  t.deepEqual(namesIn(store), ['step-00000001', 'step-00000002']);
  t.is((await readCheckpoint(store, 'step-00000002')).weights.get('branch.0.fc.bias')!.data[0], 22);
});

// ---------------------------------------------------------------- writers that end too early

test('what a killed writer left is no checkpoint, and the next writer clears it up', async (t) => {
  const { store } = await written(1);
  mkdirSync(join(store.where, '.step-00000002.unfinished'));
  writeFileSync(join(store.where, '.step-00000002.unfinished', 'model.safetensors'), 'half');
  mkdirSync(join(store.where, '.step-00000000.removed'));
  t.deepEqual(
    (await store.list()).map(({ name }) => name),
    ['step-00000001'],
  );
  await writeCheckpoint(store, factsOf(3), stateOf(3), KEEP_ALL);
  t.deepEqual(namesIn(store), ['step-00000001', 'step-00000003']);
});

/** Writes checkpoints for as long as it lives. */
const ENDLESS_WRITER = `
  import { writeCheckpoint } from './coordinator/checkpoints.ts';
  import { FolderStore } from './coordinator/checkpoints-folder.ts';
  import { factsOf, stateOf } from './test/checkpoints.ts';
  const store = new FolderStore(process.argv[1]);
  for (let step = 1; ; step++) {
    await writeCheckpoint(store, factsOf(step), stateOf(step, 100_000), { keep: 2, keepEverySteps: 0 });
    process.stdout.write('.');
  }`;

test('whenever its writer is killed, every checkpoint that has its name is whole', async (t) => {
  const store = new FolderStore(folder());
  for (let round = 0; round < 8; round++) {
    const argv = ['--input-type=module-typescript', '-e', ENDLESS_WRITER, store.where];
    const writer = spawn(process.execPath, argv, {
      cwd: join(import.meta.dirname, '..'),
      stdio: ['ignore', 'pipe', 2],
    });
    await once(writer.stdout!, 'data');
    await new Promise((resolve) => setTimeout(resolve, 3 * round)); // somewhere else in its work each time
    writer.kill('SIGKILL');
    await once(writer, 'close');
    const stored = await store.list();
    t.true(stored.length > 0);
    for (const { name, step } of stored) {
      t.is((await readCheckpoint(store, name)).weights.get('branch.0.fc.weight')!.data.at(-1), step);
    }
  }
});

test('a full disk is told by the file and the remedy, and what was written of it makes room', (t) => {
  const where = folder();
  const script = `
    import { writeCheckpoint } from './coordinator/checkpoints.ts';
    import { FolderStore } from './coordinator/checkpoints-folder.ts';
    import { factsOf, stateOf } from './test/checkpoints.ts';
    const store = new FolderStore(process.argv[1]);
    const keeping = { keep: 1, keepEverySteps: 0 };
    await writeCheckpoint(store, factsOf(1), stateOf(1), keeping);
    await writeCheckpoint(store, factsOf(2), stateOf(2, 100_000), keeping).catch((error) => {
      process.stdout.write(JSON.stringify({ code: error.code, message: error.message, remedy: error.remedy }));
    });`;
  // A file of more than 64 KiB is more than this process may write.
  const shell = 'ulimit -f 64; exec "$0" --input-type=module-typescript -e "$1" "$2"';
  const argv = ['-c', shell, process.execPath, script, where];
  const { stdout, stderr } = spawnSync('bash', argv, { cwd: join(import.meta.dirname, '..'), encoding: 'utf8' });
  t.true(stdout.startsWith('{'), stderr);
  const { code, message, remedy } = JSON.parse(stdout);
  t.is(code, 'SETUP');
  t.regex(message, /^cannot write the checkpoint .*step-00000002\/model\.safetensors: EFBIG/);
  t.regex(remedy, /Make room on the disk/);
  t.deepEqual(readdirSync(where), ['step-00000001']); // the one before stays
});

test('a folder that cannot be written is an error that says what to do', async (t) => {
  const file = join(folder(), 'file');
  writeFileSync(file, '');
  const error = await t.throwsAsync(writeCheckpoint(new FolderStore(file), factsOf(1), stateOf(1), KEEP_ALL), {
    instanceOf: BraidError,
  });
  t.is(error.code, 'SETUP');
  t.regex(error.message, /cannot write the checkpoint/);
});

// ---------------------------------------------------------------- the thread

function writerInto(where: string, options: Partial<WriterOptions> = {}) {
  const seen: string[] = [];
  const writer = new CheckpointWriter({
    place: { kind: 'folder', path: where },
    keeping: KEEP_ALL,
    newest: null,
    hard: new AbortController().signal,
    now: () => 0,
    onWritten: ({ step, bytes }) => seen.push(`written ${step} ${bytes > 0}`),
    onFailed: ({ message }) => seen.push(message),
    ...options,
  });
  return { writer, seen };
}

test('the writer hands over, goes on meanwhile, and tells when a checkpoint is there to stay', async (t) => {
  const store = new FolderStore(join(folder(), 'checkpoints'));
  const { writer, seen } = writerInto(store.where);
  writer.write(factsOf(1), flatOf(1, 1_000_000), 0);
  t.true(writer.busy);
  t.is(writer.newest, null);
  t.throws(() => writer.write(factsOf(2), flatOf(2), 0), { message: /is being written already/ });
  await writer.settled();
  t.false(writer.busy);
  t.deepEqual(seen, ['written 1 true']);
  t.is(writer.newest?.path, join(store.where, 'step-00000001'));
  writer.write(factsOf(2), flatOf(2), 0);
  await writer.close(); // waits
  const { manifest, weights, momenta } = await readCheckpoint(store, 'step-00000002');
  t.is(manifest.step, 2);
  t.deepEqual(weights.get('branch.0.fc.bias'), { shape: [1], data: Float32Array.of(2) });
  t.deepEqual([...momenta.keys()], ['branch.0.fc.bias']);
});

test('the writer keeps a failure until a later checkpoint could be written', async (t) => {
  const where = join(folder(), 'checkpoints');
  writeFileSync(where, '');
  const { writer, seen } = writerInto(where);
  writer.write(factsOf(1), flatOf(1), 0);
  await writer.settled();
  t.is(writer.failure?.code, 'SETUP');
  t.regex(seen[0]!, /cannot write the checkpoint .*step-00000001/);
  rmSync(where);
  writer.write(factsOf(2), flatOf(2), 0);
  await writer.close();
  t.is(writer.failure, null);
  t.is(writer.newest?.step, 2);
});

test('a thread that dies is a failure, and the next checkpoint has another one', async (t) => {
  const { writer, seen } = writerInto(folder());
  writer.write(factsOf(1), flatOf(1, 1_000_000), 0);
  await (writer as unknown as { thread: Worker }).thread.terminate();
  await writer.settled();
  t.regex(seen[0]!, /^the checkpoint thread ended with code \d$/);
  writer.write(factsOf(2), flatOf(2), 0);
  await writer.close();
  t.deepEqual(seen.slice(1), ['written 2 true']);
});

test('a run that ends at once does not wait for its checkpoint', async (t) => {
  const hard = new AbortController();
  const store = new FolderStore(folder());
  const { writer } = writerInto(store.where, { hard: hard.signal });
  writer.write(factsOf(1), flatOf(1, 3_000_000), 0);
  hard.abort(new BraidError('CANCELLED', 'now'));
  await writer.close();
  t.is(writer.failure?.code, 'CANCELLED');
  t.deepEqual(await store.list(), []);
});

// ---------------------------------------------------------------- what is refused

const damages: [string, (path: string) => void, RegExp][] = [
  ['a flipped bit', (path) => flipLastBit(join(path, 'model.safetensors')), /model.safetensors is damaged: SHA-256/],
  [
    'a flipped bit in the momenta',
    (path) => flipLastBit(join(path, 'optimizer.safetensors')),
    /optimizer.safetensors is damaged/,
  ],
  ['a cut', (path) => truncateSync(join(path, 'model.safetensors'), 20), /model.safetensors is damaged: 20 bytes/],
  [
    'a longer file',
    (path) => writeFileSync(join(path, 'model.safetensors'), 'x', { flag: 'a' }),
    /model.safetensors is damaged: \d+ bytes, not more than/,
  ],
  ['a file missing', (path) => rmSync(join(path, 'optimizer.safetensors')), /cannot read .*optimizer.safetensors/],
  ['no manifest', (path) => rmSync(join(path, 'manifest.json')), /cannot read .*manifest.json/],
  ['half a manifest', (path) => truncateSync(join(path, 'manifest.json'), 30), /manifest.json is damaged: not JSON/],
  [
    'a manifest of something else',
    (path) => writeFileSync(join(path, 'manifest.json'), '{"a": 1}'),
    /manifest.json is damaged/,
  ],
  [
    'a later format',
    (path) => writeFileSync(join(path, 'manifest.json'), '{"format": 9}'),
    /has format 9, this version reads 1/,
  ],
];
for (const [what, damage, message] of damages) {
  test(`a checkpoint with ${what} is refused by the file's name`, async (t) => {
    const { store, path, name } = await written();
    damage(path);
    const error = await t.throwsAsync(readCheckpoint(store, name), { instanceOf: BraidError });
    t.is(error.code, 'INVALID_CHECKPOINT');
    t.regex(error.message, message);
    t.not(error.remedy, '');
  });
}

test('initial weights that are not there, or not safetensors, are refused by name', async (t) => {
  const file = join(folder(), 'weights.safetensors');
  await t.throwsAsync(readWeights(file), { instanceOf: BraidError, message: /cannot read .*weights.safetensors/ });
  writeFileSync(file, 'nonsense that is long enough');
  await t.throwsAsync(readWeights(file), { instanceOf: BraidError, message: /weights.safetensors is not a whole/ });
});

test('initial weights are the floats of a file: other tensors are passed over', async (t) => {
  const file = join(folder(), 'weights.safetensors');
  const weight = { shape: [2], data: Float32Array.of(1, 2) };
  const all = new Map<string, { shape: number[]; data: TensorData }>([
    ['w', weight],
    ['n', { shape: [1], data: Int32Array.of(3) }],
  ]);
  writeFileSync(file, encodeSafetensors(all));
  t.deepEqual(await readWeights(file), new Map([['w', weight]]));
});

test('differences are told by path, and equal things pass', (t) => {
  const there = { a: { b: [1, 2] }, c: 'x' };
  t.notThrows(() => requireEqual(there, structuredClone(there), 'p', ''));
  const error = t.throws(() => requireEqual(there, { a: { b: [1, 3, 4] } }, 'p', 'Do this.'), {
    instanceOf: BraidError,
  });
  t.is(
    error.message,
    'p: a.b.1 is 2 there and 3 here; a.b.2 is absent there and 4 here; c is "x" there and absent here',
  );
});
