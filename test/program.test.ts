/** Programs: captured and eager steps agree, roles agree with each other, nothing grows, threads do not disturb each other. */
import test from 'ava';
import { BraidError } from '../core/errors.ts';
import { branchesOf, checkRecipe, type Recipe } from '../core/recipe.ts';
import { alignedLength, alignedSharedBuffer } from '../core/shared-buffer.ts';
import { Device } from '../nn/device.ts';
import { flatLength, flatParts, splitFlat } from '../nn/flat.ts';
import { type Capture, capture, layer, type Variable, type WrittenPart } from '../nn/graph/capture.ts';
import { conv2d } from '../nn/graph/convolutions.ts';
import { type Feed, Session } from '../nn/graph/session.ts';
import { crossEntropy, distillation } from '../nn/losses.ts';
import { buildProgram, describeProgram, type ProgramOptions, type Role } from '../nn/program.ts';
import { eagerBackend, type Tensor, tf } from '../nn/tensorflow.ts';
import { fromTensors, initialWeights, parameterCount, toTensors } from '../nn/variables.ts';
import { gradientsByName } from './gradients.ts';

const image = { height: 12, width: 12, channels: 3 };
const classes = 7;
const n = 6;

function recipeOf(change: Record<string, unknown> = {}, training: Record<string, unknown> = {}): Recipe {
  return checkRecipe({
    name: 'test',
    data: { format: 'cifar10', path: 'unused', mean: [120, 121, 122], std: [60, 61, 62] },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    method: { name: 'ffl' },
    training: { batch: n, ...training },
    evaluation: { batch: n },
    ...change,
  });
}

const optionsOf = (recipe: Recipe, role: Role = { kind: 'replica' }): ProgramOptions => ({
  recipe,
  role,
  image,
  classes,
  shardSizes: [n],
});

function batch(seed: number) {
  const value = (i: number) => Math.abs(Math.imul(i + 1, 2654435761 + seed)) >>> 3;
  return {
    images: Uint8Array.from({ length: n * image.height * image.width * image.channels }, (_, i) => value(i) % 256),
    labels: Int32Array.from({ length: n }, (_, i) => value(i) % classes),
  };
}

function relativeDifference(a: Float32Array, b: Float32Array): number {
  let difference = 0;
  let norm = 0;
  a.forEach((x, i) => {
    difference += (x - b[i]!) ** 2;
    norm += b[i]! ** 2;
  });
  return Math.sqrt(difference / norm);
}

/** A Capture that runs at once: the same program, eagerly. */
class Eager implements Capture {
  results: Record<string, Tensor> = {};
  private readonly wanted: string;
  private readonly feeds: Record<string, Tensor>;
  private readonly variables: Map<string, Tensor>;
  private current = '';

  constructor(wanted: string, feeds: Record<string, Tensor>, variables: Map<string, Tensor>) {
    this.wanted = wanted;
    this.feeds = feeds;
    this.variables = variables;
  }

  phase(name: string, body: () => Record<string, Tensor>): void {
    this.current = name;
    for (const [key, tensor] of Object.entries(body())) this.fetch(key, tensor);
  }
  continueIn(name: string): void {
    this.current = name;
  }
  fetch(name: string, tensor: Tensor): void {
    if (this.current === this.wanted) this.results[name] = tensor;
  }
  write(name: string, length: number, parts: WrittenPart[]): void {
    const flat: Tensor[] = [];
    for (const { offset, value } of parts) {
      const before = flat.reduce((sum, { size }) => sum + size, 0);
      if (offset !== before) throw new Error(`${name}: a part at ${offset} follows ${before} elements`);
      flat.push(value);
    }
    const all = tf.concat(flat);
    if (all.size !== length) throw new Error(`${name}: ${all.size} of ${length} elements are written`);
    this.fetch(name, all);
  }
  feed(name: string, shape: number[], dtype: 'float32' | 'int32' = 'float32'): Tensor {
    return (this.current === this.wanted ? this.feeds[name] : undefined) ?? tf.zeros(shape, dtype);
  }
  feedBytes(name: string, shape: number[]): Tensor {
    return this.feed(name, shape);
  }
  variable(name: string, shape: number[]): Variable {
    const value = () => this.variables.get(name) ?? tf.zeros(shape);
    return { name, shape, read: value, assign: () => {}, add: () => {}, applyMomentum: value };
  }
}

