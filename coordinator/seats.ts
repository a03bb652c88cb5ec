/** Who sits where in the next generation: whoever has state keeps its place, so that ranks sum in the same order as before. */
import type { Member, Seat } from './membership.ts';

export interface Seating {
  /** Workers of one replica: 1 in `together`, the branches in `split`. */
  unit: number;
  /** Replicas, at most. */
  most: number;
}

/**
 * @param before the seats of the generation before
 * @returns members by rank, as many whole replicas as there are members for; rank r * unit + b is branch b of replica r
 */
export function seatsFor(here: Member[], before: Seat[], { unit, most }: Seating): Member[] {
  const ranks = unit * Math.min(most, Math.floor(here.length / unit));
  const seats: (Member | undefined)[] = Array.from({ length: ranks });
  const standing = new Map(here.map((member) => [member.id, member]));
  const sit = (rank: number, member: Member) => {
    seats[rank] = member;
    standing.delete(member.id);
  };
  for (const { id, rank } of before) {
    const member = standing.get(id);
    if (member !== undefined && rank < ranks) sit(rank, member);
  }
  // A place of the same branch keeps a member's state, too.
  for (const { id, rank } of before) {
    const member = standing.get(id);
    const free = seats.findIndex((seat, other) => seat === undefined && other % unit === rank % unit);
    if (member !== undefined && free >= 0) sit(free, member);
  }
  const rest = standing.values();
  return Array.from(seats, (seat) => seat ?? rest.next().value!);
}
