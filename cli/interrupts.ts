/**
 * Requests to end this process, whoever sends them. One press of Ctrl-C can arrive three times: from the terminal to
 * every process of the group, forwarded by npm, and forwarded by bin/braid.mjs over its channel. Those are one press.
 */
import { BraidError } from '../core/errors.ts';

const PRESS_MS = 250; // copies of one press arrive within a few ms; nobody presses twice as fast

/** What of `process` is listened to. */
export interface InterruptSource {
  on(event: string, listener: (...args: unknown[]) => void): unknown;
  /** The channel to bin/braid.mjs; absent when main.ts was started by itself. */
  channel?: { unref(): void } | null | undefined;
}

export class Interrupts {
  /** Aborted (CANCELLED) at the first request, and when the process that started this one is gone: end in good order. */
  readonly orderly: AbortSignal;
  /** Aborted at the second request: end at once. */
  readonly atOnce: AbortSignal;
  readonly #controllers = [new AbortController(), new AbortController()] as const;
  readonly #now: () => number;
  /** When the latest request came, or -Infinity. */
  #latest = Number.NEGATIVE_INFINITY;

  /** @param now milliseconds, never going back */
  constructor(source: InterruptSource, now: () => number) {
    this.#now = now;
    this.orderly = this.#controllers[0].signal;
    this.atOnce = this.#controllers[1].signal;
    for (const event of EVENTS) source.on(event, this.#onEvent);
    // Listening for messages alone must not keep the process alive.
    source.channel?.unref();
  }

  readonly #onEvent = (what: unknown): void => {
    const now = this.#now();
    const samePress = now - this.#latest < PRESS_MS;
    if (samePress) return;
    this.#latest = now;
    const controller = this.orderly.aborted ? this.#controllers[1] : this.#controllers[0];
    const said = typeof what === 'string' ? what : signalOf(what);
    controller.abort(
      new BraidError('CANCELLED', said === undefined ? 'the braid command was killed' : `stopped by ${said}`, {
        details: { signal: said },
      }),
    );
  };
}

const EVENTS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'message', 'disconnect'];

/** The signal that bin/braid.mjs passes on; undefined for the end of its channel. */
function signalOf(message: unknown): string | undefined {
  if (typeof message !== 'object' || message === null || !('signal' in message)) return undefined;
  return String(message.signal);
}
