/** Which networks there are, and where they may be cut. */
import { z } from 'zod';
import { positiveInt } from './numbers.ts';

/** How many branches of this very kind. */
const copies = { count: positiveInt.default(1) };

export const branchSchema = z.discriminatedUnion('network', [
  /** CIFAR-style ResNet (He et al. 2016, section 4.2): depth 6n+2 with basic blocks, 9n+2 with bottlenecks. */
  z.strictObject({
    network: z.literal('resnet'),
    depth: positiveInt.default(32),
    /** Channels of the first stage; the second and third have 2 and 4 times as many (bottlenecks: 4 times all of that). */
    width: positiveInt.default(16),
    /** The FFL authors always use basic blocks; the ONE authors bottlenecks from depth 44 on. */
    block: z.enum(['basic', 'bottleneck']).default('basic'),
    ...copies,
  }),
  /** Wide ResNet of depth 6n+4 (Zagoruyko & Komodakis 2016). */
  z.strictObject({
    network: z.literal('wrn'),
    depth: positiveInt.default(16),
    widen: positiveInt.default(2),
    ...copies,
  }),
  /** VGG with batch norms for small images (Simonyan & Zisserman 2015, configuration D). */
  z.strictObject({ network: z.literal('vgg'), depth: z.literal(16).default(16), ...copies }),
  /** DenseNet-BC of depth 6n+4, compression 0.5 (Huang et al. 2017). */
  z.strictObject({
    network: z.literal('densenet'),
    depth: positiveInt.default(40),
    growth: positiveInt.default(12),
    ...copies,
  }),
  /** MobileNetV2 (Sandler et al. 2018) with the strides that 32-pixel images take. */
  z.strictObject({ network: z.literal('mobilenetv2'), multiplier: z.number().positive().default(1), ...copies }),
  /** ResNet for 224-pixel images (He et al. 2016, section 4.1). */
  z.strictObject({
    network: z.literal('imagenet-resnet'),
    depth: z.union([z.literal(18), z.literal(34), z.literal(50)]).default(34),
    ...copies,
  }),
  /** MobileNetV2 for 224-pixel images. */
  z.strictObject({
    network: z.literal('imagenet-mobilenetv2'),
    multiplier: z.number().positive().default(1),
    ...copies,
  }),
]);

type Entry = z.infer<typeof branchSchema>;
type WithoutCount<T> = T extends unknown ? Omit<T, 'count'> : never;
export type Branch = WithoutCount<Entry>;

const layers = (from: number, to: number, name: string) =>
  Array.from({ length: to - from + 1 }, (_, i) => `${name}${from + i}`);

/** A network's stages in order, by what `shareUntil` calls them: nn/models builds these very stages. */
export const STAGES: Record<Branch['network'], readonly string[]> = {
  resnet: ['stem', ...layers(1, 3, 'layer')],
  wrn: ['stem', ...layers(1, 3, 'layer')],
  vgg: layers(1, 5, 'stage'),
  densenet: ['stem', ...layers(1, 3, 'dense')],
  mobilenetv2: ['stem', ...layers(1, 7, 'stage'), 'top'],
  'imagenet-resnet': ['stem', ...layers(1, 4, 'layer')],
  'imagenet-mobilenetv2': ['stem', ...layers(1, 7, 'stage'), 'top'],
};

/** One entry a branch: `count` unrolled. */
export function branchesOf({ branches }: { branches: Entry[] }): Branch[] {
  return branches.flatMap(({ count, ...branch }) => Array.from({ length: count }, () => branch as Branch));
}

/** What is wrong with networks, the trunk that they share, and stages that are named. */
export function networkProblems(
  branches: Branch[],
  trunk: 'shared' | 'none',
  shareUntil: string | null,
  recompute: boolean | string[],
): string[] {
  const problems: string[] = [];
  branches.forEach((branch, i) => {
    const problem = depthProblem(branch);
    if (problem !== null) problems.push(`branches: branch ${i} has ${problem}`);
  });
  if (trunk === 'shared' && branches.some((b) => JSON.stringify(b) !== JSON.stringify(branches[0]))) {
    problems.push('trunk: branches of different networks cannot share a trunk: set trunk to none');
  }
  if (shareUntil !== null) {
    for (const network of new Set(branches.map((branch) => branch.network))) {
      const stages = STAGES[network].slice(0, -1);
      if (!stages.includes(shareUntil))
        problems.push(`shareUntil: ${network} has no stage ${shareUntil} before its last: ${stages.join(', ')}`);
    }
  }
  const known = [...new Set(branches.flatMap(({ network }) => STAGES[network]))];
  for (const stage of typeof recompute === 'boolean' ? [] : recompute) {
    if (!known.includes(stage)) problems.push(`training.recompute: there is no stage ${stage}: ${known.join(', ')}`);
  }
  if (branches.length > 5) problems.push(`branches: ${branches.length} branches, 5 are the most`);
  return problems;
}

function depthProblem(branch: Branch): string | null {
  const rule = (base: number, step: number) =>
    `depth ${'depth' in branch && branch.depth}, which is not ${step}n+${base} (${base + step}, ${base + 2 * step}, ...)`;
  switch (branch.network) {
    case 'resnet': {
      const step = branch.block === 'basic' ? 6 : 9;
      return (branch.depth - 2) % step === 0 && branch.depth > 2 ? null : rule(2, step);
    }
    case 'wrn':
    case 'densenet':
      return (branch.depth - 4) % 6 === 0 && branch.depth > 4 ? null : rule(4, 6);
    default:
      return null;
  }
}
