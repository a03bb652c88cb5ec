/** A sample that cannot be decoded is left out: another one of its shard stands in for it, the same one on every branch. */

/**
 * @param bad places in a shard of `samples`, each the place of a sample that cannot be used
 * @returns for each of them the next place, going round, whose sample can; empty when there is none
 */
export function standIns(bad: number[], samples: number): Map<number, number> {
  const left = new Set(bad);
  if (left.size >= samples) return new Map();
  return new Map(
    bad.map((place) => {
      let other = place;
      do other = (other + 1) % samples;
      while (left.has(other));
      return [place, other];
    }),
  );
}
