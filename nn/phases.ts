/** The phases of nn/program.ts's graphs, by name: what a Device runs. */

type Training = 'compute' | 'forward' | 'backward' | 'fuse';
type OfRound<Name extends string> = Name | `${Name}.${number}`;

export type Phase = `${OfRound<Training>}@${number}` | OfRound<'apply'> | 'forwardTest' | 'evaluate' | 'read' | 'write';

/** A training phase in a round, for a shard of `samples`: "compute@64", in the second round "compute.1@64". */
export function trainingPhase<Name extends Training>(name: Name, round: number, samples: number) {
  return `${ofRound(name, round)}@${samples}` as const;
}

/** The phase that applies a round's gradient. */
export function applyPhase(round: number): OfRound<'apply'> {
  return ofRound('apply', round);
}

function ofRound<Name extends string>(name: Name, round: number): OfRound<Name> {
  return round === 0 ? name : `${name}.${round}`;
}
