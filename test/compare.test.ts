/** What `braid compare` makes of finished runs: figures, warnings, tables and the page. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { inOrder } from '../compare/classifiers.ts';
import { differencesOf } from '../compare/comparable.ts';
import { comparisonOf, pooledBins, type System } from '../compare/comparison.ts';
import { type FinishedRun, imagesOf, readRun, wallTime } from '../compare/finished-run.ts';
import { markdownOf } from '../compare/markdown.ts';
import { pageOf } from '../compare/page.ts';
import { queueOf, secondsLeft, standingOf } from '../compare/queue.ts';
import { statisticOf } from '../compare/statistics.ts';
import { linear, logarithmic } from '../compare/svg.ts';
import { BraidError } from '../core/errors.ts';
import { checkRecipe, formatRecipe, type Recipe } from '../core/recipe.ts';
import { temporaryFolder } from './training.ts';

const SAMPLES = 1000;

const recipe = (changes: object = {}): Recipe =>
  checkRecipe({
    name: 'ffl',
    data: { format: 'idx', path: 'p', mean: [1], std: [1] },
    branches: [{ network: 'resnet', depth: 8, count: 2 }],
    method: { name: 'ffl' },
    training: { epochs: 2, batch: 100 },
    ...changes,
  });

/** Results with so many answers wrong, by classifier. */
const results = (wrong: Record<string, number>) =>
  Object.entries(wrong).map(([classifier, errors]) => {
    const samples = classifier === 'branches' ? 2 * SAMPLES : SAMPLES;
    return { classifier, samples, top1Correct: samples - errors, top5Correct: samples - Math.floor(errors / 10) };
  });

const run = (seed: number, wrong: Record<string, number>, changes: Partial<FinishedRun> = {}): FinishedRun => ({
  folder: `runs/x-seed${seed}`,
  seed,
  recipe: recipe({ seed }),
  summary: { results: results(wrong), trainSamples: 950, testSamples: SAMPLES, epochs: 2, steps: 20 },
  steps: [
    { kind: 'step', step: 0, losses: { 'ce.0': 2, 'ce.1': 2.2, ekd: 0.5, total: 4.7 } },
    { kind: 'step', step: 19, losses: { 'ce.0': 1, 'ce.1': 1.2, ekd: 0.1, total: 2.3 } },
  ],
  epochs: [
    { kind: 'epoch', epoch: 0, results: results(Object.fromEntries(Object.keys(wrong).map((key) => [key, 400]))) },
    { kind: 'epoch', epoch: 1, results: results(wrong) },
  ],
  ...changes,
});

const system = (label: string, runs: FinishedRun[]): System => ({
  label,
  complexity: {
    parameters: 832_920,
    multiplyAdds: 91_700_000,
    branches: [{ parameters: 472_756, multiplyAdds: 69_100_000 }],
  },
  runs,
});

const compared = (systems: System[], best = false) => comparisonOf({ name: 'x', systems, failures: [], best });

test('mean and standard deviation over n - 1, none of one value', (t) => {
  const { mean, sd } = statisticOf([2, 4, 4, 4, 5, 5, 7, 9]);
  t.is(mean, 5);
  t.true(Math.abs(sd! - Math.sqrt(32 / 7)) < 1e-12);
  t.deepEqual(statisticOf([3]), { mean: 3, sd: null });
});

test('errors come from counts, with every seed kept', (t) => {
  const [figures] = compared([system('a', [run(1, { 'branch.0': 100 }), run(2, { 'branch.0': 140 })])]).systems;
  const { top1, top5 } = figures!.last[0]!;
  t.true(Math.abs(top1.mean - 0.12) < 1e-12);
  t.true(Math.abs(top1.sd! - Math.SQRT2 * 0.02) < 1e-12);
  t.like(top1.seeds[1], { seed: 2, correct: 860, samples: 1000 });
  t.true(Math.abs(top5.mean - 0.012) < 1e-12);
});

test('the best epoch is chosen for each classifier, first come, and says which it is', (t) => {
  const epochs = [300, 100, 100].map((errors, epoch) => ({
    kind: 'epoch' as const,
    epoch,
    results: results({ 'branch.0': errors, fused: 50 * (epoch + 1) }),
  }));
  const [figures] = compared([system('a', [run(1, { 'branch.0': 100, fused: 150 }, { epochs })])], true).systems;
  const chosen = figures!.best!.map(({ classifier, top1: { seeds } }) => [
    classifier,
    seeds[0]!.epoch,
    seeds[0]!.correct,
  ]);
  t.deepEqual(chosen, [
    ['branch.0', 1, 900],
    ['fused', 0, 950],
  ]);
});

test('classifiers are in one order, unknown ones last', (t) => {
  const names = ['ensemble', 'leader', 'branch.10', 'fused', 'branch.2', 'branches', 'ensemble'];
  t.deepEqual(inOrder(names), ['branch.2', 'branch.10', 'branches', 'fused', 'ensemble', 'leader']);
});

