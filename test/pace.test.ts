/** Who is slow, by what calls took. */
import test from 'ava';
import type { Seat } from '../coordinator/membership.ts';
import { Pace } from '../coordinator/pace.ts';

/** So many calls, of so many seconds by rank. */
function call(pace: Pace, times: number, ...seconds: number[]): void {
  for (let i = 0; i < times; i++) {
    const answers = seconds.map((taken, rank) => ({ seat: { id: rank, rank } as Seat, seconds: taken }));
    pace.called('compute', answers);
  }
}

test('a member that takes far longer than the others is named once there are calls enough, and no longer than that', (t) => {
  const pace = new Pace(60_000);
  call(pace, 7, 0.1, 0.1, 0.5);
  t.is(pace.straggler('compute'), null);
  call(pace, 1, 0.1, 0.1, 0.5);
  t.like(pace.straggler('compute'), { seat: { rank: 2 }, phase: 'compute', seconds: 0.5, others: 0.1 });
  call(pace, 32, 0.1, 0.1, 0.1);
  t.is(pace.straggler('compute'), null);
});

test('a member that has gone is no straggler', (t) => {
  const pace = new Pace(60_000);
  call(pace, 8, 0.1, 0.1, 0.5);
  call(pace, 1, 0.1, 0.1);
  t.is(pace.straggler('compute'), null);
  call(pace, 1, 0.1);
  t.is(pace.straggler('compute'), null);
});
