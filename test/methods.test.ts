/**
 * Methods: in every round a whole replica and its parts (branches, method) agree in losses, gradients and scores; what a
 * round holds fixed stays as it is; no gradient reaches a teacher; gradients agree with differences of the loss.
 */
import test from 'ava';
import { branchesOf, checkRecipe, type Recipe } from '../core/recipe.ts';
import { roundNames } from '../core/schedule.ts';
import { Session } from '../nn/graph/session.ts';
import { applyPhase, trainingPhase } from '../nn/phases.ts';
import { buildProgram, type Program, type Role } from '../nn/program.ts';
import { readScores } from '../nn/scores.ts';
import { fromTensors, initialWeights, type TensorMap, toTensors } from '../nn/variables.ts';
import { flatGradient, gradientsByName } from './gradients.ts';

const image = { height: 16, width: 16, channels: 3 };
const classes = 7;
const n = 6;

const small = { network: 'resnet', depth: 8, width: 4 };
const two = [{ ...small, count: 2 }];
const three = [{ ...small, count: 3 }];
/** Other channels, and a last map of half the size. */
const unlike = [small, { network: 'mobilenetv2', multiplier: 0.1 }];
const other = [small, { ...small, width: 6 }];

interface Variant {
  method: Record<string, unknown>;
  branches?: object[];
  trunk?: 'shared' | 'none';
}

const variants: Record<string, Variant> = {
  'vanilla, alone': { method: { name: 'vanilla' }, branches: two, trunk: 'none' },
  'vanilla, shared trunk': { method: { name: 'vanilla' } },
  dml: { method: { name: 'dml' }, branches: three, trunk: 'none' },
  'dml, sum, T=2, different networks': {
    method: { name: 'dml', reduce: 'sum', temperature: 2 },
    branches: other,
    trunk: 'none',
  },
  'dml, mean of the peers': { method: { name: 'dml', target: 'peerMean' }, branches: three, trunk: 'none' },
  'dml, alternate': { method: { name: 'dml', update: 'alternate' }, branches: two, trunk: 'none' },
  one: { method: { name: 'one' }, branches: three },
  'one-e+': { method: { name: 'one', gateBlocks: 1 } },
  'one, different networks': { method: { name: 'one' }, branches: other, trunk: 'none' },
  dualnet: { method: { name: 'dualnet' } },
  'dualnet, iterative': { method: { name: 'dualnet', schedule: 'iterative', phases: { coarse: 0.4 } } },
  'dualnet, iterative, no shared trunk': {
    method: { name: 'dualnet', schedule: 'iterative', phases: { coarse: 0.4 } },
    trunk: 'none',
  },
  ffl: { method: { name: 'ffl' }, branches: three },
  'ffl, different sizes': { method: { name: 'ffl' }, branches: unlike, trunk: 'none' },
  'ffl, different sizes, pooled': {
    method: { name: 'ffl', fusion: { align: 'avgpool' } },
    branches: unlike,
    trunk: 'none',
  },
  'ffl without FKD': { method: { name: 'ffl', fusedToBranch: false } },
  'ffl without EKD': { method: { name: 'ffl', ensembleToFused: false } },
  'ffl without both': { method: { name: 'ffl', fusedToBranch: false, ensembleToFused: false } },
  'ffl without fusion': { method: { name: 'ffl', fusion: null, ensembleToFused: false } },
};

function recipeOf({ method, branches, trunk }: Variant, precision: 'f32' | 'bf16' = 'f32'): Recipe {
  return checkRecipe({
    name: 'test',
    data: { format: 'cifar10', path: 'unused', mean: [120, 121, 122], std: [60, 61, 62] },
    branches: branches ?? two,
    trunk: trunk ?? 'shared',
    method,
    training: { batch: n, precision },
    evaluation: { batch: n },
  });
}

