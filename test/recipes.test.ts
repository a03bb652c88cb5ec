/** The recipes that ship, and what the schema says of wrong ones. */
import { readdirSync, readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import test from 'ava';
import { parse } from 'yaml';
import { BraidError } from '../core/errors.ts';
import {
  type Branch,
  branchesOf,
  checkRecipe,
  evaluationBatchOf,
  formatRecipe,
  loadRecipe,
  type Recipe,
} from '../core/recipe.ts';
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

/** Cells of the table in docs/recipes.md: one row for both CIFARs. */
function rowOf(recipe: Recipe): string[] {
  const { name, method, trunk, training } = recipe;
  const networks = branchesOf(recipe).map(networkName);
  const [first, ...more] = new Set(networks);
  const alike = more.length === 0 && networks.length > 1;
  const defaults = checkRecipe({ ...sound, method: { name: method.name } }).method;
  const changed = Object.entries(method)
    .filter(([key, value]) => key !== 'rampUp' && !isDeepStrictEqual(value, defaults[key as keyof typeof defaults]))
    .map(([key, value]) => `${key} ${value}`);
  return [
    `\`${name.replace(/^cifar100?-/, 'cifar*-')}\``,
    alike ? `${networks.length} × ${first}` : networks.join(', '),
    networks.length === 1 ? '' : trunk,
    [method.name, ...changed].join(', '),
    String(training.epochs),
  ];
}

function networkName(branch: Branch): string {
  switch (branch.network) {
    case 'resnet':
    case 'imagenet-resnet':
      return `ResNet-${branch.depth}`;
    case 'wrn':
      return `WRN-${branch.depth}-${branch.widen}`;
    case 'mobilenetv2':
    case 'imagenet-mobilenetv2':
      return 'MobileNetV2';
    default:
      return branch.network;
  }
}

const recipesPage = readFileSync(new URL('../docs/recipes.md', import.meta.url), 'utf8');

test('docs/recipes.md has a row for every recipe, and says of it what the file says', (t) => {
  const rows = readdirSync(FOLDER).map((file) => rowOf(loadRecipe(`${FOLDER}${file}`)).join(' | '));
  const table = /\n\n(\| recipe [\s\S]+?)\n\n/.exec(recipesPage)![1]!.split('\n').slice(2);
  const cells = (line: string) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim());
  t.deepEqual(table.map((line) => cells(line).join(' | ')).sort(), [...new Set(rows)].sort());
});

test('every command of docs/recipes.md names recipes that there are, and values that they take', (t) => {
  const commands = [...recipesPage.matchAll(/```sh\n([\s\S]+?)```/g)].flatMap(([, block]) => unrolled(block!));
  const made = new Set<string>(); // by `braid config ... > file`
  let checked = 0;
  for (const command of commands) {
    const sets = [...command.matchAll(/--set (?:'([^']+)'|(\S+))/g)].map(([, quoted, plain]) => quoted ?? plain!);
    for (const [file] of command.matchAll(/(?<!> )\b(recipes|runs)\/\S+\.yaml/g)) {
      if (file.startsWith('recipes/')) t.notThrows(() => loadRecipe(`${FOLDER}../${file}`, sets), command);
      else t.true(made.has(file), `${file} in ${command}`);
      checked++;
    }
    const target = /> (\S+)$/.exec(command)?.[1];
    if (target !== undefined) made.add(target);
  }
  t.true(checked > 30);
});

/** A shell's loops and braces written out. */
function unrolled(block: string): string[] {
  const loop = /for (\w+) in ([^;]+); do\n([\s\S]+?)done\n/g;
  const flat = block.replace(loop, (_, variable, values, body) =>
    values
      .split(' ')
      .map((value: string) => body.replaceAll(`$${variable}`, value))
      .join(''),
  );
  const braces = (word: string): string => {
    const found = /^(.*)\{([^{}]*,[^{}]*)\}(.*)$/.exec(word);
    return found === null
      ? word
      : found[2]!
          .split(',')
          .map((each) => `${found[1]}${each}${found[3]}`)
          .join(' ');
  };
  return flat
    .split('\n')
    .filter((line) => line.trim().startsWith('npx braid'))
    .map((line) => line.trim().replace(/\b(recipes|runs)\/\S+/g, braces));
}

const sound = {
  name: 'x',
  data: { format: 'idx', path: 'p', mean: [1], std: [1] },
  branches: [{ network: 'resnet', depth: 8, count: 2 }],
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
    { branches: [{ network: 'resnet', dept: 8, count: 2 }] },
    /branches\.0\.dept: unknown key, did you mean depth\?/,
  ],
  'an unknown method': [{ method: { name: 'fll' } }, /method\.name: "fll"/],
  'a depth that is not 6n+2': [
    { branches: [{ network: 'resnet', depth: 9, count: 2 }] },
    /depth 9, which is not 6n\+2/,
  ],
  'six branches': [{ branches: [{ network: 'resnet', depth: 8, count: 6 }] }, /6 branches, 5 are the most/],
  'a batch that the replicas cannot share': [
    { training: { batch: 10 }, cluster: { replicas: 3 } },
    /10 is not divisible by 3 replicas .*: use 12/,
  ],
  'a std of 0': [{ data: { ...sound.data, std: [0] } }, /data\.std\.0: 0 is not above 0/],
  'test images for a format that brings its own': [
    { data: { ...sound.data, testPath: 't' } },
    /data\.testPath: only for format folder and indexed/,
  ],
  'own pixels for branches that share a trunk': [
    { data: { ...sound.data, perBranch: true } },
    /data\.perBranch: branches that share a trunk see the same pixels: set trunk to none/,
  ],
  'sample ids for a format without an index': [
    { data: { ...sound.data, send: 'ids' } },
    /data\.send: ids, but format idx has no index: set format to indexed/,
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
  t.like(recipe.branches[0], { depth: 14 });
  t.deepEqual(recipe.training.milestones, [1, 2]);
  t.throws(() => loadRecipe(file, ['training.epochs']), { message: /expected path=value/ });
  t.throws(() => loadRecipe(`${FOLDER}none.yaml`), { message: /cannot read the recipe/ });
});

test('evaluation takes as many samples at a time as a worker trains on, from 32 to 250, or what the recipe says', (t) => {
  const batchOf = (training: object, replicas: number, evaluation = {}) =>
    evaluationBatchOf(checkRecipe({ ...sound, training, cluster: { replicas }, evaluation }));
  t.is(batchOf({ batch: 128 }, 2), 64);
  t.is(batchOf({ batch: 480, microBatches: 5 }, 2), 48);
  t.is(batchOf({ batch: 32 }, 2), 32);
  t.is(batchOf({ batch: 1024 }, 2), 250);
  t.is(batchOf({ batch: 32 }, 2, { batch: 500 }), 500);
});
