/** Tells every worker what it is, and checks that they agree on what they built. */
import { BraidError } from '../core/errors.ts';
import type { Dataset } from '../input/dataset.ts';
import type { VariableSpec } from '../nn/variables.ts';
import type { PrepareRequest, PrepareResponse, ReductionGroup, Topology } from '../proto/messages.ts';
import { soundVariables } from './bounds.ts';
import type { Crew } from './crew.ts';
import type { Plan } from './plan.ts';

/** What distinguishes one worker's Prepare from another's. */
export interface Assignment extends Pick<PrepareRequest, 'replica' | 'branch'> {
  groups: Omit<ReductionGroup, 'topology'>[];
}

export interface Prepared extends Omit<PrepareResponse, 'variables'> {
  variables: VariableSpec[];
}

/** How long a worker that has joined may take to be reached. */
const CONNECT_TIMEOUT_MS = 15_000;
/**
 * With more ranks a segment is summed round a ring: no slower, and each rank has two sockets instead of two a peer, and no
 * windows. Up to here a mesh takes 0.7 to 0.8 of a ring's time for 2 MB, where a ring waits for its legs; at 25 MB they are
 * equal from 6 ranks to 24.
 */
const MESH_RANKS = 16;

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
  const indexFor = ({ indexHash }: Dataset) => (plan.recipe.data.send === 'ids' ? indexHash! : '');
  const common = {
    run,
    generation,
    recipe: JSON.stringify(plan.recipe),
    shardSizes: plan.shardSizes,
    ...plan.image,
    classes: plan.classes,
    recordBytes: Math.max(plan.train.recordBytes, plan.test.recordBytes),
    trainIndex: indexFor(plan.train),
    testIndex: indexFor(plan.test),
    exchangeAddresses: crew.members.map(({ joined }) => joined.exchangeAddress),
  };
  return crew.each('prepare', step, signal, async ({ rank, worker }, call) => {
    await worker.ready({ signal: call.signal, timeoutMs: CONNECT_TIMEOUT_MS });
    const assignment = assign(rank);
    const groups = assignment.groups.map((group) => ({ ...group, topology: topologyOf(group.ranks.length) }));
    const response = await worker.prepare({ ...common, rank, ...assignment, groups }, call);
    return { ...response, variables: soundVariables(response) };
  });
}

export function topologyOf(ranks: number): Topology {
  return ranks <= MESH_RANKS ? 'TOPOLOGY_MESH' : 'TOPOLOGY_RING';
}

/** @throws BraidError VERSION_MISMATCH when two workers of the same role built different programs */
export function requireSameProgram(a: Prepared, b: Prepared, ranks: [number, number]): void {
  const built = ({ variables, rounds, classifiers, outputLengths }: Prepared) =>
    JSON.stringify([variables, rounds, classifiers, outputLengths]);
  if (built(a) === built(b)) return;
  throw new BraidError(
    'VERSION_MISMATCH',
    `workers ${ranks[0]} and ${ranks[1]} built different programs for one role`,
    {
      remedy: 'Install the same version of Braid and TensorFlow on all machines.',
    },
  );
}
