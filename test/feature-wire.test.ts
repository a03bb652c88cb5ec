/** Feature maps in bf16 between branches and method (cluster.featureWire): each value rounded to the nearest once, both ways. */
import test from 'ava';
import { checkRecipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram, type Role } from '../nn/program.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import { TWO_BRANCHES } from './training.ts';

const image = { height: 12, width: 12, channels: 3 };
const n = 4;
const classes = 5;

function open(featureWire: string, role: Role) {
  const recipe = checkRecipe({
    ...TWO_BRANCHES,
    training: { batch: n },
    evaluation: { batch: n },
    cluster: { placement: 'split', featureWire },
  });
  const { graph, program } = buildProgram({ recipe, role, image, classes, shardSizes: [n] });
  const session = new Session(graph);
  session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 3)) });
  return { session, program };
}

/** To nearest, ties to even. */
function bf16(x: number): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)[0]!;
  return new Float32Array(Uint32Array.of((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000).buffer)[0]!;
}

/** The f32 vector as it comes out at the other end, and as it travels. */
const rounded = (flat: Float32Array) => flat.map((x, i) => (i < n * classes ? x : bf16(x)));
function packed(flat: Float32Array): Float32Array {
  const head = flat.slice(0, n * classes);
  const halves = Uint16Array.from(
    flat.slice(n * classes),
    (x) => new Uint32Array(Float32Array.of(bf16(x)).buffer)[0]! >>> 16,
  );
  const words = new Float32Array(head.length + halves.length / 2);
  words.set(head);
  new Uint8Array(words.buffer).set(new Uint8Array(halves.buffer), 4 * head.length);
  return words;
}
const bytes = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);

test('what travels is rounded once, and everything else is as with rounded f32', (t) => {
  const images = Uint8Array.from({ length: n * 12 * 12 * 3 }, (_, i) => Math.abs(Math.imul(i, 2654435761)) >>> 24);
  const labels = Int32Array.of(0, 1, 2, 3);
  const feeds = { labels, distillWeight: 0.5, shardWeight: 1 };
  const full = [0, 1].map((branch) => open('f32', { kind: 'branch', branch }));
  const half = [0, 1].map((branch) => open('bf16', { kind: 'branch', branch }));
  const outputs = full.map(({ session }) => session.run(`forward@${n}`, { images })['outputs']!);
  half.forEach(({ session, program }, k) => {
    const sent = session.run(`forward@${n}`, { images })['outputs']!;
    t.is(sent.length, program.outputLengths[`train@${n}`]!);
    t.true(sent.length < 0.6 * outputs[k]!.length);
    t.deepEqual(bytes(sent), bytes(packed(outputs[k]!)));
    t.is(program.outputLengths['test'], full[k]!.program.outputLengths['test']); // evaluation is not rounded
  });
  const [method, roundedMethod] = [open('f32', { kind: 'method' }), open('bf16', { kind: 'method' })];
  const named = (values: Float32Array[]) => Object.fromEntries(values.map((value, k) => [`outputs.${k}`, value]));
  const wanted = method.session.run(`fuse@${n}`, { ...feeds, ...named(outputs.map(rounded)) });
  const found = roundedMethod.session.run(`fuse@${n}`, { ...feeds, ...named(outputs.map(packed)) });
  t.deepEqual(found['losses'], wanted['losses']);
  t.deepEqual(found['gradient'], wanted['gradient']);
  for (const k of [0, 1]) {
    const cotangents = wanted[`cotangents.${k}`]!;
    t.deepEqual(bytes(found[`cotangents.${k}`]!), bytes(packed(cotangents)));
    const there = full[k]!.session.run(`backward@${n}`, { cotangents: rounded(cotangents), shardWeight: 1 });
    const here = half[k]!.session.run(`backward@${n}`, { cotangents: packed(cotangents), shardWeight: 1 });
    t.deepEqual(here['gradient'], there['gradient']);
  }
  for (const { session } of [...full, ...half, method, roundedMethod]) session.close();
});
