/** What a recipe asks of its workers, told from the captured graphs: nothing runs. Everything grows linearly with the samples. */
import { type Branch, branchesOf, type Recipe } from '../core/recipe.ts';
import type { ImageShape } from '../input/dataset.ts';
import { complexityOf } from '../nn/complexity.ts';
import { phaseTraffic } from '../nn/graph/memory.ts';
import { memoryOf, memoryOfProgram } from '../nn/memory.ts';
import { methodOf } from '../nn/methods/method.ts';
import { networkOf, shapeAfter } from '../nn/models/network.ts';
import { buildProgram, type Role } from '../nn/program.ts';

export interface Shape {
  image: ImageShape;
  classes: number;
  /** Bytes of a sample as it is sent to a worker. */
  sampleBytes: number;
}

/** A quantity of so many samples. */
export type Linear = (samples: number) => number;

export interface RoleWork {
  /** FLOPs of training one sample, by phase: forward, and backward, which is twice as many. */
  forwardFlops: number;
  backwardFlops: number;
  /** Bytes that a phase moves in the device's memory. */
  traffic: { forward: Linear; backward: Linear; apply: number };
  /** Bytes of the device's memory. */
  memory: Linear;
  /** f32 elements that are summed, by segment. */
  segments: Record<string, number>;
  /** f32 elements of a branch's outputs for one sample, as they travel ... */
  outputs: number;
  /** ... and those of them that `featureWire: bf16` would pack two in one. */
  features: number;
}

export interface Work {
  shape: Shape;
  branches: number;
  replica: RoleWork;
  /** By branch, in `split`. */
  branch: RoleWork[];
  /** In `split`, on the coordinator. */
  method: RoleWork;
}

const SAMPLED = [8, 16] as const;
const FLOPS_OF_MULTIPLY_ADD = 2;
/** Backward multiplies twice for each product of forward: by the weights and by the inputs. */
const BACKWARD = 2;

export function workOf(recipe: Recipe, shape: Shape): Work {
  const { image, classes } = shape;
  const branches = branchesOf(recipe);
  const cost = complexityOf(recipe, image, classes);
  const alone = complexityOf({ ...recipe, method: { name: 'vanilla' } }, image, classes);
  // Evaluation takes what evaluation.batch says, training what the shard is: the larger of the two counts.
  const evaluation = { ...recipe.evaluation, batch: 1 };
  const training = { ...recipe, evaluation, training: { ...recipe.training, microBatches: 1 } };
  const roleWork = (role: Role, multiplyAdds: number, phases: { forward: string; backward: string }): RoleWork => {
    const options = { role, image, classes };
    const evaluating = memoryOf({ ...options, recipe }, 1);
    const built = SAMPLED.map((samples) => {
      const { graph, program } = buildProgram({ ...options, recipe: training, shardSizes: [samples] });
      const traffic = phaseTraffic(graph);
      const of = (phase: string) => traffic.get(`${phase}@${samples}`) ?? 0;
      const { runtime, total } = memoryOfProgram(graph, program);
      return {
        program,
        forward: of(phases.forward),
        backward: phases.backward === phases.forward ? 0 : of(phases.backward),
        apply: traffic.get('apply') ?? 0,
        memory: total - runtime,
      };
    });
    const [few, many] = built as [(typeof built)[0], (typeof built)[0]];
    const linear = (a: number, b: number): Linear => {
      const each = (b - a) / (SAMPLED[1] - SAMPLED[0]);
      return (samples) => a + each * (samples - SAMPLED[0]);
    };
    const memory = linear(few.memory, many.memory);
    const forwardFlops = FLOPS_OF_MULTIPLY_ADD * multiplyAdds;
    return {
      forwardFlops,
      backwardFlops: BACKWARD * forwardFlops,
      traffic: {
        forward: linear(few.forward, many.forward),
        backward: linear(few.backward, many.backward),
        apply: many.apply,
      },
      memory: (samples) => Math.max(evaluating.total - evaluating.runtime, memory(samples)),
      segments: Object.fromEntries(many.program.rounds[0]!.segments.map(({ name, length }) => [name, length])),
      outputs: (many.program.outputLengths[`train@${SAMPLED[1]}`] ?? 0) / SAMPLED[1],
      features: role.kind === 'branch' ? featuresOf(recipe, branches[role.branch]!, image) : 0,
    };
  };
  const whole = { forward: 'compute', backward: 'compute' };
  return {
    shape,
    branches: branches.length,
    replica: roleWork({ kind: 'replica' }, cost.multiplyAdds, whole),
    branch: cost.branches.map(({ multiplyAdds }, branch) =>
      roleWork({ kind: 'branch', branch }, multiplyAdds, { forward: 'forward', backward: 'backward' }),
    ),
    method: roleWork({ kind: 'method' }, cost.multiplyAdds - alone.multiplyAdds, { forward: 'fuse', backward: 'fuse' }),
  };
}

function featuresOf(recipe: Recipe, branch: Branch, image: ImageShape): number {
  if (recipe.cluster.featureWire === 'bf16' || !methodOf(recipe).reads.includes('map')) return 0;
  return shapeAfter(networkOf(branch).stages, image).reduce((a, b) => a * b, 1);
}
