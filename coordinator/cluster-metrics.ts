/** What the coordinator's metrics tell of its members: looked at when they are scraped, so that training pays nothing. */
import { sampled } from '../core/instruments.ts';
import { type Metrics, SILENT_MEMBERS, type Stat } from '../core/metrics.ts';
import type { StatusResponse } from '../proto/messages.ts';
import type { Generations } from './generations.ts';
import type { Member, Membership } from './membership.ts';
import type { Meter } from './meter.ts';

export interface ClusterMetricsOptions {
  membership: Membership;
  generations: Generations;
  meter: Meter;
  heartbeatSeconds: number;
}

export function tellOfMembers(metrics: Metrics, options: ClusterMetricsOptions): void {
  const { membership, generations, meter, heartbeatSeconds } = options;
  const silence = ({ seenAt }: Member) => meter.now() - seenAt;
  sampled(metrics.longestSilence, () => Math.max(0, ...membership.here.map(silence)));
  sampled(metrics.silence, () =>
    membership.here
      .map((member) => ({ member, seconds: silence(member) }))
      .filter(({ seconds }) => seconds > 2 * heartbeatSeconds) // the time between two, and that for an answer
      .sort((a, b) => b.seconds - a.seconds)
      .slice(0, SILENT_MEMBERS)
      .map(({ member: { id, joined }, seconds }) => [{ member: `${id}`, host: joined.host }, seconds] as const),
  );
  sampled(metrics.members, () => {
    const { here, leaving, waiting } = membership;
    return [
      [{ state: 'training' }, here.length - leaving.length - waiting.length],
      [{ state: 'waiting' }, waiting.length],
      [{ state: 'leaving' }, leaving.length],
    ];
  });
  const told = (value: (status: StatusResponse) => number) => () =>
    stats(membership.here.flatMap(({ status }) => (status === null ? [] : [value(status)])));
  sampled(
    metrics.memberResident,
    told(({ residentBytes }) => residentBytes),
  );
  sampled(
    metrics.memberReadyShards,
    told(({ readyShards }) => readyShards),
  );
  sampled(
    metrics.memberLag,
    told(({ eventLoopLagSeconds }) => eventLoopLagSeconds),
  );
  sampled(metrics.memberPhaseSeconds, () =>
    [...generations.latestSeconds].flatMap(([phase, seconds]) =>
      stats(seconds).map(([{ stat }, value]) => [{ phase, stat }, value] as const),
    ),
  );
  sampled(metrics.calls, () => meter.calls);
  sampled(metrics.shardStreams, () => meter.shardStreams);
}

function stats(values: number[]): (readonly [{ stat: Stat }, number])[] {
  if (values.length === 0) return [];
  const sorted = values.toSorted((a, b) => a - b);
  return [
    [{ stat: 'min' }, sorted[0]!],
    [{ stat: 'median' }, sorted[Math.floor(sorted.length / 2)]!],
    [{ stat: 'max' }, sorted.at(-1)!],
  ];
}
