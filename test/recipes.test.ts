/** The recipes that ship, and what the schema says of wrong ones. */
import { readdirSync, readFileSync } from 'node:fs';
import test from 'ava';
import { parse } from 'yaml';
import { BraidError } from '../core/errors.ts';
import { checkRecipe, formatRecipe, loadRecipe } from '../core/recipe.ts';
import { published } from '../input/sources.ts';

const FOLDER = new URL('../recipes/', import.meta.url).pathname;

for (const file of readdirSync(FOLDER)) {
  test(`recipes/${file} is sound, named as its file, and its data can be fetched`, (t) => {
    const recipe = loadRecipe(`${FOLDER}${file}`);
    t.is(`${recipe.name}.yaml`, file);
    t.true(recipe.data.fetch === null || Object.hasOwn(published, recipe.data.fetch));
    t.deepEqual(checkRecipe(parse(formatRecipe(recipe))), recipe); // what a run writes is read back the same
  });
}

const sound = {
  name: 'x',
  data: { format: 'idx', path: 'p', mean: [1], std: [1] },
  branches: [{ depth: 8, count: 2 }],
  method: { name: 'ffl' },
  training: {},
};

const wrong: Record<string, [object, RegExp]> = {
  'an unknown key': [{ trainng: {} }, /trainng: unknown key, did you mean training\?/],
  'an unknown key of a method': [
    { method: { name: 'ffl', temprature: 3 } },
    /method\.temprature: unknown key, did you mean temperature\?/,
  ],
  'an unknown key in a list': [
    { branches: [{ dept: 8, count: 2 }] },
    /branches\.0\.dept: unknown key, did you mean depth\?/,
  ],
  'an unknown method': [{ method: { name: 'fll' } }, /method\.name: "fll"/],
  'a depth that is not 6n+2': [{ branches: [{ depth: 9, count: 2 }] }, /depth 9, which is not 6n\+2/],
  'six branches': [{ branches: [{ depth: 8, count: 6 }] }, /6 branches, 5 are the most/],
  'a batch that the replicas cannot share': [
    { training: { batch: 10 }, cluster: { replicas: 3 } },
    /10 is not divisible by 3 replicas .*: use 12/,
  ],
  'a std of 0': [{ data: { ...sound.data, std: [0] } }, /data\.std\.0: 0 is not above 0/],
  'test images for a format that brings its own': [
    { data: { ...sound.data, testPath: 't' } },
    /data\.testPath: only for format folder/,
  ],
};

for (const [what, [change, message]] of Object.entries(wrong)) {
  test(`${what} is refused by its path`, (t) => {
    const error = t.throws<BraidError>(() => checkRecipe({ ...sound, ...change }), { instanceOf: BraidError });
    t.is(error!.code, 'INVALID_RECIPE');
    t.regex(error!.message, message);
  });
}

test('--set reaches into objects and lists, and says what it could not read', (t) => {
  const file = `${FOLDER}quickstart.yaml`;
  const recipe = loadRecipe(file, ['training.epochs=3', 'branches.0.depth=14', 'training.milestones=[1, 2]']);
  t.is(recipe.training.epochs, 3);
  t.is(recipe.branches[0]!.depth, 14);
  t.deepEqual(recipe.training.milestones, [1, 2]);
  t.throws(() => loadRecipe(file, ['training.epochs']), { message: /expected path=value/ });
  t.throws(() => loadRecipe(`${FOLDER}none.yaml`), { message: /cannot read the recipe/ });
});

test('docs/troubleshooting.md has a section for every error code', (t) => {
  const codes = readFileSync(new URL('../core/errors.ts', import.meta.url), 'utf8').matchAll(/^ {2}\| '(\w+)'/gm);
  const sections = readFileSync(new URL('../docs/troubleshooting.md', import.meta.url), 'utf8');
  for (const [, code] of codes) t.true(sections.includes(`\n## ${code}\n`), code);
});
