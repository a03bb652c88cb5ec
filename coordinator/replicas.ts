/** Replicas must be bitwise identical: they start from the same bytes and apply the same sums. */
import { BraidError } from '../core/errors.ts';

/**
 * @param what is compared, for the message: "state", "trunk"
 * @param who holds it, and is numbered by rank
 * @throws BraidError REPLICAS_DIVERGED naming the ranks on each side
 */
export function requireIdentical(
  hashes: { rank: number; sha256: Uint8Array }[],
  what: string,
  step: number,
  who = 'workers',
): void {
  const sides = new Map<string, number[]>();
  for (const { rank, sha256 } of hashes) {
    const key = Buffer.from(sha256).toString('hex');
    sides.set(key, [...(sides.get(key) ?? []), rank]);
  }
  if (sides.size <= 1) return;
  const ranks = [...sides.values()].map((side) => side.join(', '));
  throw new BraidError(
    'REPLICAS_DIVERGED',
    `after ${step} steps the ${what} differs between ${who} that must be identical: ${ranks.join(' | ')}`,
    {
      remedy: 'Go on from the last checkpoint with --resume. If it happens again, test the memory of these machines.',
      details: { step, sides: Object.fromEntries(sides) },
    },
  );
}