test('a whole captured step equals the same code run eagerly', (t) => {
  const recipe = recipeOf();
  const options = optionsOf(recipe);
  const { graph, program } = buildProgram(options);
  const weights = initialWeights(program.variables, 3);
  const { images, labels } = batch(1);
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, weights) });
  const captured = session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
  session.close();

  const state = fromTensors(program.variables, weights);
  const eager = tf.tidy(() => {
    const tensors = new Map(
      program.variables.map((v) => [v.name, tf.tensor(state.slice(v.offset, v.offset + v.size), v.shape)] as const),
    );
    const feeds = {
      images: tf.tensor(Float32Array.from(images), [n, image.height, image.width, image.channels]),
      labels: tf.tensor(labels, [n], 'int32'),
      distillWeight: tf.scalar(0.5),
      shardWeight: tf.scalar(1),
    };
    const run = new Eager(`compute@${n}`, feeds, tensors);
    describeProgram(run, options);
    return Object.fromEntries(Object.entries(run.results).map(([k, v]) => [k, v.dataSync().slice() as Float32Array]));
  });
  t.true(relativeDifference(captured['losses']!, eager['losses']!) < 1e-6);
  t.true(relativeDifference(captured['gradient']!, eager['gradient']!) < 1e-5);
});

test('the parameter counts of the literature', (t) => {
  const count = (change: Record<string, unknown>, part: string) => {
    const size = { height: 32, width: 32, channels: 3 };
    const { program } = buildProgram({ ...optionsOf(recipeOf(change)), image: size, classes: 100 });
    return parameterCount(program.variables.filter(({ name }) => name.startsWith('fusion.') === (part === 'fusion')));
  };
  t.is(count({ branches: [{ network: 'resnet', depth: 32 }], method: { name: 'vanilla' } }, 'networks'), 472_756);
  t.is(count({ branches: [{ network: 'resnet', depth: 32, count: 2 }] }, 'networks'), 832_920);
  t.is(count({ branches: [{ network: 'resnet', depth: 32, count: 2 }] }, 'fusion'), 16_228);
});

