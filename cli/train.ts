/** braid train: one run on this machine. */
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { parse, recipeOf, SET } from './options.ts';
import { Progress } from './progress.ts';
import { resultTable } from './result-table.ts';
import { chooseRunFolder } from './run-folders.ts';
import { runHere } from './run-here.ts';

const USAGE = 'braid train <recipe.yaml> [--resume] [--runs <folder>] [--set path=value ...]';

const OPTIONS = {
  ...SET,
  /** Go on from the newest checkpoint of the newest run of that name. */
  resume: { type: 'boolean', default: false },
  runs: { type: 'string', default: 'runs' },
} as const;

export async function train(argv: string[], interrupts: Interrupts): Promise<number> {
  const { values, positionals } = parse('train', argv, OPTIONS, USAGE);
  const recipe = recipeOf('train', positionals, values.set, USAGE);
  await bringData(recipe, interrupts.orderly);
  const runFolder = chooseRunFolder(values.runs, recipe.name, values.resume);
  const progress = new Progress(process.stdout, () => performance.now() / 1000);
  const summary = await runHere({ recipe, runFolder, resume: values.resume, interrupts, progress });
  process.stdout.write(resultTable(summary));
  return 0;
}