function batch(seed: number) {
  const value = (i: number) => Math.abs(Math.imul(i + 1, 2654435761 + seed)) >>> 3;
  return {
    images: Uint8Array.from({ length: n * image.height * image.width * image.channels }, (_, i) => value(i) % 256),
    labels: Int32Array.from({ length: n }, (_, i) => value(i) % classes),
  };
}

interface Opened {
  session: Session;
  program: Program;
}

function open(recipe: Recipe, role: Role = { kind: 'replica' }): Opened {
  const { graph, program } = buildProgram({ recipe, role, image, classes, shardSizes: [n] });
  const session = new Session(graph);
  if (program.stateLength > 0) {
    session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 5)) });
  }
  return { session, program };
}

function differences(found: Map<string, Float32Array>, wanted: Map<string, Float32Array>): Map<string, number> {
  const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  return new Map(
    [...wanted].map(([name, values]) => {
      const mine = found.get(name)!;
      return [name, norm(values.map((x, i) => x - mine[i]!)) / (norm(values) + 1e-3)]; // some are zero but for rounding
    }),
  );
}

function weightsOf({ session, program }: Opened): TensorMap {
  if (program.stateLength === 0) return new Map();
  return toTensors(program.variables, session.run('read', {})['state']!).weights;
}

test("label smoothing reaches every method's cross-entropies, and nothing else", (t) => {
  const { images, labels } = batch(4);
  for (const name of ['vanilla', 'dml', 'one', 'dualnet', 'ffl']) {
    const lossesAt = (labelSmoothing: number) => {
      const recipe = recipeOf({ method: { name } });
      const { session, program } = open({ ...recipe, training: { ...recipe.training, labelSmoothing } });
      const { losses } = session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
      session.close();
      return new Map(program.rounds[0]!.losses.map((term, i) => [term, losses![i]!]));
    };
    const [none, some, more] = [0, 0.2, 0.4].map(lossesAt) as [
      Map<string, number>,
      Map<string, number>,
      Map<string, number>,
    ];
    for (const [term, hard] of none) {
      if (term === 'total') continue;
      const [once, twice] = [some.get(term)! - hard, more.get(term)! - hard];
      if (term.startsWith('ce.')) t.true(Math.abs(once) > 1e-3 && Math.abs(twice - 2 * once) < 1e-5, `${name} ${term}`);
      else t.is(once, 0, `${name} ${term}`);
    }
  }
});