for (const [trunk, perBranch] of [
  ['shared', false],
  ['none', false],
  ['none', true],
] as const) {
  for (const branches of [1, 2, 5]) {
    const eyes = perBranch ? ', each with its own pixels' : '';
    test(`split equals together: ${branches} branches, trunk ${trunk}${eyes}`, (t) => {
      const method = branches > 1 ? { name: 'ffl' } : { name: 'vanilla' };
      const recipe = recipeOf({
        branches: [{ network: 'resnet', depth: 8, width: 4, count: branches }],
        trunk,
        method,
        data: { format: 'cifar10', path: 'unused', mean: [120, 121, 122], std: [60, 61, 62], perBranch },
      });
      const { labels } = batch(2);
      const seen = Array.from({ length: branches }, (_, k) => batch(perBranch ? 2 + k : 2).images);
      // By sample, then by branch.
      const size = seen[0]!.length / n;
      const bySample = Array.from({ length: n }, (_, i) => seen.map((of) => of.subarray(i * size, (i + 1) * size)));
      const images = perBranch ? Uint8Array.from(Buffer.concat(bySample.flat())) : seen[0]!;
      const open = (role: Role) => {
        const { graph, program } = buildProgram(optionsOf(recipe, role));
        const session = new Session(graph);
        if (program.stateLength > 0) {
          session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 5)) });
        }
        return { session, program };
      };
      const whole = open({ kind: 'replica' });
      const together = whole.session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
      const byName = gradientsByName(whole.program, together['gradient']!);

      const workers = branchesOf(recipe).map((_, branch) => open({ kind: 'branch', branch }));
      const host = open({ kind: 'method' });
      const feeds: Record<string, Feed> = { labels, distillWeight: 0.5, shardWeight: 1 };
      workers.forEach(({ session }, k) => {
        feeds[`outputs.${k}`] = session.run(`forward@${n}`, { images: seen[k]! })['outputs']!;
      });
      const fused = host.session.run(`fuse@${n}`, feeds);
      t.true(relativeDifference(fused['losses']!, together['losses']!) < 1e-5);

      const sum = new Map<string, Float32Array>();
      const add = (name: string, values: Float32Array) => {
        const before = sum.get(name);
        sum.set(name, before === undefined ? values : values.map((x, i) => x + before[i]!));
      };
      workers.forEach(({ session, program }, k) => {
        const { gradient } = session.run(`backward@${n}`, { cotangents: fused[`cotangents.${k}`]!, shardWeight: 1 });
        for (const [name, values] of gradientsByName(program, gradient!)) add(name, values);
      });
      if (fused['gradient'] !== undefined) {
        for (const [name, values] of gradientsByName(host.program, fused['gradient'])) add(name, values);
      }
      t.deepEqual([...sum.keys()].sort(), [...byName.keys()].sort());
      for (const [name, values] of byName) {
        t.true(
          relativeDifference(sum.get(name)!, values) < 1e-3,
          `${name} ${relativeDifference(sum.get(name)!, values)}`,
        );
      }
      for (const { session } of [whole, host, ...workers]) session.close();
    });
  }
}

test('bf16 follows f32, and its gradients stay f32', (t) => {
  const { images, labels } = batch(3);
  const gradients = (['f32', 'bf16'] as const).map((precision) => {
    const { graph, program } = buildProgram(optionsOf(recipeOf({}, { precision })));
    const session = new Session(graph);
    session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
    const { gradient, losses } = session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
    session.close();
    return { gradient: gradient!, losses: losses! };
  });
  const [f32, bf16] = gradients as [(typeof gradients)[0], (typeof gradients)[0]];
  t.true(relativeDifference(bf16.losses, f32.losses) < 0.05);
  let dot = 0;
  f32.gradient.forEach((x, i) => {
    dot += x * bf16.gradient[i]!;
  });
  t.true(dot / (Math.hypot(...f32.gradient) * Math.hypot(...bf16.gradient)) > 0.95);
});

test('no gradient reaches a teacher', (t) => {
  const gradientOf = (which: 'student' | 'teacher', z: Float32Array) => {
    const other = tf.tensor2d([[1, 0, -0.5]]);
    const at = tf.tensor2d(z, [1, 3]);
    const kl = (x: Tensor) => (which === 'student' ? distillation(x, other, 3, 1e-7) : distillation(other, x, 3, 1e-7));
    return tf.tidy(() => tf.grad(kl)(at).dataSync().slice());
  };
  t.deepEqual([...gradientOf('teacher', Float32Array.of(2, -1, 0.5))], [0, 0, 0]);
  t.true(gradientOf('student', Float32Array.of(2, -1, 0.5)).every((g) => g !== 0));
});

