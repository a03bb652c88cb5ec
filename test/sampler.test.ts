import test from 'ava';
import fc from 'fast-check';
import { BraidError } from '../core/errors.ts';
import { batchOf, distinctShardSizes, shardBounds, shardSizes, stepsPerEpoch } from '../core/sampler.ts';

const sizes = fc.record({
  samples: fc.integer({ min: 1, max: 400 }),
  batch: fc.integer({ min: 1, max: 64 }),
  seed: fc.nat(0xffffffff),
  shuffle: fc.boolean(),
});

test('an epoch visits every sample exactly once', (t) => {
  fc.assert(
    fc.property(sizes, fc.nat(5), (options, epoch) => {
      const steps = stepsPerEpoch(options.samples, options.batch);
      const seen: number[] = [];
      for (let index = 0; index < steps; index++) {
        const batch = batchOf(epoch * steps + index, options);
        t.is(batch.epoch, epoch);
        t.is(batch.index, index);
        seen.push(...batch.sampleIds);
      }
      t.deepEqual(
        seen.sort((a, b) => a - b),
        Array.from({ length: options.samples }, (_, i) => i),
      );
    }),
  );
});

test('a step has the same batch whichever steps were asked for before', (t) => {
  fc.assert(
    fc.property(sizes, fc.array(fc.nat(100), { minLength: 1, maxLength: 20 }), (options, steps) => {
      const ascending = new Map([...steps].sort((a, b) => a - b).map((s) => [s, batchOf(s, options)]));
      for (const step of steps) t.deepEqual(batchOf(step, options), ascending.get(step));
    }),
  );
});

test('what a caller does to its sample ids changes no later batch', (t) => {
  const options = { samples: 10, batch: 4, seed: 1, shuffle: true };
  const before = batchOf(0, options).sampleIds.slice();
  batchOf(0, options).sampleIds.fill(0);
  t.deepEqual(batchOf(0, options).sampleIds, before);
});

test('the order changes with the epoch and with the seed, and not without shuffle', (t) => {
  const order = (seed: number, epoch: number, shuffle = true) => [
    ...batchOf(epoch, { samples: 100, batch: 100, seed, shuffle }).sampleIds,
  ];
  t.notDeepEqual(order(1, 0), order(1, 1));
  t.notDeepEqual(order(1, 0), order(2, 0));
  t.deepEqual(
    order(1, 3, false),
    Array.from({ length: 100 }, (_, i) => i),
  );
});

test('every sample is equally likely in every place', (t) => {
  const counts = new Map<string, number>();
  for (let seed = 0; seed < 6000; seed++) {
    const order = batchOf(0, { samples: 3, batch: 3, seed, shuffle: true }).sampleIds.join('');
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  t.is(counts.size, 6);
  for (const [order, count] of counts) t.true(Math.abs(count - 1000) < 130, `${order}: ${count}`);
});

test('shards cover the batch, differ by at most one, larger first', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 500 }), fc.integer({ min: 1, max: 32 }), (samples, replicas) => {
      fc.pre(samples >= replicas);
      const shards = shardSizes(samples, replicas);
      t.is(shards.length, replicas);
      t.is(
        shards.reduce((a, b) => a + b),
        samples,
      );
      t.true(shards[0]! - shards.at(-1)! <= 1);
      t.deepEqual(
        shards,
        [...shards].sort((a, b) => b - a),
      );
      let end = 0;
      for (const [replica, size] of shards.entries()) {
        t.deepEqual(shardBounds(samples, replicas, replica), [end, end + size]);
        end += size;
      }
    }),
  );
  t.throws(() => shardSizes(3, 4), { code: 'INVALID_RECIPE', message: /3 samples .* 4 replicas/ });
});

test('distinctShardSizes names exactly the sizes that the steps of an epoch produce', (t) => {
  fc.assert(
    fc.property(sizes, fc.integer({ min: 1, max: 6 }), (options, replicas) => {
      const steps = stepsPerEpoch(options.samples, options.batch);
      const lengths = Array.from({ length: steps }, (_, step) => batchOf(step, options).sampleIds.length);
      fc.pre(lengths.every((n) => n >= replicas));
      const produced = new Set(lengths.flatMap((n) => shardSizes(n, replicas)));
      t.deepEqual(
        distinctShardSizes(options.samples, options.batch, replicas),
        [...produced].sort((a, b) => b - a),
      );
    }),
  );
});

test('a last batch with fewer samples than replicas is refused with the sizes and a batch that works', (t) => {
  const error = t.throws(() => distinctShardSizes(50_049, 128, 4), { instanceOf: BraidError });
  t.is(error.code, 'INVALID_RECIPE');
  t.is(error.message, '50049 samples in batches of 128 leave a last batch of 1, fewer than the 4 replicas');
  t.is(error.remedy, 'Set training.batch to 124, or use fewer replicas (cluster.replicas).');
  t.deepEqual(distinctShardSizes(50_049, 124, 4), [31, 20, 19]);
  t.throws(() => distinctShardSizes(2, 128, 4), { message: /2 samples .* last batch of 2, fewer than the 4 replicas/ });
});
