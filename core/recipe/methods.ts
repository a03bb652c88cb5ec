/** The methods and their options. */
import { z } from 'zod';
import { count, positiveInt } from './numbers.ts';

const rampUpSchema = z.discriminatedUnion('kind', [
  /** w(e) = exp(-5 (1 - clip(e, 0, epochs) / epochs)^2), e the 0-based epoch. */
  z.strictObject({ kind: z.literal('exponential'), epochs: positiveInt.default(80) }),
  z.strictObject({ kind: z.literal('constant'), value: z.number().nonnegative().default(1) }),
]);

/** Every branch learns from the labels alone: with `trunk: none` these are networks trained alone. */
const vanillaSchema = z.strictObject({ name: z.literal('vanilla') });

/** What methods that distil have in common. */
const distilling = (defaults: {
  temperature: number;
  teacherEpsilon: number;
  rampUp: z.infer<typeof rampUpSchema>;
}) => ({
  /** T of the softened distributions. */
  temperature: z.number().positive().default(defaults.temperature),
  /** Added to every teacher probability, without renormalising: 1e-7 in the FFL and ONE authors' code. */
  teacherEpsilon: z.number().nonnegative().default(defaults.teacherEpsilon),
  /** The weight w(e) of the distillation terms. */
  rampUp: rampUpSchema.default(defaults.rampUp),
});
const AUTHORS = { temperature: 3, teacherEpsilon: 1e-7, rampUp: { kind: 'exponential', epochs: 80 } } as const;

/** Feature Fusion Learning (Kim et al., ICPR 2020). */
const fflSchema = z.strictObject({
  name: z.literal('ffl'),
  ...distilling(AUTHORS),
  /** null: no fused classifier, the ensemble itself teaches the branches. */
  fusion: z
    .strictObject({
      /** Channels N after the pointwise convolution; null: the widest branch's. */
      channels: positiveInt.nullable().default(null),
      /** How last maps of different sizes are brought to the smallest: a strided 3x3 convolution, or average pooling. */
      align: z.enum(['conv', 'avgpool', 'none']).default('conv'),
    })
    .nullable()
    .prefault({}),
  /** Ablation: whether the ensemble teaches the fused classifier. */
  ensembleToFused: z.boolean().default(true),
  /** Ablation: whether the fused classifier teaches the branches. */
  fusedToBranch: z.boolean().default(true),
});

/** Deep Mutual Learning (Zhang et al., CVPR 2018). */
const dmlSchema = z.strictObject({
  name: z.literal('dml'),
  ...distilling({ temperature: 1, teacherEpsilon: 0, rampUp: { kind: 'constant', value: 1 } }),
  /** All networks by one step, or one after another, each seeing what the ones before have learnt (Algorithm 1). */
  update: z.enum(['joint', 'alternate']).default('joint'),
  /** Over a network's peers. */
  reduce: z.enum(['mean', 'sum']).default('mean'),
  /** Each peer is a teacher, or the mean of the peers' logits is the one teacher. */
  target: z.enum(['pairwise', 'peerMean']).default('pairwise'),
});

/** On-the-fly Native Ensemble (Lan, Zhu, Gong, NeurIPS 2018). */
const oneSchema = z.strictObject({
  name: z.literal('one'),
  ...distilling(AUTHORS),
  /** Residual blocks before the gate: more than 0 is ONE-E+, which matches the parameters of FFL's fusion module. */
  gateBlocks: count.default(0),
});

/** DualNet (Hou, Liu, Wang, ICCV 2017): two networks whose last maps are averaged for a fused classifier. */
const dualnetSchema = z.strictObject({
  name: z.literal('dualnet'),
  /** Weight of each branch's own cross-entropy beside the fused one's, and of its logits in the weighted score. */
  auxiliaryWeight: z.number().nonnegative().default(0.3),
  /** `iterative`: the published phases, one after another. */
  schedule: z.enum(['joint', 'iterative']).default('joint'),
  /** Of `iterative`: the part of the epochs that each phase gets. Learning rates start anew with each. */
  phases: z
    .strictObject({
      /** The first network alone. */
      standard: z.number().nonnegative().default(0.4),
      /** The second one beside it, the first one fixed. */
      fine: z.number().nonnegative().default(0.4),
      /** Roles swapped: 0 in the authors' scripts. */
      coarse: z.number().nonnegative().default(0),
      /** All three classifiers, both networks fixed. */
      classifiers: z.number().nonnegative().default(0.2),
    })
    .prefault({}),
});

export const methodSchema = z.discriminatedUnion('name', [
  vanillaSchema,
  fflSchema,
  dmlSchema,
  oneSchema,
  dualnetSchema,
]);

type Method = z.infer<typeof methodSchema>;
export type MethodRecipe<Name extends Method['name']> = Extract<Method, { name: Name }>;
export type RampUp = z.infer<typeof rampUpSchema>;

/** What is wrong with a method for so many branches. */
export function methodProblems(method: Method, trunk: 'shared' | 'none', branches: number): string[] {
  const problems: string[] = [];
  if (method.name !== 'vanilla' && branches < 2) {
    problems.push(
      `method.name: ${method.name} needs at least 2 branches, here is ${branches}: add count: 2 to branches.0, or use vanilla`,
    );
  }
  if (method.name === 'dualnet') {
    if (branches > 2) problems.push(`method.name: dualnet takes 2 branches, here are ${branches}`);
    if (Object.values(method.phases).every((part) => part === 0)) problems.push('method.phases: at least one above 0');
  }
  if (method.name === 'one' && method.gateBlocks > 0 && trunk === 'none') {
    problems.push(
      'method.gateBlocks: blocks before the gate need a shared trunk: set trunk to shared, or gateBlocks to 0',
    );
  }
  if (method.name === 'dml' && method.update === 'alternate' && trunk === 'shared') {
    problems.push('method.update: networks that learn one after another cannot share a trunk: set trunk to none');
  }
  if (method.name === 'ffl' && method.fusion === null && method.ensembleToFused) {
    problems.push('method.ensembleToFused: there is no fused classifier to teach with fusion null: set it to false');
  }
  return problems;
}
