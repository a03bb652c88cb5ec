/** `braid compare` as users run it: real runs, skipped, resumed and failing, beside a run from elsewhere. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { stringify } from 'yaml';
import { type Folder, TrainProcess, temporaryFolder, writePatterns } from './training.ts';

function recipeIn(folder: Folder, name: string, changes: { method?: object; training?: object } = {}): string {
  const recipe = {
    name,
    data: {
      format: 'idx',
      path: join(folder.path, 'data'),
      classes: 4,
      mean: [100],
      std: [70],
      augment: { pad: 1, flip: false },
    },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    method: { name: 'vanilla' },
    evaluation: { batch: 32 },
    cluster: { threads: 1 },
    metrics: { logEverySteps: 1 },
    ...changes,
    training: { epochs: 2, batch: 64, milestones: [1], ...changes.training },
  };
  return folder.write(`${name}.yaml`, stringify(recipe));
}

const compare = (argv: string[]) => new TrainProcess(argv, { command: 'compare' });
const runsOf = (folder: Folder) => ['--runs', join(folder.path, 'runs')];
const read = (folder: Folder, ...path: string[]) =>
  readFileSync(join(folder.path, 'runs', 'comparison', ...path), 'utf8');

test.serial('recipes and seeds are trained, beside a run from elsewhere, and none is repeated', async (t) => {
  await using folder = temporaryFolder();
  writePatterns(folder, 250, 90);
  const peer = [{ classifier: 'fused', samples: 90, top1Correct: 81, top5Correct: 90 }];
  folder.write('peer/summary.json', JSON.stringify({ results: peer, epochs: 2 }));
  const argv = [
    recipeIn(folder, 'alone'),
    recipeIn(folder, 'ffl', { method: { name: 'ffl' } }),
    ...runsOf(folder),
    ...['--seeds', '2', '--with', `FFL (PyTorch)=${join(folder.path, 'peer')}`],
  ];
  const first = await compare(argv).ended();
  t.is(first.code, 0, first.output);
  t.regex(first.output, /run 1\/4: alone, seed 1\n[\s\S]*run 2\/4: ffl, seed 1\n[\s\S]*run 4\/4: ffl, seed 2\n/);
  t.regex(first.output, /run 2\/4 {2}ETA \d+:\d\d for all \| epoch 1\/2/);

  const { systems } = JSON.parse(read(folder, 'comparison.json'));
  t.deepEqual(
    systems.map(({ label, runs }: { label: string; runs: { seed: number }[] }) => [
      label,
      runs.map(({ seed }) => seed),
    ]),
    [
      ['alone', [1, 2]],
      ['ffl', [1, 2]],
      ['FFL (PyTorch)', [1]],
    ],
  );
  const summary = JSON.parse(read(folder, 'ffl-seed2', 'summary.json'));
  t.is(summary.parameters, systems[1].parameters);
  for (const { classifier, top1Correct, samples } of summary.results) {
    const score = systems[1].last.find((each: { classifier: string }) => each.classifier === classifier);
    t.like(score.top1.seeds[1], { seed: 2, correct: top1Correct, samples });
  }
  t.true(Math.abs(systems[2].last[0].top1.mean - 0.1) < 1e-12);
  t.true(systems[0].multiplyAdds > 0);
  t.is(systems[2].multiplyAdds, null);
  for (const label of ['alone', 'ffl', 'FFL (PyTorch)']) {
    t.true(read(folder, 'comparison.html').includes(label));
    t.true(read(folder, 'comparison.md').includes(`| ${label}`));
  }

  const second = await compare(argv).ended();
  t.is(second.code, 0, second.output);
  t.regex(second.output, /4 of 4 runs are finished already/);
  t.notRegex(second.output, /joined/);
});

test.serial(
  'Ctrl-C says how to go on, and going on ends what was begun; a failed run leaves the others alone',
  async (t) => {
    await using folder = temporaryFolder();
    writePatterns(folder, 250, 90);
    const argv = [
      recipeIn(folder, 'explodes', { training: { learningRate: 1e30 } }),
      recipeIn(folder, 'steady', { training: { epochs: 60 } }),
      ...runsOf(folder),
      ...['--seeds', '1'],
    ];
    const stopped = compare(argv);
    await stopped.printed(/steady, seed 1[\s\S]*epoch {3}2 /);
    stopped.child.kill('SIGINT');
    const first = await stopped.ended();
    t.is(first.code, 130, first.output);
    t.regex(first.output, /run 1\/2 failed: /);
    t.regex(first.output, /run 2\/2: stopped after step \d+ of 240; the checkpoint is /);
    t.regex(
      first.output,
      /The same command goes on from there: npx braid compare \S*explodes\.yaml \S*steady\.yaml --runs/,
    );
    t.false(existsSync(join(folder.path, 'runs', 'comparison', 'steady-seed1', 'summary.json')));

    const second = await compare(argv).ended();
    t.is(second.code, 1, second.output);
    t.regex(second.output, /steady, seed 1[\s\S]*from step \d+ on/);
    t.regex(second.output, /1 of 2 runs failed:\n {2}explodes, seed 1: /);
    const { systems, failures } = JSON.parse(read(folder, 'comparison.json'));
    t.deepEqual(
      systems.map(({ label }: { label: string }) => label),
      ['steady'],
    );
    t.true(systems[0].runs[0].secondsEstimated);
    t.like(failures[0], { system: 'explodes', seed: 1 });
    t.regex(read(folder, 'comparison.md'), /explodes, seed 1, failed: /);
  },
);

const refused: Record<string, [(folder: Folder) => string[], RegExp]> = {
  'no recipe at all': [() => [], /compare: no recipes/],
  'a recipe that is not there': [() => ['none.yaml'], /cannot read the recipe none\.yaml/],
  'two systems of one name': [
    (folder) => [recipeIn(folder, 'a'), recipeIn(folder, 'b'), '--set', 'name=c'],
    /two systems are called c/,
  ],
  'a label that is a recipe too': [
    (folder) => {
      folder.write(
        'peer/summary.json',
        JSON.stringify({ results: [{ classifier: 'fused', samples: 1, top1Correct: 1, top5Correct: 1 }] }),
      );
      return [recipeIn(folder, 'a'), '--with', `a=${join(folder.path, 'peer')}`];
    },
    /two systems are called a/,
  ],
  'a folder without a summary': [
    (folder) => [recipeIn(folder, 'a'), '--with', `peer=${folder.path}`],
    /cannot read .*summary\.json.*\n.*Remedy: Name the folder of a finished run/,
  ],
  '--with without a label': [(folder) => ['--with', folder.path], /--with \S+: expected <label>=<folder>/],
  'half a seed': [
    (folder) => [recipeIn(folder, 'a'), '--seeds', '0.5'],
    /--seeds 0\.5: expected a whole number from 1/,
  ],
  'a name that is a path': [
    (folder) => [recipeIn(folder, 'a'), '--name', '../x'],
    /--name \.\.\/x: not a folder's name/,
  ],
  'an option that is misspelt': [(folder) => [recipeIn(folder, 'a'), '--seed', '3'], /did you mean --seeds\?/],
};

for (const [what, [argv, message]] of Object.entries(refused)) {
  test.serial(`${what} is refused before anything is started`, async (t) => {
    await using folder = temporaryFolder();
    const { code, output } = await compare([...argv(folder), ...runsOf(folder)]).ended();
    t.is(code, 1, output);
    t.regex(output, message);
    t.false(existsSync(join(folder.path, 'runs')));
  });
}