test('the published loss values', (t) => {
  const [z1, z2, zf] = [
    tf.tensor2d([
      [2, -1, 0.5],
      [0.1, 0.2, 0.3],
    ]),
    tf.tensor2d([
      [1, 0, -0.5],
      [1.5, -0.5, 0.25],
    ]),
    tf.tensor2d([
      [3, -2, 0],
      [0.4, 1.2, -0.7],
    ]),
  ] as const;
  const y = tf.tensor1d([0, 1], 'int32');
  const ze = tf.mul(tf.add(z1, z2), 0.5);
  const close = (found: Tensor, expected: number) =>
    t.true(Math.abs(found.dataSync()[0]! - expected) < 1e-6, `${found.dataSync()[0]}, not ${expected}`);
  close(crossEntropy(z1, y), 0.67162707);
  close(crossEntropy(z2, y), 1.40816032);
  close(crossEntropy(zf, y), 0.26214981);
  close(distillation(z1, zf, 3, 1e-7), 0.33400583);
  close(distillation(z2, zf, 3, 1e-7), 0.97234486);
  close(distillation(zf, ze, 3, 1e-7), 0.57882502);
  close(distillation(zf, ze, 3, 0), 0.57882203);
  const gradient = tf
    .grad((z: Tensor) => distillation(z, zf, 3, 1e-7))(z1)
    .dataSync();
  for (const [i, expected] of [-0.20382206, 0.09749581, 0.10632626].entries()) {
    t.true(Math.abs(gradient[i]! - expected) < 1e-6);
  }
});

test("smoothed labels are PyTorch's: a target of 1 - s + s / C for the label, s / C for all others", (t) => {
  const logits = [
    [2, -1, 0.5],
    [0.1, 0.2, 0.3],
  ];
  const [labels, s] = [[0, 1], 0.1];
  const expected = logits.map((z, i) => {
    const norm = Math.log(z.reduce((sum, x) => sum + Math.exp(x), 0));
    return z.reduce((sum, x, c) => sum + (s / 3 + (c === labels[i] ? 1 - s : 0)) * (norm - x), 0);
  });
  const y = tf.tensor1d(labels, 'int32');
  const loss = (z: Tensor) => crossEntropy(z, y, s);
  const [value] = loss(tf.tensor2d(logits)).dataSync();
  t.true(Math.abs(value! - (expected[0]! + expected[1]!) / 2) < 1e-6);
  const gradient = tf.grad(loss)(tf.tensor2d(logits)).dataSync();
  logits.forEach((z, i) => {
    const sum = z.reduce((all, x) => all + Math.exp(x), 0);
    z.forEach((x, c) => {
      const wanted = (Math.exp(x) / sum - s / 3 - (c === labels[i] ? 1 - s : 0)) / 2; // (softmax - target) / B
      t.true(Math.abs(gradient[3 * i + c]! - wanted) < 1e-6);
    });
  });
});

test('gradients agree with finite differences of the loss', (t) => {
  const { graph, program } = buildProgram(optionsOf(recipeOf()));
  const session = new Session(graph);
  const state = fromTensors(program.variables, initialWeights(program.variables, 3));
  const { images, labels } = batch(4);
  const feeds = { images, labels, distillWeight: 0.7, shardWeight: 1 };
  // Of a sum of losses of about 7, f32 keeps 1e-6: a step of 1e-2 leaves the difference 3 digits.
  const step = 1e-2;
  session.run('write', { state });
  const gradients = gradientsByName(program, session.run(`compute@${n}`, feeds)['gradient']!);
  // Where the loss is smooth in one weight: heads and the fusion module's last batch norm.
  for (const name of ['branch.0.fc.weight', 'branch.1.fc.bias', 'fusion.fc.weight', 'fusion.fc.bias']) {
    const { offset } = program.variables.find((v) => v.name === name)!;
    for (const i of [0, 3]) {
      const total = (delta: number) => {
        const moved = state.slice();
        moved[offset + i]! += delta;
        session.run('write', { state: moved });
        const { losses } = session.run(`compute@${n}`, feeds);
        return losses!;
      };
      // The teachers are constants to the gradient but not to the loss: only terms that the weight does not teach count.
      const own = name.startsWith('fusion.') ? ['ce.fused', 'ekd'] : [`ce.${name[7]}`, `fkd.${name[7]}`];
      const [plus, minus] = [total(step), total(-step)];
      const difference = own.reduce((sum, term) => {
        const at = program.rounds[0]!.losses.indexOf(term);
        return sum + (term.startsWith('ce') ? 1 : 0.7) * ((plus[at]! - minus[at]!) / (2 * step));
      }, 0);
      t.true(
        Math.abs(difference - gradients.get(name)![i]!) < 1e-3,
        `${name}[${i}]: ${gradients.get(name)![i]}, by differences ${difference}`,
      );
    }
  }
  session.close();
});

