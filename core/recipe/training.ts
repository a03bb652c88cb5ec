/** How a network learns. */
import { z } from 'zod';
import { MAX_LOSS_SCALE } from '../loss-scale.ts';
import { positiveInt } from './numbers.ts';

/** Workers take these of a coordinator: far above what helps, and nothing that a machine could not bear. */
export const MAX_BATCH = 1 << 20;
const MAX_MICRO_BATCHES = 1024;

export const trainingSchema = z.strictObject({
  epochs: positiveInt.default(300),
  /** Stop after this many steps, whatever the epoch; null: after the last epoch. */
  maxSteps: positiveInt.nullable().default(null),
  /** Global batch: it is sharded over the replicas. */
  batch: positiveInt.max(MAX_BATCH).default(128),
  /** A replica computes its shard in so many pieces, one after another, for one update: a fraction of the memory. */
  microBatches: positiveInt.max(MAX_MICRO_BATCHES).default(1),
  learningRate: z.number().positive().default(0.1),
  /** The linear scaling rule (Goyal et al. 2017): `learningRate` is for a batch of so many, here times batch / this; null: as it is. */
  referenceBatch: positiveInt.nullable().default(null),
  /** The learning rate grows over the first epochs, linearly from step to step, from `startFactor` times its value. */
  warmUp: z
    .strictObject({ epochs: z.number().nonnegative().default(0), startFactor: z.number().min(0).max(1).default(0.1) })
    .prefault({}),
  /** `milestones`: in steps. `cosine`: half a cosine from the end of the warm-up to 0, from step to step. */
  schedule: z.enum(['milestones', 'cosine']).default('milestones'),
  /** 0-based epochs from which the learning rate is multiplied by `gamma` once more. */
  milestones: z.array(positiveInt).default([150, 225]),
  gamma: z.number().positive().default(0.1),
  momentum: z.number().min(0).max(1).default(0.9),
  nesterov: z.boolean().default(true),
  /** Coupled L2 on the weights of the networks. */
  weightDecay: z.number().nonnegative().default(1e-4),
  /** The same for batch norms and biases; null: as all other weights, as in the methods' papers. */
  normWeightDecay: z.number().nonnegative().nullable().default(null),
  /** The same for all of FFL's fusion module. */
  fusionWeightDecay: z.number().nonnegative().default(1e-5),
  /** Of every cross-entropy in training, as PyTorch defines it: so much of the target is spread evenly over all classes. */
  labelSmoothing: z.number().min(0).lt(1).default(0),
  /** Beside the weights, an average of them: e = decay e + (1 - decay) w after every update, from the first weights on. */
  ema: z
    .strictObject({
      decay: z.number().gt(0).lt(1).default(0.9999),
      /** Every classifier is evaluated twice, the averages' as `ema.<name>`; or by the averages alone. */
      evaluate: z.enum(['beside', 'instead']).default('beside'),
    })
    .nullable()
    .default(null),
  /** Stages whose activations are computed anew in backward in place of being kept, by name; true: all of them. */
  recompute: z.union([z.boolean(), z.array(z.string())]).default(false),
  /** `bf16` and `f16`: convolutions and activations in 16 bits, weights, statistics and losses in f32. */
  precision: z.enum(['f32', 'bf16', 'f16']).default('f32'),
  /** Of f16: what losses are multiplied by before they are differentiated (core/loss-scale.ts). */
  lossScale: z
    .strictObject({
      initial: z
        .number()
        .min(1)
        .max(MAX_LOSS_SCALE)
        .refine((scale) => Number.isInteger(Math.log2(scale)), 'must be a power of two')
        .default(65536),
      /** It is doubled after so many updates in a row whose gradients do not overflow. */
      growthInterval: positiveInt.default(2000),
    })
    .prefault({}),
  /** A loss or gradient that is NaN or infinite ends the run, or its step is left out and counted. */
  nonFinite: z.enum(['stop', 'skip']).default('stop'),
  /** A .safetensors file with the first weights, PyTorch names and layouts; null: drawn from the seed. */
  initialWeights: z.string().nullable().default(null),
});
