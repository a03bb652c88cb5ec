/** Prints the most memory, in bytes, that a process has had which trained on 128 images: `true` to recompute, or `false`. */
import { checkRecipe } from '../core/recipe.ts';
import { Session } from '../nn/graph/session.ts';
import { buildProgram } from '../nn/program.ts';
import { fromTensors, initialWeights } from '../nn/variables.ts';
import { TWO_BRANCHES } from './training.ts';

const n = 128;
const recipe = checkRecipe({
  ...TWO_BRANCHES,
  branches: [{ network: 'resnet', depth: 32, count: 2 }],
  training: { batch: n, recompute: process.argv[2] === 'true' },
});
const image = { height: 32, width: 32, channels: 3 };
const { graph, program } = buildProgram({ recipe, role: { kind: 'replica' }, image, classes: 10, shardSizes: [n] });
const session = new Session(graph);
session.run('write', { state: fromTensors(program.variables, initialWeights(program.variables, 1)) });
const images = new Uint8Array(n * 32 * 32 * 3).map((_, i) => i * i);
const labels = new Int32Array(n).map((_, i) => i % 10);
for (let step = 0; step < 2; step++)
  session.run(`compute@${n}`, { images, labels, distillWeight: 0.5, shardWeight: 1 });
session.close();
process.stdout.write(`${process.resourceUsage().maxRSS * 1024}\n`);
