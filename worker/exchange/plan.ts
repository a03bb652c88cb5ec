/** A generation's exchange, as the coordinator planned it: who sums what, with whom, and how. */
import { BraidError } from '../../core/errors.ts';
import type { Dtype } from './frame.ts';

/** How a segment's ranks sum it: each with each (mesh.ts), or round a ring (ring.ts). */
export type Topology = 'mesh' | 'ring';

export interface Segment {
  name: string;
  /** f32 elements into the gradient. */
  offset: number;
  length: number;
  /** Who sums it: ascending, this worker among them. */
  ranks: number[];
  topology: Topology;
}

export interface ExchangePlan {
  run: string;
  /** What every hello of the run shows. */
  secret: string;
  generation: number;
  rank: number;
  /** By rank. */
  addresses: string[];
  /** f32 elements: the longest round's. */
  gradientLength: number;
  /** What travels: bf16 is half the bytes, rounded to the nearest. Sums are f32 in between. */
  wire: Dtype;
  /** The most elements in one frame; default: CHUNK_ELEMENTS. */
  chunkElements?: number;
  /** A round's gradient is its segments, one after another from 0. */
  rounds: Segment[][];
}

export interface Peers {
  /** Ranks that this one receives from. */
  sources: Set<number>;
  /** Ranks that this one sends to. */
  targets: Set<number>;
  /** Ranks that may send before their turn has come. */
  windows: Set<number>;
}

export function peersOf({ rank, rounds }: ExchangePlan): Peers {
  const peers = { sources: new Set<number>(), targets: new Set<number>(), windows: new Set<number>() };
  for (const { ranks, topology } of rounds.flat()) {
    if (ranks.length === 1) continue;
    if (topology === 'ring') {
      const { before, after } = neighboursOf(ranks, rank);
      peers.sources.add(before);
      peers.targets.add(after);
    } else {
      for (const other of ranks) {
        if (other !== rank) for (const set of Object.values(peers)) set.add(other);
      }
    }
  }
  return peers;
}

/** Whom a rank receives from and sends to in a ring. */
export function neighboursOf(ranks: number[], rank: number): { before: number; after: number } {
  const i = ranks.indexOf(rank);
  return { before: ranks.at(i - 1)!, after: ranks[(i + 1) % ranks.length]! };
}

/** @throws BraidError PROTOCOL: peers would wait for one another, or add past the gradient's end */
export function requireSound(plan: ExchangePlan): void {
  const lengths = plan.rounds.map((segments) => lengthOf(segments, plan));
  const longest = Math.max(...lengths);
  if (longest !== plan.gradientLength) {
    throw new BraidError('PROTOCOL', `the segments cover ${longest} of the gradient's ${plan.gradientLength} elements`);
  }
}

function lengthOf(segments: Segment[], { rank, addresses }: ExchangePlan): number {
  let end = 0;
  for (const { name, offset, length, ranks } of segments) {
    const ascending = ranks.every((r, i) => Number.isInteger(r) && (i === 0 || r > ranks[i - 1]!));
    const problem = !ascending
      ? 'are not ascending'
      : !ranks.includes(rank)
        ? `lack rank ${rank}, which has it`
        : ranks[0]! < 0 || ranks.at(-1)! >= addresses.length
          ? `go past the ${addresses.length} workers`
          : null;
    if (problem !== null) throw new BraidError('PROTOCOL', `the ranks [${ranks}] of segment ${name} ${problem}`);
    if (offset !== end)
      throw new BraidError('PROTOCOL', `segment ${name} begins at ${offset}, the one before ends at ${end}`);
    end += length;
  }
  return end;
}
