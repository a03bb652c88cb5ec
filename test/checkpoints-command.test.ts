/** `braid checkpoints`, as users run it, and how --resume is read. */
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { resumeOf, withResume } from '../cli/options.ts';
import { writeCheckpoint } from '../coordinator/checkpoints.ts';
import { FolderStore } from '../coordinator/checkpoints-folder.ts';
import { formatRecipe } from '../core/recipe.ts';
import { factsOf, flipLastBit, KEEP_ALL, stateOf } from './checkpoints.ts';
import { smallRecipe } from './fake-cluster.ts';
import { type Folder, temporaryFolder } from './training.ts';

const MAIN = join(import.meta.dirname, '..', 'cli', 'main.ts');

function braid(...argv: string[]) {
  return spawnSync(process.execPath, [MAIN, ...argv], { encoding: 'utf8' });
}

/** A run folder with checkpoints after 10, 20, 30 and 40 steps. */
async function run(folder: Folder): Promise<{ path: string; names: () => string[]; fileOf(step: number): string }> {
  const path = join(folder.path, 'run');
  folder.write('run/recipe.yaml', formatRecipe(smallRecipe()));
  const store = new FolderStore(join(path, 'checkpoints'));
  for (const step of [10, 20, 30, 40]) await writeCheckpoint(store, factsOf(step), stateOf(step), KEEP_ALL);
  return {
    path,
    names: () => readdirSync(store.where).sort(),
    fileOf: (step) => join(store.where, `step-000000${step}`, 'model.safetensors'),
  };
}

test('list shows step, epoch, size, time and whether it is whole', async (t) => {
  await using folder = temporaryFolder();
  const { path, fileOf } = await run(folder);
  rmSync(fileOf(20));
  const { status, stdout } = braid('checkpoints', 'list', path);
  t.is(status, 0);
  const [head, first, second, ...more] = stdout.trimEnd().split('\n');
  t.regex(head!, /^checkpoint +epoch +size +written +state$/);
  t.regex(first!, /^step-00000010 +0 +0\.0 MB +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +whole$/);
  t.regex(second!, /^step-00000020 .* model\.safetensors is damaged: it is not there$/);
  t.is(more.length, 2);
});

test('verify reads every byte, and fails where one is wrong', async (t) => {
  await using folder = temporaryFolder();
  const { path, fileOf } = await run(folder);
  t.is(braid('checkpoints', 'verify', path).status, 0);
  flipLastBit(fileOf(30));
  t.notRegex(braid('checkpoints', 'list', path).stdout, /damaged/);
  const { status, stdout } = braid('checkpoints', 'verify', path);
  t.is(status, 1);
  t.regex(stdout, /step-00000010 {2}whole\n/);
  t.regex(stdout, /step-00000030 {2}model\.safetensors is damaged: SHA-256 /);
});

test('prune keeps the newest whole ones and the multiples, and removes nothing in a dry run', async (t) => {
  await using folder = temporaryFolder();
  const { path, names, fileOf } = await run(folder);
  rmSync(fileOf(40));
  const argv = ['checkpoints', 'prune', path, '--keep', '1', '--keep-every', '20'];
  const dry = braid(...argv, '--dry-run');
  t.regex(dry.stdout, /^left alone {5}step-00000040 .*\nwould remove {3}step-00000010\n2 of 3 stay in /);
  t.is(names().length, 4);
  const { status, stdout } = braid(...argv);
  t.is(status, 0);
  t.regex(stdout, /removed {8}step-00000010\n2 of 3 stay/);
  t.deepEqual(names(), ['step-00000020', 'step-00000030', 'step-00000040']);
});

test('prune goes by the recipe of the run where the command says nothing', async (t) => {
  await using folder = temporaryFolder();
  const { path, names } = await run(folder);
  const recipe = smallRecipe();
  const checkpoint = { ...recipe.checkpoint, keep: 2, everySteps: 10, keepEverySteps: 20 };
  folder.write('run/recipe.yaml', formatRecipe({ ...recipe, checkpoint }));
  t.regex(braid('checkpoints', 'prune', path, '--dry-run').stdout, /would remove {3}step-00000010\n3 of 4 stay/);
  t.regex(braid('checkpoints', 'prune', path, '--keep-every', '0').stdout, /2 of 4 stay/);
  t.deepEqual(names(), ['step-00000030', 'step-00000040']);
});

for (const [argv, message] of [
  [[], /checkpoints: no command/],
  [['lst', '.'], /checkpoints: unknown command lst/],
  [['list'], /checkpoints list: 0 places, expected one/],
  [['list', '/nowhere'], /cannot read the recipe \/nowhere\/recipe\.yaml/],
  [['prune', 's3://bucket/run'], /checkpoints prune: --keep is missing, and a URL has no recipe/],
  [['prune', 's3://bucket/run', '--keep', '0'], /checkpoints prune: --keep 0 is not a whole number from 1/],
  [['prune', '.', '--keep', '1', '--keep-evry', '2'], /did you mean --keep-every\?/],
] as [string[], RegExp][]) {
  test(`braid checkpoints ${argv.join(' ')} says what is wrong`, (t) => {
    const { status, stderr } = braid('checkpoints', ...argv);
    t.is(status, 1);
    t.regex(stderr, message);
    t.notRegex(stderr, /A bug in Braid/);
  });
}

test('--resume stands alone, or before the name of a checkpoint', (t) => {
  t.deepEqual(withResume(['a.yaml', '--resume']), ['a.yaml', '--resume=']);
  t.deepEqual(withResume(['--resume', 'a.yaml']), ['--resume=', 'a.yaml']);
  t.deepEqual(withResume(['--resume', 'step-00000120', 'a.yaml']), ['--resume=step-00000120', 'a.yaml']);
  t.deepEqual(withResume(['a.yaml', '--resume', '120', '--set', 'seed=1']), [
    'a.yaml',
    '--resume=120',
    '--set',
    'seed=1',
  ]);
  t.false(resumeOf('train', undefined));
  t.true(resumeOf('train', ''));
  t.is(resumeOf('train', 'step-00000120'), 'step-00000120');
  t.throws(() => resumeOf('train', '120'), { message: 'train: --resume 120: not the name of a checkpoint' });
});
