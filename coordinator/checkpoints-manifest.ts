/** What a checkpoint is called, what is in it, and what its manifest says of it. */
import { z } from 'zod';
import { BraidError } from '../core/errors.ts';
import { MAX_LOSS_SCALE } from '../core/loss-scale.ts';

/** Of the layout. A reader refuses another one. */
const FORMAT = 1;

export const MANIFEST = 'manifest.json';
export const MODEL = 'model.safetensors';
export const OPTIMIZER = 'optimizer.safetensors';
export const AVERAGES = 'ema.safetensors';
export const MANIFEST_LIMIT_BYTES = 1 << 20; // a recipe and two hashes are a few KiB: a longer one is another file

const NAME = /^step-(\d{8,15})$/; // 15 digits are exact in a JavaScript number
const STEP_DIGITS = 8; // names sort as their steps do

const manifestSchema = z.object({
  format: z.literal(FORMAT),
  /** Braid's version. */
  braid: z.string(),
  run: z.string(),
  /** Steps committed, and the epoch that the next step belongs to. */
  step: z.number().int().nonnegative(),
  epoch: z.number().int().nonnegative(),
  /** What a network must equal to take these weights, and a run to go on from this step: plan.ts. */
  network: z.record(z.string(), z.unknown()),
  sampling: z.record(z.string(), z.unknown()),
  /** Where the loss scale of f16 stands. */
  lossScale: z
    .object({ lossScale: z.number().min(1).max(MAX_LOSS_SCALE), goodUpdates: z.number().int().nonnegative() })
    .optional(),
  recipe: z.unknown(),
  /** Those of the same checkpoint, by name: never a path that leads elsewhere. */
  files: z.record(
    z.string().regex(/^\w[\w-]*(\.\w+)+$/),
    z.object({ bytes: z.number().int().nonnegative(), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  ),
});

export type Manifest = z.infer<typeof manifestSchema>;
export type CheckpointFacts = Pick<
  Manifest,
  'run' | 'step' | 'epoch' | 'network' | 'sampling' | 'lossScale' | 'recipe'
>;

/** `step-00000120`: the state after 120 steps. */
export function checkpointName(step: number): string {
  return `step-${String(step).padStart(STEP_DIGITS, '0')}`;
}

/** @returns null when it is no checkpoint's name */
export function stepOf(name: string): number | null {
  const digits = NAME.exec(name)?.[1];
  return digits === undefined ? null : Number(digits);
}

export function encodeManifest(braid: string, facts: CheckpointFacts, files: Manifest['files']): Uint8Array {
  const manifest: Manifest = { format: FORMAT, braid, ...facts, files };
  return Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`);
}

/**
 * @param file for errors   @param name of the checkpoint that it lies in
 * @throws BraidError INVALID_CHECKPOINT when it is damaged, of another version, or of another checkpoint
 */
export function decodeManifest(bytes: Uint8Array, file: string, name: string): Manifest {
  let json: { format?: unknown } | null;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw damaged(file, 'not JSON');
  }
  if (typeof json?.format === 'number' && json.format !== FORMAT) {
    throw new BraidError('INVALID_CHECKPOINT', `${file} has format ${json.format}, this version reads ${FORMAT}`, {
      remedy: 'Use the version of Braid that wrote it.',
    });
  }
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) throw damaged(file, z.prettifyError(parsed.error));
  if (parsed.data.step !== stepOf(name)) throw damaged(file, `it is of step ${parsed.data.step}`);
  return parsed.data;
}

/** @throws BraidError INVALID_CHECKPOINT naming every difference: "branches.0.depth is 32 there and 20 here" */
export function requireEqual(
  there: Record<string, unknown>,
  here: Record<string, unknown>,
  what: string,
  remedy: string,
): void {
  const differences = differencesOf(there, here, '');
  if (differences.length === 0) return;
  throw new BraidError('INVALID_CHECKPOINT', `${what}: ${differences.join('; ')}`, { remedy });
}

export function damaged(file: string, what: string): BraidError {
  return new BraidError('INVALID_CHECKPOINT', `${file} is damaged: ${what}`, {
    remedy: 'Bring an undamaged copy, or use another checkpoint.',
  });
}

function differencesOf(there: unknown, here: unknown, path: string): string[] {
  if (typeof there === 'object' && typeof here === 'object' && there !== null && here !== null) {
    const keys = new Set([...Object.keys(there), ...Object.keys(here)]);
    return [...keys].flatMap((key) =>
      differencesOf(
        (there as Record<string, unknown>)[key],
        (here as Record<string, unknown>)[key],
        path === '' ? key : `${path}.${key}`,
      ),
    );
  }
  if (there === here) return [];
  return [`${path} is ${JSON.stringify(there) ?? 'absent'} there and ${JSON.stringify(here) ?? 'absent'} here`];
}
