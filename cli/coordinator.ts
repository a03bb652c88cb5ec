/** braid coordinator: a recipe's coordinator alone. Its workers are started elsewhere: `braid worker --coordinator ...`. */

import { runCoordinator } from '../coordinator/run.ts';
import { createLog } from '../core/log.ts';
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { parse, recipeOf, SET } from './options.ts';
import { Progress } from './progress.ts';
import { resultTable } from './result-table.ts';
import { chooseRunFolder } from './run-folders.ts';

const USAGE =
  'braid coordinator <recipe.yaml> [--listen <host:port>] [--insecure] [--resume] [--runs <folder>] [--set path=value ...]';

const OPTIONS = {
  ...SET,
  listen: { type: 'string', default: '127.0.0.1:7070' },
  /** Listen where other machines can connect, unencrypted. */
  insecure: { type: 'boolean', default: false },
  resume: { type: 'boolean', default: false },
  runs: { type: 'string', default: 'runs' },
} as const;

export async function coordinator(argv: string[], { orderly, atOnce }: Interrupts): Promise<number> {
  const { values, positionals } = parse('coordinator', argv, OPTIONS, USAGE);
  const recipe = recipeOf('coordinator', positionals, values.set, USAGE);
  await bringData(recipe, orderly);
  const progress = new Progress(process.stdout, () => performance.now() / 1000);
  const summary = await runCoordinator({
    recipe,
    listen: values.listen,
    insecure: values.insecure,
    runFolder: chooseRunFolder(values.runs, recipe.name, values.resume),
    resume: values.resume,
    signal: orderly,
    hard: atOnce,
    onEvent: (event) => progress.show(event),
    log: createLog({ format: 'human', level: 'warn', write: (line) => progress.print(line), now: () => new Date() }),
  });
  process.stdout.write(resultTable(summary));
  return 0;
}
