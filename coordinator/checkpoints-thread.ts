/** The thread behind checkpoints-writer.ts: lays out, encodes, hashes and writes one checkpoint after another. */
import { parentPort, workerData } from 'node:worker_threads';
import { asBraidError } from '../core/errors.ts';
import { type StateTensors, toTensors } from '../nn/variables.ts';
import { writeCheckpoint } from './checkpoints.ts';
import { openStore } from './checkpoints-store.ts';
import type { ThreadAnswer, ThreadRequest, WriterOptions } from './checkpoints-writer.ts';
import type { FlatState } from './group.ts';

const ATTEMPTS = 8; // a minute or so of an outage costs nothing: training goes on meanwhile

const { place, keeping } = workerData as Pick<WriterOptions, 'place' | 'keeping'>;
const port = parentPort!;

port.on('message', async ({ facts, states }: ThreadRequest) => {
  let answer: ThreadAnswer;
  try {
    const store = await openStore(place, ATTEMPTS);
    answer = { kind: 'written', written: await writeCheckpoint(store, facts, wholeOf(states), keeping) };
  } catch (thrown) {
    const { code, message, remedy } = asBraidError(thrown);
    answer = { kind: 'failure', code, message, remedy };
  }
  port.postMessage(answer);
});

function wholeOf(states: FlatState[]): StateTensors {
  const parts = states.map(({ variables, state }) => toTensors(variables, state));
  return {
    weights: new Map(parts.flatMap(({ weights }) => [...weights])),
    momenta: new Map(parts.flatMap(({ momenta }) => [...momenta])),
    averages: new Map(parts.flatMap(({ averages }) => [...averages])),
  };
}
