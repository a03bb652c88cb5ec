/** Waiting on Node's streams, as grpc-js hands them out. */
import type { Writable } from 'node:stream';

/**
 * Sends a message, and returns when the stream will take another.
 * @throws the signal's reason when it aborts: grpc-js never drains a stream whose call has ended
 */
export async function write(stream: Writable, message: unknown, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  if (stream.write(message)) return;
  await new Promise<void>((resolve, reject) => {
    const settle = () => {
      stream.off('drain', settle);
      signal.removeEventListener('abort', settle);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    stream.on('drain', settle);
    signal.addEventListener('abort', settle);
  });
}
