/** Child of `scale`: many workers whose computing is empty, each with a server and connections of its own. */
import type { StatusResponse } from '../proto/messages.ts';
import { type FakeExchange, FakeWorker } from '../rig/fake-worker.ts';
import { type Scale, scaleRecipe } from './scale.ts';

/** What the parent asks for ... */
export type WorkersRequest =
  | { kind: 'join'; coordinator: string; count: number }
  | { kind: 'work' }
  | { kind: 'beats' };
/** ... and what it hears: `ready` once; `beats`, the signs of life that have been asked for. */
export type WorkersNews = { kind: 'ready' } | { kind: 'beats'; beats: number };

let beats = 0;
const work = Promise.withResolvers<void>();
const nothing: FakeExchange = { sum: async (_key, _rank, _ranks, values) => values };

/** Computes nothing, as soon as it may, and reads no images. */
class IdleWorker extends FakeWorker {
  override async status(): Promise<StatusResponse> {
    beats++;
    return await super.status();
  }

  override async compute() {
    await work.promise;
    return { losses: [1, 1] };
  }
}

const scale = JSON.parse(process.argv[2]!) as Scale;
const recipe = scaleRecipe(scale);
const workers: FakeWorker[] = [];
const tell = (news: WorkersNews) => void process.send!(news);

process.on('message', async (request: WorkersRequest) => {
  if (request.kind === 'beats') tell({ kind: 'beats', beats });
  if (request.kind === 'work') work.resolve();
  if (request.kind === 'join') {
    for (let i = 0; i < request.count; i++) workers.push(new IdleWorker(recipe, nothing, { push() {} }));
    await Promise.all(workers.map((worker) => worker.join(request.coordinator)));
  }
});
process.on('disconnect', () => process.exit());
tell({ kind: 'ready' });