for (const [name, variant] of Object.entries(variants)) {
  for (const precision of ['f32', 'bf16'] as const) {
    test(`${name}, ${precision}: its parts are the whole, round by round`, (t) => {
      const tolerance = precision === 'f32' ? 1e-3 : 2e-2; // maps travel in f32: bf16 is rounded elsewhere
      const recipe = recipeOf(variant, precision);
      const whole = open(recipe);
      const workers = branchesOf(recipe).map((_, branch) => open(recipe, { kind: 'branch', branch }));
      const host = open(recipe, { kind: 'method' });
      const { images, labels } = batch(2);
      const learningRate = 0.01;

      roundNames(recipe).forEach((_, round) => {
        const feeds = { labels, distillWeight: 0.5, shardWeight: 1 };
        const step = whole.session.run(trainingPhase('compute', round, n), { ...feeds, images });
        const wanted = gradientsByName(whole.program, step['gradient']!, round);

        const outputs = workers.map(({ session }, k) => {
          const phase = trainingPhase('forward', round, n);
          return [`outputs.${k}`, session.run(phase, { images })['outputs']!] as const;
        });
        const fused = host.session.run(trainingPhase('fuse', round, n), { ...feeds, ...Object.fromEntries(outputs) });
        const losses = whole.program.rounds[round]!.losses;
        t.deepEqual(host.program.rounds[round]!.losses, losses);
        losses.forEach((term, i) => {
          const [mine, expected] = [fused['losses']![i]!, step['losses']![i]!];
          t.true(Math.abs(mine - expected) <= tolerance * Math.abs(expected) + 1e-6, `${term} ${mine} ${expected}`);
        });

        const found = new Map<string, Float32Array>();
        const add = (gradient: Map<string, Float32Array>) => {
          for (const [key, values] of gradient) {
            const before = found.get(key);
            found.set(key, before === undefined ? values : values.map((x, i) => x + before[i]!));
          }
        };
        workers.forEach(({ session, program }, k) => {
          if (program.rounds[round]!.gradientLength === 0) return;
          const none = new Float32Array(program.outputLengths[`train@${n}`]!);
          const cotangents = fused[`cotangents.${k}`] ?? none;
          const phase = trainingPhase('backward', round, n);
          add(gradientsByName(program, session.run(phase, { cotangents, shardWeight: 1 })['gradient']!, round));
        });
        if (fused['gradient'] !== undefined) add(gradientsByName(host.program, fused['gradient'], round));
        t.deepEqual([...found.keys()].sort(), [...wanted.keys()].sort());
        if (precision === 'f32') {
          for (const [key, difference] of differences(found, wanted))
            t.true(difference < tolerance, `${key} ${difference}`);
        }

        // The whole one's gradient moves them all, so that roundings do not add up.
        const before = weightsOf(whole);
        for (const { session, program } of [whole, host, ...workers]) {
          if (program.rounds[round]!.gradientLength === 0) continue;
          const gradient = flatGradient(program, wanted, round);
          session.run(applyPhase(round), { gradient, learningRate });
        }
        const after = weightsOf(whole);
        for (const [key, { data }] of before) {
          if (!wanted.has(key)) t.deepEqual(after.get(key)!.data, data, `${key} is held fixed`);
        }
        t.notDeepEqual(after, before);
      });

      const outputs = workers.map(({ session }, k) => [
        `outputs.${k}`,
        session.run('forwardTest', { images })['outputs']!,
      ]);
      const { scores } = host.session.run('evaluate', { ...Object.fromEntries(outputs), labels });
      const { scores: expected } = whole.session.run('evaluate', { images, labels });
      t.deepEqual(host.program.classifiers, whole.program.classifiers);
      const [mine, all] = [scores!, expected!].map((each) => readScores(host.program.classifiers, each, n));
      mine!.forEach((score, i) => {
        t.true(Math.abs(score.lossSum - all![i]!.lossSum) <= 5 * tolerance * all![i]!.lossSum, score.classifier);
        t.is(
          score.bins.slice(0, 15).reduce((a, b) => a + b, 0),
          n,
        ); // every sample is in one bin
      });
      for (const { session } of [whole, host, ...workers]) session.close();
    });
  }
}

test('distillation does not move its teachers', (t) => {
  // With and without the distillation terms, what only teaches has the same gradient, and what learns another.
  const cases: [Variant, RegExp, RegExp][] = [
    [{ method: { name: 'ffl', ensembleToFused: false } }, /^fusion\./, /^branch\./],
    [{ method: { name: 'one' } }, /^gate\./, /^branch\./],
  ];
  for (const [variant, teachers, students] of cases) {
    const { session, program } = open(recipeOf(variant));
    const gradientAt = (distillWeight: number) => {
      const { gradient } = session.run(`compute@${n}`, { ...batch(3), distillWeight, shardWeight: 1 });
      return gradientsByName(program, gradient!);
    };
    const [without, with_] = [gradientAt(0), gradientAt(1)];
    for (const [name, difference] of differences(with_, without)) {
      if (name.includes('running')) continue;
      if (teachers.test(name)) t.true(difference < 1e-5, `${name} ${difference}`);
      if (students.test(name)) t.true(difference > 1e-3, `${name} ${difference}`);
    }
    session.close();
  }
  // Of two networks that teach each other, each learns as if the other were fixed: what alternate rounds compute.
  const pair = { branches: two, trunk: 'none' } as const;
  const joint = open(recipeOf({ method: { name: 'dml' }, ...pair }));
  const alternate = open(recipeOf({ method: { name: 'dml', update: 'alternate' }, ...pair }));
  const feeds = { ...batch(3), distillWeight: 1, shardWeight: 1 };
  const all = gradientsByName(joint.program, joint.session.run(`compute@${n}`, feeds)['gradient']!);
  for (const round of [0, 1]) {
    const { gradient } = alternate.session.run(trainingPhase('compute', round, n), feeds);
    const alone = gradientsByName(alternate.program, gradient!, round);
    t.true(
      [...alone.keys()].every((name) => name.startsWith(`trunk.${round}.`) || name.startsWith(`branch.${round}.`)),
    );
    for (const [name, difference] of differences(all, alone)) t.true(difference < 1e-4, `${name} ${difference}`);
  }
  for (const { session } of [joint, alternate]) session.close();
});

