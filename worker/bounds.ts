/** What a coordinator says is bounded and checked before it is believed, kept or given memory. */
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { isAddress } from '../proto/channel.ts';
import type { JoinResponse, PrepareRequest } from '../proto/messages.ts';

const MAX_WORKERS = 1024;
const MAX_RECIPE_CHARACTERS = 1 << 20;
const MAX_SIDE = 1 << 14; // pixels, as in input/shard.ts
const MAX_CHANNELS = 4;
const MAX_CLASSES = 1 << 20;
const MAX_SAMPLES = 1 << 20; // of a shard
const MAX_SIZES = 64; // of shards in one run: it has two or three
const MAX_RECORD_BYTES = 1 << 30;
/** Of a shard's images, decoded: far above any batch that a device takes. */
const MAX_IMAGES_BYTES = 2 ** 32;

const natural = z.number().int().nonnegative();
const positive = z.number().int().positive();
const rank = natural.max(MAX_WORKERS - 1);

const joinSchema = z.object({
  run: z.string().regex(/^[\w.-]{1,200}$/),
  secret: z.string().regex(/^[\w-]{16,200}$/),
});

const prepareSchema = z
  .object({
    recipe: z.string().max(MAX_RECIPE_CHARACTERS).refine(isJson, 'is not JSON'),
    rank,
    replica: rank,
    branch: rank.optional(),
    shardSizes: z.array(positive.max(MAX_SAMPLES)).min(1).max(MAX_SIZES),
    height: positive.max(MAX_SIDE),
    width: positive.max(MAX_SIDE),
    channels: positive.max(MAX_CHANNELS),
    classes: positive.max(MAX_CLASSES),
    recordBytes: positive.max(MAX_RECORD_BYTES),
    trainIndex: z.string().regex(/^([0-9a-f]{64})?$/),
    testIndex: z.string().regex(/^([0-9a-f]{64})?$/),
    exchangeAddresses: z.array(z.string().refine(isAddress, 'is not unix:/path or host:port')).min(1).max(MAX_WORKERS),
    groups: z.array(z.object({ segment: z.string().max(64), ranks: z.array(rank).max(MAX_WORKERS) })).max(MAX_SIZES),
  })
  .refine(({ rank, exchangeAddresses }) => rank < exchangeAddresses.length, { path: ['rank'], error: 'is nobody' })
  .refine(
    ({ height, width, channels, shardSizes }) =>
      height * width * channels * Math.max(...shardSizes) <= MAX_IMAGES_BYTES,
    { path: ['shardSizes'], error: `are of more than ${MAX_IMAGES_BYTES} bytes of images` },
  );

/** @throws BraidError PROTOCOL naming what no correct coordinator answers */
export function requireSoundMembership(response: JoinResponse): void {
  require(joinSchema, response, 'the answer to Join');
}

/** @throws BraidError PROTOCOL naming what no correct coordinator asks for */
export function requireSoundPrepare(request: PrepareRequest): void {
  require(prepareSchema, request, 'Prepare');
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function require(schema: z.ZodType, message: unknown, what: string): void {
  const { error } = schema.safeParse(message);
  if (error === undefined) return;
  const [issue] = error.issues;
  throw new BraidError('PROTOCOL', `${what} with an unsound ${issue!.path.join('.')}: ${issue!.message}`);
}
