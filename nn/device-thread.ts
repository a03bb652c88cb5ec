/** The thread behind nn/device.ts: captures the program, then runs phases as they are asked for. */
import { parentPort, workerData } from 'node:worker_threads';
import { asBraidError } from '../core/errors.ts';
import { availableBytes, type RunRequest, type ThreadMessage } from './device.ts';
import { Session } from './graph/session.ts';
import { outOfMemory, requireMemory } from './memory.ts';
import { buildProgram, type ProgramOptions } from './program.ts';

const port = parentPort!;

function send(message: ThreadMessage): void {
  const buffers = message.kind === 'result' ? Object.values(message.results).map(({ buffer }) => buffer) : [];
  port.postMessage(
    message,
    buffers.filter((buffer) => buffer instanceof ArrayBuffer),
  );
}

function sendFailure(thrown: unknown, id: number | null): void {
  const { code, message, remedy } = asBraidError(thrown, 'DEVICE');
  send({ kind: 'failure', id, code, message, remedy });
}

try {
  const options = workerData as ProgramOptions;
  const { graph, program } = buildProgram(options);
  requireMemory(graph, program, options, availableBytes());
  const session = new Session(graph);
  port.on('message', ({ id, phase, feeds, into }: RunRequest) => {
    try {
      const start = performance.now();
      const results = session.run(phase, feeds, into);
      const seconds = (performance.now() - start) / 1000;
      // What went into shared memory is there already.
      const fresh = Object.fromEntries(Object.entries(results).filter(([name]) => into[name] === undefined));
      send({ kind: 'result', id, results: fresh, seconds, tensors: session.tensors });
    } catch (thrown) {
      const { code, message } = asBraidError(thrown, 'DEVICE');
      const short = code === 'OUT_OF_MEMORY' ? outOfMemory(graph, program, options, availableBytes(), message) : thrown;
      sendFailure(short, id);
    }
  });
  send({ kind: 'ready', program });
} catch (thrown) {
  sendFailure(thrown, null);
}