/** Where the loss is smooth in one weight: classifiers, and what is last in a method's module. By weight: the terms it learns from. */
const smooth: Record<string, [Variant, Record<string, string[]>, distillWeight?: number]> = {
  vanilla: [{ method: { name: 'vanilla' } }, { 'branch.1.fc.weight': ['ce.1'] }],
  dml: [
    { method: { name: 'dml' }, branches: three, trunk: 'none' },
    { 'branch.0.fc.weight': ['ce.0', 'kl.0'], 'branch.2.fc.bias': ['ce.2', 'kl.2'] },
  ],
  one: [
    { method: { name: 'one' } },
    { 'branch.0.fc.weight': ['ce.0', 'ce.gated'], 'gate.bn.bias': ['ce.gated'], 'gate.fc.weight': ['ce.gated'] },
    0, // a branch is part of its own teacher
  ],
  dualnet: [
    { method: { name: 'dualnet', auxiliaryWeight: 1 } },
    { 'branch.0.fc.weight': ['ce.0'], 'fused_fc.weight': ['ce.fused'] },
  ],
  ffl: [
    { method: { name: 'ffl' } },
    {
      'branch.0.fc.weight': ['ce.0', 'fkd.0'],
      'fusion.fc.weight': ['ce.fused', 'ekd'],
      'fusion.fc.bias': ['ce.fused', 'ekd'],
    },
  ],
};

for (const [name, [variant, weights, distillWeight = 0.7]] of Object.entries(smooth)) {
  test(`${name}: gradients agree with finite differences of the loss`, (t) => {
    const step = 1e-2; // of losses of about 2, f32 keeps 2e-7: the difference keeps 3 digits
    const { session, program } = open(recipeOf(variant));
    const state = fromTensors(program.variables, initialWeights(program.variables, 3));
    const feeds = { ...batch(4), distillWeight, shardWeight: 1 };
    session.run('write', { state });
    const gradients = gradientsByName(program, session.run(`compute@${n}`, feeds)['gradient']!);
    for (const [weight, terms] of Object.entries(weights)) {
      const { offset } = program.variables.find((v) => v.name === weight)!;
      for (const i of [0, 1]) {
        const lossesAt = (delta: number) => {
          const moved = state.slice();
          moved[offset + i]! += delta;
          session.run('write', { state: moved });
          return session.run(`compute@${n}`, feeds)['losses']!;
        };
        // Teachers are constants to the gradient but not to the loss: the terms that the weight learns from count.
        const [plus, minus] = [lossesAt(step), lossesAt(-step)];
        const slope = terms.reduce((sum, term) => {
          const at = program.rounds[0]!.losses.indexOf(term);
          return sum + (term.startsWith('ce') ? 1 : distillWeight) * ((plus[at]! - minus[at]!) / (2 * step));
        }, 0);
        const gradient = gradients.get(weight)![i]!;
        t.true(Math.abs(slope - gradient) < 1e-3, `${weight}[${i}]: ${gradient}, by differences ${slope}`);
      }
    }
    session.close();
  });
}
