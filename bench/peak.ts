/**
 * Prints the multiply-adds a second of a large matrix product in the captured graph: what this machine's threads can do.
 *
 *     node bench/peak.ts --precision bf16 --threads 2
 */
import { parseArgs } from 'node:util';
import type { Precision } from './contenders.ts';

const SIZE = 1024;
const PRODUCTS = 16; // a run
const RUNS = 12;

const { values } = parseArgs({ options: { precision: { type: 'string' }, threads: { type: 'string' } } });
const precision = values.precision as Precision;
process.env['TF_NUM_INTRAOP_THREADS'] = values.threads;
process.env['TF_CPP_MIN_LOG_LEVEL'] ??= '2';
const { capture } = await import('../nn/graph/capture.ts'); // reads the environment
const { cast } = await import('../nn/graph/ops.ts');
const { Session } = await import('../nn/graph/session.ts');
const { tf } = await import('../nn/tensorflow.ts');

const graph = capture((c) => {
  c.phase('multiply', () => {
    const fed = cast(c.feed('x', [SIZE, SIZE]), 'f32', precision);
    let x = fed;
    for (let i = 0; i < PRODUCTS; i++)
      x = tf.matMul(x as ReturnType<typeof tf.tensor2d>, fed as typeof x & { rank: '2' });
    return { y: tf.sum(cast(x, precision, 'f32')) };
  });
});
const session = new Session(graph);
const x = new Float32Array(SIZE * SIZE).fill(1 / SIZE);
let best = Number.POSITIVE_INFINITY;
for (let run = 0; run < RUNS; run++) {
  const start = performance.now();
  session.run('multiply', { x });
  best = Math.min(best, (performance.now() - start) / 1000);
}
session.close();
process.stdout.write(`${(PRODUCTS * SIZE ** 3) / best}\n`);