test('bins of several runs are weighed by their samples', (t) => {
  const bin = (samples: number, confidence: number, accuracy: number) => ({ samples, confidence, accuracy });
  const pooled = pooledBins([
    { ece: 0, bins: [bin(1, 0.2, 0), bin(0, 0, 0)] },
    { ece: 0, bins: [bin(3, 0.4, 1), bin(0, 0, 0)] },
  ]);
  t.is(pooled[0]!.samples, 4);
  t.true(Math.abs(pooled[0]!.confidence - 0.35) < 1e-12);
  t.is(pooled[0]!.accuracy, 0.75);
  t.deepEqual(pooled[1], bin(0, 0, 0));
});

test('systems that were not trained alike are told apart by field and value', (t) => {
  const own = (changes: object) => run(1, { 'branch.0': 1 }, { recipe: recipe(changes) });
  const systems = new Map([
    ['a', [own({})]],
    ['b', [own({ name: 'b', training: { epochs: 3, batch: 100, fusionWeightDecay: 0 }, method: { name: 'one' } })]],
    ['c', [run(1, { 'branch.0': 1 }, { recipe: null })]],
  ]);
  t.deepEqual(differencesOf(systems), [{ field: 'training.epochs', values: { a: '2', b: '3', c: '2' } }]);
  const augment = differencesOf(
    new Map([
      ['a', [own({})]],
      ['b', [own({ data: { format: 'idx', path: 'p', mean: [1], std: [1], augment: { padMode: 'zero' } } })]],
    ]),
  );
  t.deepEqual(augment, [{ field: 'data.augment.padMode', values: { a: '"reflect"', b: '"zero"' } }]);
});

test('a resumed run takes as long as all of its images at the pace of its last start', (t) => {
  const timed = (trained: number) =>
    run(
      1,
      { 'branch.0': 1 },
      {
        summary: { ...run(1, { 'branch.0': 1 }).summary, seconds: 12, trainSeconds: 10, imagesPerSecond: trained / 10 },
      },
    );
  t.is(imagesOf(20, 950, 100), 1900);
  t.is(imagesOf(13, 950, 100), 1250);
  t.deepEqual(wallTime(timed(1900)), { seconds: 12, estimated: false });
  t.deepEqual(wallTime(timed(475)), { seconds: 48, estimated: true });
  t.is(wallTime(timed(0)), null);
});

test('what is left goes by the work of the runs that wait', (t) => {
  const seen = [
    { work: 10, seconds: 20 },
    { work: 30, seconds: 60 },
  ];
  t.is(secondsLeft(seen, 5, [10, 1]), 27);
});

test('runs go seed by seed, each with its own name, and save every epoch where the recipe does not say', (t) => {
  const survey = { stepsPerEpoch: 10, images: 1900, complexity: { parameters: 1, multiplyAdds: 2, branches: [] } };
  const often = recipe({ name: 'often', checkpoint: { everySteps: 3 } });
  const queue = queueOf(
    [
      { recipe: recipe(), ...survey },
      { recipe: often, ...survey },
    ],
    2,
    'runs/x',
  );
  t.deepEqual(
    queue.map(({ folder, work, recipe: { name, seed, checkpoint } }) => [
      folder,
      name,
      seed,
      checkpoint.everySteps,
      work,
    ]),
    [
      ['runs/x/ffl-seed1', 'ffl-seed1', 1, 10, 3800],
      ['runs/x/often-seed1', 'often-seed1', 1, 3, 3800],
      ['runs/x/ffl-seed2', 'ffl-seed2', 2, 10, 3800],
      ['runs/x/often-seed2', 'often-seed2', 2, 3, 3800],
    ],
  );
});

test('a folder tells where its run stands, and one of another recipe is refused', async (t) => {
  await using folder = temporaryFolder();
  const at = { label: 'ffl', recipe: recipe(), folder: join(folder.path, 'ffl'), images: 1, work: 1 };
  t.is(await standingOf(at), 'new');
  folder.write('ffl/recipe.yaml', formatRecipe(at.recipe));
  t.is(await standingOf(at), 'new');
  mkdirSync(join(at.folder, 'checkpoints', 'step-00000010'), { recursive: true });
  t.is(await standingOf(at), 'unfinished');
  folder.write('ffl/summary.json', '{}');
  t.is(await standingOf(at), 'finished');
  const other = { ...at, recipe: recipe({ training: { epochs: 3, batch: 100 } }) };
  const error = await t.throwsAsync<BraidError>(standingOf(other), { instanceOf: BraidError });
  t.regex(error!.message, /holds another run: training\.epochs is 2 there and 3 here$/);
  folder.write('foreign/notes.txt', 'x');
  await t.throwsAsync(standingOf({ ...at, folder: join(folder.path, 'foreign') }), {
    message: /it has no recipe\.yaml/,
  });
});

