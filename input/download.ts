/** A file over HTTP, resumed where it was left. */
import { type FileHandle, open, rm } from 'node:fs/promises';

const CONNECT_TIMEOUT_MS = 8_000; // to the first header: an unreachable source must not hold up the next one
const STALL_TIMEOUT_MS = 30_000; // without a byte

export interface DownloadOptions {
  signal: AbortSignal;
  /** @param total bytes of the whole file, null where the server does not say */
  progress(done: number, total: number | null): void;
}

/**
 * Appends to `file` what is missing of `url` (an HTTP Range), or writes it anew where the server knows no ranges. Whether
 * the old and the new bytes fit together is for the caller's hash to tell.
 * @throws Error saying what went wrong, for people; what arrived stays in `file` for the next try
 */
export async function download(url: string, file: string, { signal, progress }: DownloadOptions): Promise<void> {
  const watchdog = new Watchdog(signal);
  const handle = await open(file, 'a');
  try {
    watchdog.expect(CONNECT_TIMEOUT_MS, 'no answer');
    let done = (await handle.stat()).size;
    let response = await request(url, done, watchdog.signal);
    if (response.status === 416 || (response.status === 206 && !continues(response, done))) {
      await response.body?.cancel();
      done = 0; // a range beyond the end, or another one than asked for: from the beginning
      response = await request(url, done, watchdog.signal);
    }
    if (!response.ok || response.body === null) {
      await response.body?.cancel();
      throw new Error(`the server answers ${response.status} ${response.statusText}`.trimEnd());
    }
    if (response.status !== 206) done = 0;
    await handle.truncate(done);
    const length = response.headers.get('content-length');
    const total = length === null ? null : done + Number(length);
    for await (const chunk of response.body) {
      watchdog.expect(STALL_TIMEOUT_MS, 'no byte');
      await append(handle, chunk);
      done += chunk.length;
      progress(done, total);
    }
    if (total !== null && done !== total) throw new Error(`it ended after ${done} of ${total} bytes`);
  } catch (error) {
    signal.throwIfAborted();
    throw watchdog.expired ?? withReason(error);
  } finally {
    watchdog.end();
    const { size } = await handle.stat();
    await handle.close();
    if (size === 0) await rm(file, { force: true });
  }
}

function request(url: string, from: number, signal: AbortSignal): Promise<Response> {
  // `identity`: a .gz must arrive as it is, not inflated on the way
  const headers = { 'accept-encoding': 'identity', ...(from > 0 ? { range: `bytes=${from}-` } : {}) };
  return fetch(url, { headers, signal });
}

function continues(response: Response, done: number): boolean {
  return response.headers.get('content-range')?.startsWith(`bytes ${done}-`) === true;
}

async function append(handle: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
}

/** fetch says "fetch failed" and hides why in `cause`. */
function withReason(error: unknown): Error {
  const { cause } = error as Error;
  return cause instanceof Error ? new Error(cause.message || String(cause), { cause: error }) : (error as Error);
}

/** Aborts `signal` when what was expected does not come in time, or when the caller gives up. */
class Watchdog {
  readonly signal: AbortSignal;
  /** Why, once it has aborted. */
  expired: Error | null = null;
  private readonly controller = new AbortController();
  private timer: NodeJS.Timeout | undefined;

  constructor(caller: AbortSignal) {
    this.signal = AbortSignal.any([caller, this.controller.signal]);
  }

  expect(withinMs: number, otherwise: string): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.expired = new Error(`${otherwise} within ${withinMs / 1000} s`);
      this.controller.abort(this.expired);
    }, withinMs);
  }

  end(): void {
    clearTimeout(this.timer);
  }
}
