import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import {
  type CheckpointFacts,
  listCheckpoints,
  readCheckpoint,
  readWeights,
  requireEqual,
  writeCheckpoint,
} from '../coordinator/checkpoints.ts';
import { BraidError } from '../core/errors.ts';
import type { TensorMap } from '../nn/variables.ts';

const temporary = mkdtempSync(join(tmpdir(), 'braid-test-'));
test.after.always(() => rmSync(temporary, { recursive: true }));

function folder(): string {
  return mkdtempSync(join(temporary, 'f-'));
}

function facts(step: number): CheckpointFacts {
  return { run: 'r-1', step, epoch: 0, network: { classes: 10 }, sampling: { seed: 1 }, recipe: { name: 'r' } };
}

function tensors(value: number): TensorMap {
  return new Map([
    ['trunk.0.conv1.weight', { shape: [2, 1, 1, 2], data: Float32Array.of(value, -0, 1e-40, 3) }],
    ['branch.0.fc.bias', { shape: [1], data: Float32Array.of(value) }],
  ]);
}

const state = (value: number) => ({ weights: tensors(value), momenta: tensors(-value) });

test('what is written is read back, bit for bit', async (t) => {
  const numbers = fc.float32Array({ minLength: 1, maxLength: 50 });
  await fc.assert(
    fc.asyncProperty(numbers, numbers, async (weight, momentum) => {
      const weights: TensorMap = new Map([['w', { shape: [weight.length], data: weight }]]);
      const momenta: TensorMap = new Map([['w', { shape: [momentum.length], data: momentum }]]);
      const path = await writeCheckpoint(folder(), facts(7), { weights, momenta }, { keep: 1 });
      const back = await readCheckpoint(path);
      t.deepEqual(new Uint8Array(back.weights.get('w')!.data.buffer), new Uint8Array(weight.slice().buffer));
      t.deepEqual(new Uint8Array(back.momenta.get('w')!.data.buffer), new Uint8Array(momentum.slice().buffer));
      t.like(back.manifest, { ...facts(7), format: 1 });
    }),
    { numRuns: 20 },
  );
});

test('the newest are kept, by step and not by name', async (t) => {
  const into = folder();
  for (const step of [99_999_999, 100_000_000, 100_000_001]) {
    await writeCheckpoint(into, facts(step), state(step), { keep: 2 });
  }
  t.deepEqual(readdirSync(into).sort(), ['step-100000000', 'step-100000001']);
});

test('a writer that dies before the rename leaves the one before, and the next writer clears up', async (t) => {
  const into = folder();
  const before = await writeCheckpoint(into, facts(1), state(1), { keep: 3 });
  const dies = () => {
    throw new BraidError('INTERNAL', 'killed');
  };
  await t.throwsAsync(writeCheckpoint(into, facts(2), state(2), { keep: 3, beforeRename: dies }));
  t.deepEqual(listCheckpoints(into), [before]);
  t.is((await readCheckpoint(before)).manifest.step, 1);
  await writeCheckpoint(into, facts(3), state(3), { keep: 3 });
  t.deepEqual(readdirSync(into).sort(), ['step-00000001', 'step-00000003']);
});

const damages: [string, (path: string) => void, RegExp][] = [
  ['a flipped bit', (path) => flip(join(path, 'model.safetensors')), /model.safetensors is damaged: SHA-256/],
  [
    'a flipped bit in the momenta',
    (path) => flip(join(path, 'optimizer.safetensors')),
    /optimizer.safetensors is damaged/,
  ],
  ['a cut', (path) => truncateSync(join(path, 'model.safetensors'), 20), /model.safetensors is damaged: 20 bytes/],
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
    const path = await writeCheckpoint(folder(), facts(1), state(1), { keep: 1 });
    damage(path);
    const error = await t.throwsAsync(readCheckpoint(path), { instanceOf: BraidError });
    t.is(error.code, 'INVALID_CHECKPOINT');
    t.regex(error.message, message);
    t.not(error.remedy, '');
  });
}

test('a folder that cannot be written is an error that says what to do', async (t) => {
  const file = join(folder(), 'file');
  writeFileSync(file, '');
  const error = await t.throwsAsync(writeCheckpoint(file, facts(1), state(1), { keep: 1 }), { instanceOf: BraidError });
  t.is(error.code, 'SETUP');
  t.regex(error.message, /cannot write the checkpoint/);
});

test('initial weights that are not there, or not safetensors, are refused by name', async (t) => {
  const file = join(folder(), 'weights.safetensors');
  await t.throwsAsync(readWeights(file), { instanceOf: BraidError, message: /cannot read .*weights.safetensors/ });
  mkdirSync(folder(), { recursive: true });
  writeFileSync(file, 'nonsense that is long enough');
  await t.throwsAsync(readWeights(file), { instanceOf: BraidError, message: /weights.safetensors is not a whole/ });
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

function flip(file: string): void {
  const bytes = readFileSync(file);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(file, bytes);
}
