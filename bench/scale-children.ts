/** The processes of `scale`, and what they tell. All of them end with it; one that falls ends it. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import type { Scale } from './scale.ts';
import type { CoordinatorNews } from './scale-coordinator.ts';
import type { WorkersNews, WorkersRequest } from './scale-workers.ts';

type News = CoordinatorNews | WorkersNews;

const KEPT_OUTPUT_CHARS = 4000;

export class Children {
  private readonly scale: Scale;
  private readonly all: Child[] = [];
  /** Rejects when one of them fails. */
  private readonly fallen = Promise.withResolvers<never>();

  constructor(scale: Scale) {
    this.scale = scale;
    this.fallen.promise.catch(() => {}); // whoever waits for news hears of it
  }

  start(file: string): Child {
    const child = new Child(file, this.scale, this.fallen);
    this.all.push(child);
    return child;
  }

  /** What they have written, each once: warnings, mostly. */
  get complaints(): string[] {
    return [...new Set(this.all.map(({ output }) => output.trim()))].filter((output) => output !== '');
  }

  /** Ends them all: each does so when its channel closes. @throws BraidError INTERNAL when one fails */
  async end(): Promise<void> {
    const exits = this.all.map(({ child }) => once(child, 'exit')); // 'close' does not come after disconnect()
    for (const { child } of this.all) child.disconnect();
    await Promise.race([Promise.all(exits), this.fallen.promise]);
  }

  [Symbol.dispose](): void {
    for (const { child } of this.all) child.kill('SIGKILL');
  }
}

export class Child {
  readonly child: ChildProcess;
  /** The end of what it has written: nothing where all is well. */
  output = '';
  private readonly news: News[] = [];
  private readonly fallen: PromiseWithResolvers<never>;
  private more = Promise.withResolvers<void>();

  constructor(file: string, scale: Scale, fallen: PromiseWithResolvers<never>) {
    this.fallen = fallen;
    this.child = fork(join(import.meta.dirname, file), [JSON.stringify(scale)], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    for (const stream of [this.child.stdout!, this.child.stderr!]) {
      stream.on('data', (chunk) => {
        this.output = (this.output + chunk).slice(-KEPT_OUTPUT_CHARS);
      });
    }
    this.child.on('message', (news: News) => {
      this.news.push(news);
      this.more.resolve();
      this.more = Promise.withResolvers<void>();
    });
    this.child.on('close', (code, signal) => {
      if (code !== 0)
        fallen.reject(new BraidError('INTERNAL', `${file} ended with ${signal ?? code}:\n${this.output}`));
    });
  }

  get pid(): number {
    return this.child.pid!;
  }

  tell(request: WorkersRequest): void {
    this.child.send(request);
  }

  /** Waits for the next news of a kind, passing over what comes before. @throws BraidError INTERNAL when a process fails */
  async heard<Kind extends News['kind']>(
    kind: Kind,
    is: (news: Extract<News, { kind: Kind }>) => boolean = () => true,
  ): Promise<Extract<News, { kind: Kind }>> {
    for (;;) {
      const news = this.news.shift() as Extract<News, { kind: Kind }> | undefined;
      if (news?.kind === kind && is(news)) return news;
      if (news === undefined) await Promise.race([this.more.promise, this.fallen.promise]);
    }
  }
}
