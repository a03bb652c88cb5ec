/** Samples that could not be decoded: where the recipe skips such, workers are asked for them. */
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
