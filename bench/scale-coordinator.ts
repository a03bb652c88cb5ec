/** Child of `scale`: a whole coordinator, whose data set is in no files. Tells its parent how far it is. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCoordinator } from '../coordinator/run.ts';
import { BraidError } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { fakeDataset } from '../rig/fake-dataset.ts';
import { type Scale, scaleRecipe } from './scale.ts';

/** What the parent hears, in this order; `steps`: how many have been committed. */
export type CoordinatorNews =
  | { kind: 'listening'; address: string }
  | { kind: 'all joined' }
  | { kind: 'prepared' }
  | { kind: 'steps'; steps: number };

const scale = JSON.parse(process.argv[2]!) as Scale;
const folder = mkdtempSync(join(tmpdir(), 'braid-bench-'));
const tell = (news: CoordinatorNews) => void process.send!(news);
const ENDED = new BraidError('CANCELLED', 'all is measured');
const over = new AbortController();
process.on('disconnect', () => over.abort(ENDED));
try {
  await runCoordinator(
    {
      recipe: scaleRecipe(scale),
      listen: '127.0.0.1:0',
      runFolder: join(folder, 'run'),
      resume: false,
      signal: over.signal,
      hard: over.signal,
      log: silentLog,
      onEvent: (event) => {
        if (event.kind === 'listening') tell({ kind: 'listening', address: event.address });
        if (event.kind === 'joined' && event.joined === scale.members) tell({ kind: 'all joined' });
        if (event.kind === 'started') tell({ kind: 'prepared' });
        if (event.kind === 'step') tell({ kind: 'steps', steps: event.progress.step + 1 });
      },
    },
    {
      openDataset: async (_, split) =>
        fakeDataset(split, split === 'train' ? 2 * scale.members * scale.steps : scale.members),
      openShares: () => Promise.reject(new Error('no method runs in `together`')),
      now: () => performance.now() / 1000,
      nameRun: () => 'scale',
    },
  );
} catch (thrown) {
  if (!over.signal.aborted) throw thrown;
} finally {
  rmSync(folder, { recursive: true });
}