test("a peer's run needs counts alone, and says what is missing", async (t) => {
  await using folder = temporaryFolder();
  folder.write('peer/summary.json', JSON.stringify({ results: results({ fused: 100 }), framework: 'PyTorch' }));
  const peer = readRun(join(folder.path, 'peer'), 7);
  t.like(peer, { seed: 7, recipe: null, steps: [], epochs: [] });
  const lines = [
    { kind: 'step', step: 5, losses: { ce: 1 } },
    { kind: 'checkpoint', step: 5 },
    { kind: 'epoch', epoch: 0, results: results({ fused: 300 }) },
    { kind: 'epoch', epoch: 0, results: results({ fused: 200 }) },
  ];
  folder.write('peer/metrics.jsonl', `${lines.map((line) => JSON.stringify(line)).join('\n')}\n{"kind":"st`);
  const again = readRun(join(folder.path, 'peer'), 7);
  t.is(again.steps.length, 1);
  t.deepEqual(
    again.epochs.map(({ results: [result] }) => result!.top1Correct),
    [800],
  );

  t.throws(() => readRun(join(folder.path, 'none'), 1), { message: /cannot read .*none\/summary\.json/ });
  folder.write(
    'broken/summary.json',
    JSON.stringify({ results: [{ classifier: 'fused', samples: 10, top1Correct: 3 }] }),
  );
  t.throws(() => readRun(join(folder.path, 'broken'), 1), { message: /no summary of a run.*[\s\S]*top5Correct/ });
});

const pair = { 'branch.0': 100, 'branch.1': 120, branches: 220, fused: 80, ensemble: 90 };
const both = [
  system('alone', [run(1, { 'branch.0': 130 }), run(2, { 'branch.0': 134 })]),
  system('FFL <fused> & co', [run(1, pair), run(2, { ...pair, fused: 84 })]),
];

test('the tables have a row a system, the mean of branches beside a single network, and the lowest mean in bold', (t) => {
  const markdown = markdownOf(compared(both));
  t.regex(markdown, /\| alone +\| +13\.20 ± 0\.28 \| +– \| +13\.20 ± 0\.28 \| +– \| +– \|/);
  t.regex(markdown, /\| FFL <fused> & co \| \*\*10\.00 ± 0\.00\*\* \| 12\.00 ± 0\.00 \| \*\*11\.00 ± 0\.00\*\* \|/);
  t.regex(markdown, /\| alone +\| +2 \| +832,920 \| +473 k|0\.473 M/);
  t.notRegex(markdown, /Before you compare/);
  t.notRegex(markdown, /Test-selected/);
  t.regex(markdownOf(compared(both, true)), /## Test-selected: top-1 error/);
});

/** Fails at the first tag that is not closed in its turn. */
function wellFormed(html: string): string | null {
  const open: string[] = [];
  for (const [, close, name, empty] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)\b[^>]*?(\/?)>/gi)) {
    if (empty === '/' || ['meta', 'br'].includes(name!)) continue;
    if (close === '') open.push(name!);
    else if (open.pop() !== name) return `</${name}> where ${open.at(-1)} is open`;
  }
  return open.length === 0 ? null : `${open.at(-1)} is left open`;
}

test('the page is well formed, names every system, escapes what it is given, and needs no network', (t) => {
  const calibration = { ece: 0.04, bins: [{ samples: SAMPLES, confidence: 0.9, accuracy: 0.86 }] };
  const calibrated = both.map((each) => ({
    ...each,
    runs: each.runs.map((one) => ({
      ...one,
      summary: { ...one.summary, results: one.summary.results.map((result) => ({ ...result, calibration })) },
    })),
  }));
  const page = pageOf(compared(calibrated, true), calibrated);
  t.is(wellFormed(page), null);
  t.true(page.includes('alone') && page.includes('FFL &#60;fused&#62; &#38; co'));
  t.false(page.includes('<fused>'));
  for (const title of ['Error at a glance', 'Learning curves', 'Loss terms', 'Calibration', 'Every seed']) {
    t.true(page.includes(`<h2>${title}</h2>`), title);
  }
  t.true(page.includes('ECE 4 %'));
  t.false(/NaN|undefined|Infinity/.test(page));
  t.false(/https?:|src=|<link|@import|url\(/.test(page));
});

test('a page of runs without journals, calibration or recipes leaves those figures out', (t) => {
  const bare = [system('peer', [run(1, { fused: 80 }, { recipe: null, steps: [], epochs: [] })])];
  const page = pageOf(compared(bare), bare);
  t.is(wellFormed(page), null);
  t.false(/<h2>(Learning curves|Loss terms|Calibration)/.test(page));
  t.true(page.includes('No recipe is known of peer'));
  t.false(/NaN|undefined|Infinity/.test(page));
});

test('scales put values and round ticks where they belong', (t) => {
  const x = linear([0, 10], [100, 200]);
  t.deepEqual([x(0), x(5), x(10)], [100, 150, 200]);
  t.deepEqual(x.ticks, [0, 2, 4, 6, 8, 10]);
  const y = logarithmic([0.01, 1], [0, 100]);
  t.true(Math.abs(y(0.1) - 50) < 1e-9);
  t.is(y(0), 0);
  t.deepEqual(y.ticks, [0.01, 0.03, 0.1, 0.3, 1]);
});
