/**
 * One set-up at a time for a folder. The lock is a socket in Linux's abstract namespace: the kernel lets go of it when
 * its owner dies, however it dies, so there is no stale lock to find out about, and no file to leave behind.
 */
import { createHash } from 'node:crypto';
import { connect, createServer } from 'node:net';
import { userInfo } from 'node:os';

/**
 * Runs `work` while nobody else runs theirs under the same name; waits for the one who does.
 * @template T
 * @param {string} name such as the folder's path
 * @param {{onWait: () => void, signal?: AbortSignal}} options onWait: called once, when there is somebody to wait for
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function exclusively(name, { onWait, signal }, work) {
  const address = `\0braid-${createHash('sha256').update(`${userInfo().uid}:${name}`).digest('hex').slice(0, 32)}`;
  let told = false;
  let server = await listen(address);
  while (server === undefined) {
    signal?.throwIfAborted();
    if (!told) onWait();
    told = true;
    await untilReleased(address, signal);
    server = await listen(address);
  }
  try {
    return await work();
  } finally {
    for (const waiter of server.waiters) waiter.destroy();
    server.close();
  }
}

/** @param {string} address @returns {Promise<{waiters: Set<import('node:net').Socket>, close(): void} | undefined>} undefined when taken */
function listen(address) {
  return new Promise((resolve, reject) => {
    const waiters = /** @type {Set<import('node:net').Socket>} */ (new Set());
    const server = createServer((waiter) => {
      waiters.add(waiter);
      waiter.on('close', () => waiters.delete(waiter)).on('error', () => {});
    });
    server.once('error', (error) => {
      if ('code' in error && error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    server.listen(address, () => resolve({ waiters, close: () => server.close() }));
  });
}

/** Resolves when the owner's end of a connection closes, which it does at the latest when the owner dies. @param {string} address @param {AbortSignal} [signal] */
function untilReleased(address, signal) {
  return new Promise((resolve) => {
    const socket = connect(address);
    const done = () => {
      signal?.removeEventListener('abort', done);
      socket.destroy();
      resolve(undefined);
    };
    socket.on('error', done).on('close', done).resume();
    signal?.addEventListener('abort', done);
    if (signal?.aborted) done();
  });
}
