/** What a worker says is bounded and checked before it is believed, kept or given memory. */
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { MAX_LOSS_SCALE } from '../core/loss-scale.ts';
import { alignedLength } from '../core/shared-buffer.ts';
import type { VariableSpec } from '../nn/variables.ts';
import { isAddress, isUnix } from '../proto/channel.ts';
import type { JoinRequest, PrepareResponse } from '../proto/messages.ts';

/** Characters of a text that a worker gives of itself: host names have at most 253. */
const MAX_TEXT = 255;
/** Generations are counted up from 1. */
const MAX_GENERATION = 2 ** 40;
/** f32 elements of a state, momenta and averages included: far above any network of Braid's. */
const MAX_STATE_LENGTH = 2 ** 30;
/** f32 elements of a branch's outputs on one shard. */
const MAX_OUTPUT_LENGTH = 2 ** 28;
const MAX_VARIABLES = 20_000;
/** Rounds, classifiers, loss terms: each becomes a series of the metrics. */
const MAX_NAMES = 64;

const text = z
  .string()
  .max(MAX_TEXT)
  .regex(/^\P{Cc}*$/u, 'has control characters');
const natural = z.number().int().nonnegative();
const name = z.string().regex(/^[\w.@-]{1,100}$/);

/** @param unix whether the coordinator listens on a unix socket: only then its workers are beside it, and may name one */
const joinSchema = (unix: boolean) => {
  const address = z
    .string()
    .max(MAX_TEXT)
    .refine(isAddress, 'is not unix:/path or host:port')
    .refine((value) => unix || !isUnix(value), 'is a path on the machine of the coordinator');
  return z.object({
    version: text,
    address,
    exchangeAddress: address,
    host: text,
    device: text,
    generation: natural.max(MAX_GENERATION),
  });
};

const localJoinSchema = joinSchema(true);
const remoteJoinSchema = joinSchema(false);

const variableSchema: z.ZodType<VariableSpec> = z.strictObject({
  name: z.string().regex(/^[\w.-]{1,200}$/),
  shape: z.array(natural.positive()).max(4),
  kind: z.enum(['conv', 'depthwise', 'linear', 'vector', 'running_mean', 'running_var']),
  trainable: z.boolean(),
  segment: z.enum(['trunk', 'branch', 'method']),
  initialiser: z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('normal'), std: z.number() }),
    z.strictObject({ kind: z.literal('uniform'), bound: z.number() }),
    z.strictObject({ kind: z.literal('constant'), value: z.number() }),
  ]),
  offset: natural,
  size: natural.positive(),
  momentumOffset: z.number().int().min(-1),
  averageOffset: natural.optional(),
});

const programSchema = z.object({
  variables: z.array(variableSchema).max(MAX_VARIABLES),
  stateLength: natural.max(MAX_STATE_LENGTH),
  rounds: z
    .array(
      z.object({
        gradientLength: natural,
        segments: z.array(name).max(MAX_NAMES),
        losses: z.array(name).max(MAX_NAMES),
      }),
    )
    .min(1)
    .max(MAX_NAMES),
  classifiers: z.array(name).max(MAX_NAMES),
  outputLengths: z.array(natural.max(MAX_OUTPUT_LENGTH)).max(MAX_NAMES),
  held: z
    .object({ step: natural, round: natural, lossScale: natural.min(1).max(MAX_LOSS_SCALE), goodUpdates: natural })
    .optional(),
});

/** @throws BraidError PROTOCOL naming what no correct worker says of itself */
export function requireSoundJoin(request: JoinRequest, { unix }: { unix: boolean }): void {
  const { error } = (unix ? localJoinSchema : remoteJoinSchema).safeParse(request);
  if (error !== undefined) throw unsound('Join', error);
}

/**
 * The variables of a program that a worker has built: each of the size that its shape has, one after another.
 * @throws BraidError PROTOCOL
 */
export function soundVariables(response: PrepareResponse): VariableSpec[] {
  let variables: unknown;
  try {
    variables = JSON.parse(response.variables);
  } catch (cause) {
    throw new BraidError('PROTOCOL', 'its variables are not JSON', { cause });
  }
  const parsed = programSchema.safeParse({ ...response, variables });
  if (!parsed.success) throw unsound('a program', parsed.error);
  const { stateLength, rounds } = response;
  let end = 0;
  const next = (v: VariableSpec, offset: number) => {
    if (offset !== end) throw new BraidError('PROTOCOL', `its ${v.name} lies at ${offset} of its state, not at ${end}`);
    end += alignedLength(v.size);
  };
  for (const v of parsed.data.variables) {
    const size = v.shape.reduce((product, side) => product * side, 1);
    if (size !== v.size) throw new BraidError('PROTOCOL', `its ${v.name} [${v.shape}] has ${v.size} elements`);
    next(v, v.offset);
  }
  for (const v of parsed.data.variables) if (v.trainable) next(v, v.momentumOffset);
  for (const v of parsed.data.variables) if (v.averageOffset !== undefined) next(v, v.averageOffset);
  if (end !== stateLength) {
    throw new BraidError('PROTOCOL', `its variables do not add up to its state of ${stateLength} elements`);
  }
  for (const { gradientLength } of rounds) {
    if (gradientLength > stateLength) throw new BraidError('PROTOCOL', `a gradient of ${gradientLength} elements`);
  }
  return parsed.data.variables;
}

function unsound(what: string, { issues }: z.ZodError): BraidError {
  const [issue] = issues;
  return new BraidError('PROTOCOL', `${what} with an unsound ${issue!.path.join('.')}: ${issue!.message}`);
}
