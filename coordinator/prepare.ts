/** Tells every worker what it is, and checks that they agree on what they built. */
import { BraidError } from '../core/errors.ts';
import { stateLength, type VariableSpec } from '../nn/variables.ts';
import type { PrepareRequest, PrepareResponse } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Plan } from './plan.ts';

/** What distinguishes one worker's Prepare from another's. */
export type Assignment = Pick<PrepareRequest, 'replica' | 'branch' | 'groups'>;

export interface Prepared extends Omit<PrepareResponse, 'variables'> {
  variables: VariableSpec[];
}

/** How long a worker that has joined may take to be reached. */
const CONNECT_TIMEOUT_MS = 15_000;

/**
 * @param assign by rank
 * @returns by rank
 * @throws BraidError what a worker failed with, naming it
 */
export function prepare(
  crew: Crew,
  plan: Plan,
  step: number,
  signal: AbortSignal,
  assign: (rank: number) => Assignment,
): Promise<Prepared[]> {
  const { run, generation } = crew.stamp(step);
  const common = {
    run,
    generation,
    recipe: JSON.stringify(plan.recipe),
    shardSizes: plan.shardSizes,
    ...plan.image,
    classes: plan.classes,
    exchangeAddresses: crew.members.map(({ joined }) => joined.exchangeAddress),
  };
  return crew.each('prepare', step, signal, async ({ rank, worker }, call) => {
    await worker.ready({ signal: call.signal, timeoutMs: CONNECT_TIMEOUT_MS });
    const response = await worker.prepare({ ...common, rank, ...assign(rank) }, call);
    const prepared = { ...response, variables: JSON.parse(response.variables) as VariableSpec[] };
    if (stateLength(prepared.variables) !== response.stateLength) {
      throw new BraidError('PROTOCOL', `its variables do not add up to its state of ${response.stateLength} elements`);
    }
    return prepared;
  });
}

/** @throws BraidError VERSION_MISMATCH when two workers of the same role built different programs */
export function requireSameProgram(a: Prepared, b: Prepared, ranks: [number, number]): void {
  if (JSON.stringify(a) === JSON.stringify(b)) return;
  throw new BraidError(
    'VERSION_MISMATCH',
    `workers ${ranks[0]} and ${ranks[1]} built different programs for one role`,
    {
      remedy: 'Install the same version of Braid and TensorFlow on all machines.',
    },
  );
}
