/** A data set's files on an HTTP server, read by ranges. */
import { setTimeout } from 'node:timers/promises';
import { BraidError } from '../core/errors.ts';
import type { Store, StoredObject } from './store.ts';
import { Turnstile } from './turnstile.ts';

const REQUESTS_AT_ONCE = 32;
const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 200; // doubled with each attempt
const TIMEOUT_MS = 60_000;

export class HttpStore implements Store {
  readonly where: string;
  private readonly turns = new Turnstile(REQUESTS_AT_ONCE);

  constructor(where: string) {
    this.where = where;
  }

  async list(): Promise<StoredObject[]> {
    throw new BraidError('INVALID_DATA', `${this.where}: an HTTP server does not say which files it has`, {
      remedy: 'Name them: https://host/train-{00000..01023}.tar.',
    });
  }

  stat(names: string[]): Promise<StoredObject[]> {
    return Promise.all(
      names.map(async (name) => {
        const { headers } = await this.request(name, { method: 'HEAD' }, async (response) => response);
        const size = headers.get('content-length');
        if (size === null) throw this.unusable(name, 'an answer without a Content-Length');
        return { name, size: Number(size), tag: headers.get('etag') ?? headers.get('last-modified') };
      }),
    );
  }

  read(name: string, offset: number, length: number): Promise<Uint8Array> {
    if (length === 0) return Promise.resolve(new Uint8Array(0));
    const range = `bytes=${offset}-${offset + length - 1}`;
    return this.request(name, { headers: { range } }, async (response) => {
      if (response.status !== 206) {
        await response.body?.cancel();
        throw this.unusable(name, 'an answer with the whole file, where a range was asked for');
      }
      const bytes = new Uint8Array(await response.arrayBuffer());
      if (bytes.length !== length) throw new Error(`${bytes.length} bytes came, not ${length}`);
      return bytes;
    });
  }

  close(): void {}

  /** Tries again what may go better then: connections that break, servers that are busy. */
  private request<T>(name: string, init: RequestInit, take: (response: Response) => Promise<T>): Promise<T> {
    return this.turns.pass(async () => {
      for (let attempt = 1; ; attempt++) {
        try {
          const response = await fetch(this.urlOf(name), { ...init, signal: AbortSignal.timeout(TIMEOUT_MS) });
          if (response.ok) return await take(response);
          await response.body?.cancel();
          const passing = response.status >= 500 || response.status === 429 || response.status === 408;
          if (!passing) throw this.unusable(name, `status ${response.status}`);
          throw new Error(`status ${response.status}`);
        } catch (thrown) {
          if (thrown instanceof BraidError) throw thrown;
          const { message, cause } = thrown as Error & { cause?: Error };
          if (attempt === ATTEMPTS) throw this.unusable(name, cause?.message ?? message, thrown);
          await setTimeout(FIRST_PAUSE_MS * 2 ** (attempt - 1));
        }
      }
    });
  }

  private urlOf(name: string): string {
    return `${this.where}/${name.split('/').map(encodeURIComponent).join('/')}`;
  }

  private unusable(name: string, found: string, cause?: unknown): BraidError {
    return new BraidError(
      'INVALID_DATA',
      `${this.urlOf(name)}: found ${found}, expected a file that is read by ranges`,
      {
        remedy: 'Check the address, the server and the network.',
        ...(cause !== undefined && { cause }),
      },
    );
  }
}
