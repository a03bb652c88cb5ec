/**
 * Times Braid's gradient exchange among processes of this machine, one a rank.
 *
 *     node bench/braid-allreduce.ts --workers 4 --transport unix --bytes 2000000,25000000
 *
 * A step: the gradient is copied from where a tensor's values would be into the exchange's memory, and summed. The sum is
 * read where it lies, as TensorFlow reads it. Speaks the protocol of stepper.ts, with `run N I` for N steps of the I-th
 * size; times are rank 0's, whom the others keep up with. Phase `processor`: what its threads worked for a step.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { on, once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { Exchange, type ExchangePlan } from '../worker/exchange/exchange.ts';
import type { Answer } from './stepper.ts';

const WARM_UP_STEPS = 5;

const { values } = parseArgs({
  options: {
    workers: { type: 'string', default: '2' },
    transport: { type: 'string', default: 'memory' },
    topology: { type: 'string', default: 'mesh' },
    wire: { type: 'string', default: 'f32' },
    bytes: { type: 'string', default: '25000000' },
  },
});
const topology = values.topology === 'ring' ? 'ring' : 'mesh';
const inPlace = values.transport === 'memory';
const wire = values.wire === 'bf16' ? 'bf16' : 'f32';

if (process.send === undefined) await lead();
else await follow();

/** Starts the ranks, and passes on what stdin asks for. */
async function lead(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'braid-allreduce-'));
  const ranks = Array.from({ length: Number(values.workers) }, () => fork(import.meta.filename, process.argv.slice(2)));
  ranks.forEach((child, rank) => {
    child.once('exit', (code) => {
      if (code === 0) return;
      process.stderr.write(`rank ${rank} ended with ${code}\n`);
      process.exit(1); // the others end with it
    });
  });
  try {
    const listen = (rank: number) => (values.transport === 'tcp' ? '127.0.0.1:0' : `unix:${join(folder, `${rank}`)}`);
    const addresses = (await ask(ranks, listen)) as string[];
    const lengths = values.bytes.split(',').map((bytes) => Number(bytes) / 4);
    const everyone = ranks.map((_, rank) => rank);
    const plan = (rank: number): ExchangePlan => ({
      ...{ run: 'bench', secret: 'of the bench', generation: 1, rank, addresses, wire },
      gradientLength: Math.max(...lengths),
      rounds: lengths.map((length) => [{ name: 'all', offset: 0, length, ranks: everyone, topology }]),
    });
    await ask(ranks, plan);
    for (const round of lengths.keys()) await ask(ranks, () => ({ steps: WARM_UP_STEPS, round }));
    process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
    for await (const line of createInterface(process.stdin)) {
      const [steps, round] = line.split(' ').slice(1).map(Number);
      const [answer] = await ask(ranks, () => ({ steps, round }));
      process.stdout.write(`${JSON.stringify(answer)}\n`);
    }
  } finally {
    for (const child of ranks) child.disconnect();
    rmSync(folder, { recursive: true });
  }
}

/** Says something to every rank. @returns their answers, by rank */
function ask(ranks: ChildProcess[], what: (rank: number) => string | object): Promise<unknown[]> {
  return Promise.all(
    ranks.map(async (child, rank) => {
      const answer = once(child, 'message');
      child.send(what(rank));
      return (await answer)[0];
    }),
  );
}

/** One rank: is told where to listen, then the plan, then how many steps of which round. */
async function follow(): Promise<void> {
  const never = new AbortController().signal;
  const messages: AsyncIterator<unknown[]> = on(process, 'message');
  process.once('disconnect', () => process.exit());
  const next = async <T>() => (await messages.next()).value[0] as T;

  const exchange = await Exchange.listen(await next<string>(), { inPlace });
  process.send!(exchange.address);
  const plan = await next<ExchangePlan>();
  await exchange.connect(plan, never);
  process.send!('connected');

  const tensor = new Float32Array(plan.gradientLength);
  const ranks = plan.addresses.length;
  for (let step = 0; ; ) {
    const { steps, round } = await next<{ steps: number; round: number }>();
    const { length } = plan.rounds[round]![0]!;
    const gradient = tensor.subarray(0, length);
    const answer = { seconds: [] as number[], phases: { processor: [] as number[] } } satisfies Answer;
    for (let n = 0; n < steps; n++) {
      gradient.fill(plan.rank + 1);
      const [start, before] = [performance.now(), process.cpuUsage()];
      exchange.gradient.set(gradient);
      await exchange.reduce(step++, round, never);
      const { user, system } = process.cpuUsage(before);
      answer.seconds.push((performance.now() - start) / 1000);
      answer.phases.processor.push((user + system) / 1e6);
    }
    const wrong = exchange.reduced.subarray(0, length).findIndex((value) => value !== (ranks * (ranks + 1)) / 2);
    if (wrong >= 0) throw new Error(`rank ${plan.rank} has ${exchange.reduced[wrong]} at ${wrong}`);
    process.send!(answer);
  }
}
