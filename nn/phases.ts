/** The phases of nn/program.ts's graphs, by name: what a Device runs. */

type Training = 'compute' | 'trunkBackward' | 'forward' | 'backward' | 'fuse';
type OfRound<Name extends string> = Name | `${Name}.${number}`;

export type Phase =
  | `${OfRound<Training>}@${number}`
  | `${OfRound<Training>}@${number}+1`
  | OfRound<'clear' | 'gradient' | 'apply'>
  | 'forwardTest'
  | 'evaluate'
  | 'read'
  | 'write';

/** Micro-batches of which a worker has computed forward and not backward: one can be ahead while another is away. */
export const SLOTS = 2;

/**
 * A training phase in a round, for `samples`: "compute@64", in the second round "compute.1@64".
 * @param slot of micro-batches: what forward keeps for backward is kept once a slot, "forward@64+1" in the second
 */
export function trainingPhase<Name extends Training>(name: Name, round: number, samples: number, slot = 0) {
  const phase = `${ofRound(name, round)}@${samples}` as const;
  return slot === 0 ? phase : (`${phase}+1` as const);
}

/** Before the first micro-batch of a round: what has been added up is zero again. */
export function clearPhase(round: number): OfRound<'clear'> {
  return ofRound('clear', round);
}

/** After the last micro-batch of a round: the sum of their gradients. */
export function gradientPhase(round: number): OfRound<'gradient'> {
  return ofRound('gradient', round);
}

/** The phase that applies a round's gradient. */
export function applyPhase(round: number): OfRound<'apply'> {
  return ofRound('apply', round);
}

/** A part of the flat gradient. */
export interface Segment {
  name: 'all' | 'upper' | 'trunk' | 'branch' | 'method';
  /** f32 elements. */
  offset: number;
  length: number;
}

/** Those of a replica, in the order in which backward has them: `upper` is all that is not a trunk's. */
export function replicaSegments({ overlap }: { overlap: boolean }) {
  return overlap ? (['upper', 'trunk'] as const) : (['all'] as const);
}

/** Whether trunks have a backward phase of their own, during which the first segment is summed. */
export function isOverlapped(segments: Segment[]): boolean {
  return segments[0]?.name === 'upper' && segments.length > 1;
}

function ofRound<Name extends string>(name: Name, round: number): OfRound<Name> {
  return round === 0 ? name : `${name}.${round}`;
}