test('500 steps leave no tensor behind and do not grow', (t) => {
  const { graph, program } = buildProgram(optionsOf(recipeOf()));
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  const { images, labels } = batch(1);
  const step = () => {
    const { gradient } = session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
    session.run('apply', { gradient: gradient!, learningRate: 0.01 });
  };
  for (let i = 0; i < 50; i++) step();
  const tensors = eagerBackend.binding.getNumOfTensors();
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 500; i++) step();
  t.is(eagerBackend.binding.getNumOfTensors(), tensors);
  t.true(process.memoryUsage().rss - before < 64 << 20); // far below what leaked activations would take
  session.close();
});

test('two devices in two threads at once compute what each computes alone', async (t) => {
  const options = { ...optionsOf(recipeOf()), threads: 1 };
  const devices = await Promise.all([Device.open(options), Device.open(options)]);
  const train = async (device: Device, seed: number) => {
    const { variables } = device.program;
    await device.run('write', { state: fromTensors(variables, initialWeights(variables, seed)) });
    for (let i = 0; i < 10; i++) {
      const { gradient } = await device.run(`compute@${n}`, { ...batch(seed), distillWeight: 0.5, shardWeight: 1 });
      await device.run('apply', { gradient: gradient!, learningRate: 0.05 });
    }
    return (await device.run('read', {}))['state']!;
  };
  const alone = [await train(devices[0]!, 1), await train(devices[0]!, 2)];
  const atOnce = await Promise.all([train(devices[0]!, 1), train(devices[1]!, 2)]);
  t.deepEqual(atOnce, alone);
  await Promise.all(devices.map((device) => device.close()));
  const error = await t.throwsAsync<BraidError>(devices[0]!.run('read', {}));
  t.is(error?.code, 'DEVICE');
});

test('a result is written where it is wanted, part by part', (t) => {
  const graph = capture((c) => {
    c.phase('p', () => {
      const x = c.feed('x', [16]);
      const [first, rest] = [tf.mul(x, 2), tf.concat([x, x])];
      c.write('y', 48, [
        { offset: 32, value: first },
        { offset: 0, value: rest },
      ]);
      return {};
    });
  });
  const session = new Session(graph);
  const x = Float32Array.from({ length: 16 }, (_, i) => i + 1);
  const wanted = Float32Array.of(...x, ...x, ...x.map((v) => 2 * v));
  t.deepEqual(session.run('p', { x })['y'], wanted);
  const memory = new Float32Array(alignedSharedBuffer(4 * 64), 0, 64);
  const into = { y: memory.subarray(16) };
  t.is(session.run('p', { x }, into)['y'], into.y);
  t.deepEqual(into.y, wanted);
  t.true(memory.subarray(0, 16).every((v) => v === 0));
  // TensorFlow would write a copy.
  const off = t.throws<BraidError>(() => session.run('p', { x }, { y: memory.subarray(1, 49) }));
  t.is(off.code, 'DEVICE');
  t.regex(off.message, /y must begin at a multiple of 64 bytes/);
  t.regex(t.throws(() => session.run('p', { x }, { y: memory })).message, /writes f32\[48\] as y, not 64 elements/);
  session.close();
});

test('a result is only written in parts that TensorFlow would not copy', (t) => {
  for (const [offset, size] of [
    [8, 16],
    [0, 8],
    [32, 16],
  ] as const) {
    const write = () =>
      capture((c) => {
        c.phase('p', () => {
          c.write('y', 32, [{ offset, value: c.feed('x', [size]) }]);
          return {};
        });
      });
    t.throws(write, {
      code: 'CAPTURE',
      message: new RegExp(`y: ${size} elements cannot be written at ${offset} of 32`),
    });
  }
});

