/** Threads that work on whole image files, for what goes through a data set once: checking it, packing it. */
import { availableParallelism } from 'node:os';
import { Piscina } from 'piscina';
import { Turnstile } from '../../input/turnstile.ts';
import type { CheckTask, ShrinkTask, Shrunk } from './image-task.ts';

const FILES_A_THREAD = 4; // under way: threads never wait, and memory stays bounded

export class ImagePool {
  private readonly threads = availableParallelism();
  private readonly piscina = new Piscina({
    filename: new URL('./image-task.ts', import.meta.url).href,
    minThreads: this.threads,
    maxThreads: this.threads,
  });
  private readonly turns = new Turnstile(FILES_A_THREAD * this.threads);

  /**
   * Waits for a turn, then reads and works: so what is in memory is bounded, however many are asked for.
   * @returns what is wrong with the file, or null
   */
  check(read: () => Promise<Uint8Array>, image: CheckTask['image']): Promise<string | null> {
    return this.turns.pass(async () =>
      this.piscina.run({ file: await read(), image } satisfies CheckTask, { name: 'check' }),
    );
  }

  /** The same, for a file that is made smaller. */
  shrink(read: () => Promise<Uint8Array>, options: Omit<ShrinkTask, 'file'>): Promise<Shrunk> {
    return this.turns.pass(async () =>
      this.piscina.run({ file: await read(), ...options } satisfies ShrinkTask, { name: 'shrink' }),
    );
  }

  async close(): Promise<void> {
    await this.piscina.close();
  }
}
