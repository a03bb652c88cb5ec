/** Samples that could not be decoded: where the recipe skips such, workers are asked for them. */
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import { standIns } from '../core/stand-ins.ts';
import type { BadSample } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Seat } from './membership.ts';

/** @returns by member: what it left out of its shard of the step */
export async function inspectShards(
  crew: Crew,
  { data }: Pick<Recipe, 'data'>,
  step: number,
  signal: AbortSignal,
  members: readonly Seat[] = crew.members,
): Promise<BadSample[][]> {
  if (data.onBadSample === 'fail') return [];
  return crew.each(
    'inspect',
    step,
    signal,
    async ({ worker }, call) => (await worker.inspect(crew.stamp(step), call)).badSamples,
    members,
  );
}

/** The labels of a shard, as its workers have them: those of the stand-ins. @param labels i32[n] */
export function labelsWith(bad: BadSample[], labels: Int32Array): Int32Array {
  const seen = labels.slice();
  const places = bad.map(({ place }) => place);
  for (const [place, other] of standIns(places, labels.length)) seen[place] = labels[other]!;
  return seen;
}

type Told = [rank: number, bad: BadSample[]];

/** @throws BraidError INVALID_DATA naming a sample that one of two branches left out of a shard, and the other did not */
export function requireSameBad([a, badA]: Told, [b, badB]: Told, step: number): void {
  const missing = (bad: BadSample[], other: BadSample[]) =>
    bad.find(({ place }) => !other.some((o) => o.place === place));
  const [onlyA, onlyB] = [missing(badA, badB), missing(badB, badA)];
  const only = onlyA ?? onlyB;
  if (only === undefined) return;
  const [cannot, can] = only === onlyA ? [a, b] : [b, a];
  throw new BraidError(
    'INVALID_DATA',
    `worker ${cannot} cannot read sample ${only.sample} of step ${step}, and worker ${can} can: found ${only.reason}`,
    { remedy: 'Let all workers read the same data set, or set data.send to bytes.' },
  );
}
