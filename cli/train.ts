/**
 * braid train: a coordinator in this process and its workers beside it, on this machine.
 *
 * Nothing is left behind, however it ends: workers end with their membership and with the channel to this process, and
 * whoever is last to know removes the folder of sockets.
 */

import { runCoordinator } from '../coordinator/run.ts';
import { createLog } from '../core/log.ts';
import { threadsOf, workersOf } from '../core/recipe.ts';
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { LocalWorkers } from './local-workers.ts';
import { parse, recipeOf, SET } from './options.ts';
import { Progress } from './progress.ts';
import { resultTable } from './result-table.ts';
import { chooseRunFolder } from './run-folders.ts';

const USAGE = 'braid train <recipe.yaml> [--resume] [--runs <folder>] [--set path=value ...]';

const OPTIONS = {
  ...SET,
  /** Go on from the newest checkpoint of the newest run of that name. */
  resume: { type: 'boolean', default: false },
  runs: { type: 'string', default: 'runs' },
} as const;

export async function train(argv: string[], { orderly, atOnce }: Interrupts): Promise<number> {
  const { values, positionals } = parse('train', argv, OPTIONS, USAGE);
  const recipe = recipeOf('train', positionals, values.set, USAGE);
  await bringData(recipe, orderly);
  const runFolder = chooseRunFolder(values.runs, recipe.name, values.resume);
  const progress = new Progress(process.stdout, () => performance.now() / 1000);
  const log = createLog({
    format: 'human',
    level: 'warn',
    write: (line) => progress.print(line),
    now: () => new Date(),
  });

  await using workers = new LocalWorkers({ count: workersOf(recipe), threads: threadsOf(recipe) });
  const summary = await runCoordinator({
    recipe,
    listen: workers.coordinatorAddress,
    runFolder,
    resume: values.resume,
    signal: orderly,
    // A worker that dies before it joins would only be missed when the time to join is over.
    hard: AbortSignal.any([atOnce, workers.diedEarly]),
    onEvent: (event) => {
      if (event.kind === 'listening') workers.start(runFolder);
      if (event.kind === 'started') workers.joined();
      progress.show(event);
    },
    log,
  });
  process.stdout.write(resultTable(summary));
  return 0;
}
