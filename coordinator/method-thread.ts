/** The thread behind method-link.ts: one share of the method, called by message. */
import { availableParallelism } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { asBraidError, BraidError } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { following, onSpan, within } from '../core/spans.ts';
import { Device } from '../nn/device.ts';
import { Tls } from '../proto/tls.ts';
import type { LinkAnswer, LinkRequest, ThreadOptions } from './method-link.ts';
import { MethodShare } from './method-share.ts';

const port = parentPort!;
const send = (answer: LinkAnswer) => port.postMessage(answer);
const { branches, index, secret, tlsFolder, ...options } = workerData as ThreadOptions;

function sendFailure(thrown: unknown, id: number | null): void {
  const { code, message, remedy, details } = asBraidError(thrown);
  send({ kind: 'failure', id, code, message, remedy, details: { ...details } });
}

async function open(): Promise<MethodShare> {
  // It computes while the workers wait for it, so it may have every core; all shares of the process have them together.
  const device = await Device.open({ ...options, role: { kind: 'method' }, threads: availableParallelism() });
  const tls = tlsFolder === null ? null : new Tls(tlsFolder, silentLog); // the process's own says what there is to say
  return new MethodShare(device, branches, { secret, tls });
}

try {
  const share = await open();
  const underWay = new Map<number, AbortController>();
  const attributes = { thread: `method ${index}` };
  let traced = false;
  port.on('message', async (message: LinkRequest) => {
    if (message.kind === 'cancel') {
      underWay.get(message.id)?.abort(new BraidError('CANCELLED', 'the call was given up'));
      return;
    }
    const { id, name, request, timeoutMs, traceparent } = message;
    if (traceparent !== null && !traced) {
      traced = true;
      onSpan((span) => send({ kind: 'span', span }));
    }
    const ending = new AbortController();
    underWay.set(id, ending);
    try {
      const call = { signal: ending.signal, ...(timeoutMs !== undefined && { timeoutMs }) };
      const work = () => within<unknown>(name, () => share[name](request as never, call), { attributes });
      send({ kind: 'answer', id, answer: await following(() => traceparent ?? undefined, work) });
    } catch (thrown) {
      sendFailure(thrown, id);
    } finally {
      underWay.delete(id);
    }
  });
  send({ kind: 'ready', program: share.program });
} catch (thrown) {
  sendFailure(thrown, null);
}