test('what is large is a part of its own, what is small goes together, and all come back', (t) => {
  const sizes = [3, 65_536, 16, 1, 70_001];
  const graph = capture((c) => {
    c.phase('p', () => {
      const tensors = splitFlat(c.feed('flat', [flatLength(sizes)]), sizes);
      t.deepEqual(
        tensors.map(({ size }) => size),
        sizes,
      );
      const parts = flatParts(tensors);
      t.deepEqual(
        parts.map(({ offset, value }) => [offset, value.size]),
        [
          [0, 16],
          [16, 65_536],
          [65_552, 32],
          [65_584, 70_016],
        ],
      );
      c.write('same', flatLength(sizes), parts);
      return {};
    });
  });
  const session = new Session(graph);
  const flat = new Float32Array(flatLength(sizes));
  let at = 0;
  for (const size of sizes) {
    for (let i = 0; i < size; i++) flat[at + i] = at + i + 1;
    at += alignedLength(size);
  }
  t.deepEqual(session.run('p', { flat })['same'], flat);
  session.close();
});

test('state survives the way out and back, in PyTorch layout', (t) => {
  const { graph, program } = buildProgram(optionsOf(recipeOf()));
  const state = Float32Array.from({ length: program.stateLength }, (_, i) => Math.sin(i));
  const session = new Session(graph);
  session.run('write', { state });
  const read = session.run('read', {})['state']!;
  const { weights, momenta, averages } = toTensors(program.variables, read);
  t.deepEqual({ weights, momenta, averages }, toTensors(program.variables, state));
  t.deepEqual(fromTensors(program.variables, weights, momenta), read); // zeros between them
  t.deepEqual(weights.get('branch.0.layer3.0.conv1.weight')!.shape, [16, 8, 3, 3]);
  weights.delete('fusion.fc.bias');
  const error = t.throws<BraidError>(() => fromTensors(program.variables, weights), { instanceOf: BraidError });
  t.regex(error!.message, /fusion\.fc\.bias is missing/);
  session.close();
});

test('an operation that is not captured is refused with its kernel, its tfjs name and what to do', (t) => {
  const error = t.throws<BraidError>(() =>
    capture((c) =>
      c.phase('p', () => ({
        y: layer('head', () => tf.image.resizeBilinear(c.feed('x', [1, 2, 2, 1]) as never, [4, 4])),
      })),
    ),
  );
  t.is(error!.code, 'CAPTURE');
  t.regex(error!.message, /layer head: .* is not captured \(kernel \w+, tf\.\w+\)/);
  t.regex(error!.remedy, /shapes\.ts/);
});

test('an impossible shape names its layer', (t) => {
  const inLayer = (run: (c: Capture) => Tensor) =>
    t.throws<BraidError>(() =>
      capture((c) => c.phase('p', () => ({ y: layer('branch.0', () => layer('conv1', () => run(c))) }))),
    )!.message;
  t.regex(
    inLayer((c) => conv2d(c.feed('x', [1, 4, 4, 3]), c.feed('w', [3, 3, 2, 8]), 1)),
    /layer branch\.0\.conv1: Conv2D of .*3 channels for a filter of 2/,
  );
  t.regex(
    inLayer((c) => tf.add(c.feed('x', [2, 3]), c.feed('y', [2, 4]))),
    /layer branch\.0\.conv1: /,
  );
});

test('a feed that is missing or of another size is refused before anything runs', (t) => {
  const session = new Session(capture((c) => c.phase('p', () => ({ y: tf.square(c.feed('x', [2])) }))));
  t.regex(t.throws(() => session.run('p', {}))!.message, /phase p takes f32\[2\] as x, not nothing/);
  t.regex(t.throws(() => session.run('p', { x: new Float32Array(3) }))!.message, /not Float32Array\[3\]/);
  t.regex(t.throws(() => session.run('q', {}))!.message, /no phase q: the graph has p/);
  session.close();
});
