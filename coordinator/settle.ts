/** What is left of an update when a member goes while it is being committed. */
import type { CommitRequest, Position } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Seat } from './membership.ts';
import type { Decision } from './plan.ts';

export function commitOf({
  round,
  learningRate,
  last,
  skip,
  next,
}: Decision): Omit<CommitRequest, 'run' | 'generation' | 'step'> {
  return { round, learningRate, last, skip, ...next };
}

export function isAt(held: Position | null, at: Position): boolean {
  return held !== null && held.step === at.step && held.round === at.round;
}

/**
 * Asks everyone who is left for the commit, again where they have done it: all had reduced before it was decided. One that
 * fails is filled by another in the next generation.
 * @returns who has it now
 */
export async function settleOn(crew: Crew, update: Decision, signal: AbortSignal): Promise<Seat[]> {
  const { step } = update;
  const answers = crew.members.map(async (member) => {
    await crew.one(member, 'settle', step, signal, ({ worker }, call) =>
      worker.commit({ ...crew.stamp(step), ...commitOf(update) }, call),
    );
    return member;
  });
  const settled = await Promise.allSettled(answers);
  return settled.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
}
