/**
 * Times Braid's gradient exchange among processes of this machine, each a rank on a thread of its own.
 *
 *     node bench/braid-allreduce.ts --workers 4 --transport unix --bytes 2000000,25000000
 *
 * A step: the gradient is copied from a tensor's memory into the exchange's, reduced, and the sum copied back. The sizes
 * are rounds of one plan. Speaks the protocol of stepper.ts, with `run N ROUND`; times are rank 0's, whom the others keep up with.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { Exchange, type ExchangePlan } from '../worker/exchange/exchange.ts';

const WARM_UP_STEPS = 3;

const { values } = parseArgs({
  options: {
    workers: { type: 'string', default: '2' },
    topology: { type: 'string', default: 'mesh' },
    transport: { type: 'string', default: 'unix' },
    bytes: { type: 'string', default: '25000000' },
  },
});

if (process.send === undefined) await lead();
else await follow();

/** Starts the ranks, and passes on what stdin asks for. */
async function lead(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-allreduce-'));
  const ranks = Array.from({ length: Number(values.workers) }, () => fork(import.meta.filename, process.argv.slice(2)));
  try {
    const listen = (rank: number) => (values.transport === 'unix' ? `unix:${join(folder, `${rank}`)}` : '127.0.0.1:0');
    const addresses = (await ask(ranks, listen)) as string[];
    const lengths = values.bytes.split(',').map((bytes) => Number(bytes) / 4);
    const everyone = ranks.map((_, rank) => rank);
    await ask(
      ranks,
      (rank): ExchangePlan => ({
        ...{
          run: 'bench',
          secret: 'bench',
          generation: 1,
          rank,
          addresses,
          wire: 'f32',
          gradientLength: Math.max(...lengths),
        },
        rounds: lengths.map((length) => [
          { name: 'all', offset: 0, length, ranks: everyone, topology: values.topology as 'mesh' },
        ]),
      }),
    );
    for (const round of lengths.keys()) await ask(ranks, () => ({ steps: WARM_UP_STEPS, round }));
    process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
    for await (const line of createInterface(process.stdin)) {
      const [steps, round] = line.split(' ').slice(1).map(Number);
      const [seconds] = await ask(ranks, () => ({ steps, round }));
      process.stdout.write(`${JSON.stringify({ seconds })}\n`);
    }
  } finally {
    for (const rank of ranks) rank.disconnect();
    rmSync(folder, { recursive: true });
  }
}

/** Says something to every rank. @returns their answers */
function ask(ranks: ChildProcess[], say: (rank: number) => unknown): Promise<unknown[]> {
  return Promise.all(
    ranks.map(async (child, rank) => {
      const answer = Promise.race([
        once(child, 'message'),
        once(child, 'exit').then(() => Promise.reject(new Error(`rank ${rank} died`))),
      ]);
      child.send(say(rank) as object);
      return (await answer)[0];
    }),
  );
}

/** One rank: where to listen, then the plan, then how many steps of which round. */
async function follow(): Promise<void> {
  const never = new AbortController().signal;
  const messages = (async function* () {
    for (;;) yield (await once(process, 'message'))[0];
  })();
  process.once('disconnect', () => process.exit());
  const next = async <T>() => (await messages.next()).value as T;

  const exchange = await Exchange.listen(await next<string>());
  process.send!(exchange.address);
  const plan = await next<ExchangePlan>();
  await exchange.connect(plan, never);
  process.send!('connected');

  const tensor = new Float32Array(plan.gradientLength);
  const sum = (plan.addresses.length * (plan.addresses.length + 1)) / 2;
  for (let step = 0; ; ) {
    const { steps, round } = await next<{ steps: number; round: number }>();
    const { length } = plan.rounds[round]![0]!;
    const values = tensor.subarray(0, length);
    const seconds: number[] = [];
    for (let n = 0; n < steps; n++) {
      values.fill(plan.rank + 1);
      const start = performance.now();
      exchange.gradient.set(values);
      await exchange.reduce(step++, round, never);
      seconds.push((performance.now() - start) / 1000);
    }
    if (exchange.reduced.subarray(0, 999).some((value) => value !== sum))
      throw new Error(`rank ${plan.rank} has another sum than ${sum}`);
    process.send!(seconds);
  }
}
