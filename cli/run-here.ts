/**
 * A run on this machine: a coordinator in this process and its workers beside it.
 *
 * Nothing is left behind, however it ends: workers end with their membership and with the channel to this process, and
 * whoever is last to know removes the folder of sockets.
 */
import { runCoordinator } from '../coordinator/run.ts';
import type { Summary } from '../coordinator/summary.ts';
import { createLog } from '../core/log.ts';
import { type Recipe, threadsOf, workersOf } from '../core/recipe.ts';
import type { Interrupts } from './interrupts.ts';
import { LocalWorkers } from './local-workers.ts';
import type { Progress } from './progress.ts';
import { tlsOf } from './trust.ts';

export interface RunHere {
  recipe: Recipe;
  runFolder: string;
  /** Go on from the run's newest checkpoint (true), or from the one of that name. */
  resume: boolean | string;
  interrupts: Pick<Interrupts, 'orderly' | 'atOnce'>;
  progress: Progress;
  /** Folder of --tls. */
  tls?: string | undefined;
  /** File of --trace. */
  trace?: string | undefined;
}

export async function runHere({
  recipe,
  runFolder,
  resume,
  interrupts,
  progress,
  tls,
  trace,
}: RunHere): Promise<Summary> {
  const log = createLog({
    format: 'human',
    level: 'warn',
    write: (line) => progress.print(line),
    now: () => new Date(),
  });
  const trust = tlsOf({ tls }, log);
  await using workers = new LocalWorkers({ count: workersOf(recipe), threads: threadsOf(recipe), tls });
  return await runCoordinator({
    recipe,
    listen: workers.coordinatorAddress,
    tls: trust,
    trace,
    runFolder,
    resume,
    signal: interrupts.orderly,
    // A worker that dies before it joins would only be missed when the time to join is over.
    hard: AbortSignal.any([interrupts.atOnce, workers.diedEarly]),
    onEvent: (event) => {
      if (event.kind === 'listening') workers.start(runFolder);
      if (event.kind === 'started') workers.joined();
      progress.show(event);
    },
    log,
  });
}
