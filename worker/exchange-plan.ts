/** The exchange of one generation, as Prepare plans it for the segments of the program. */
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import type { Program } from '../nn/device.ts';
import type { PrepareRequest, ReductionGroup } from '../proto/messages.ts';
import type { ExchangePlan } from './exchange/exchange.ts';

/** @throws BraidError PROTOCOL where the plan has no ranks for a segment of the program, or a topology that is not known */
export function exchangePlan(
  request: PrepareRequest,
  program: Program,
  { wire }: Recipe['cluster'],
): Omit<ExchangePlan, 'secret'> {
  const { run, generation, rank, exchangeAddresses: addresses, groups } = request;
  const groupOf = new Map(groups.map(({ segment, ranks, topology }) => [segment, { ranks, topology }]));
  const rounds = program.rounds.map(({ segments }) =>
    segments.map((segment) => {
      const group = groupOf.get(segment.name);
      if (group !== undefined) return { ...segment, ranks: group.ranks, topology: topologyOf(group.topology) };
      const planned = [...groupOf.keys()].join();
      throw new BraidError('PROTOCOL', `the plan sums the segments ${planned}, the program has ${segment.name}`);
    }),
  );
  const gradientLength = Math.max(...program.rounds.map((round) => round.gradientLength));
  return { run, generation, rank, addresses, gradientLength, rounds, wire };
}

function topologyOf(topology: ReductionGroup['topology']): 'mesh' | 'ring' {
  if (topology === 'TOPOLOGY_MESH') return 'mesh';
  if (topology === 'TOPOLOGY_RING') return 'ring';
  throw new BraidError('PROTOCOL', `the plan sums over an unknown topology, ${topology}`);
}
