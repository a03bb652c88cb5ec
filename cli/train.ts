/** braid train: one run on this machine. */
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { parse, RESUME, recipeOf, resumeOf, SET, withResume } from './options.ts';
import { Progress } from './progress.ts';
import { resultTable } from './result-table.ts';
import { chooseRunFolder } from './run-folders.ts';
import { runHere } from './run-here.ts';
import { TLS } from './trust.ts';

const USAGE =
  'braid train <recipe.yaml> [--resume [step-<n>]] [--tls <folder>] [--trace <file>] [--runs <folder>] [--set path=value ...]';

const OPTIONS = {
  ...SET,
  ...RESUME,
  ...TLS,
  runs: { type: 'string', default: 'runs' },
  /** Chrome's format: open it in ui.perfetto.dev. */
  trace: { type: 'string' },
} as const;

export async function train(argv: string[], interrupts: Interrupts): Promise<number> {
  const { values, positionals } = parse('train', withResume(argv), OPTIONS, USAGE);
  const recipe = recipeOf('train', positionals, values.set, USAGE);
  const resume = resumeOf('train', values.resume);
  await bringData(recipe, interrupts.orderly);
  const runFolder = chooseRunFolder(values.runs, recipe.name, resume !== false);
  const progress = new Progress(process.stdout, () => performance.now() / 1000);
  const summary = await runHere({
    recipe,
    runFolder,
    resume,
    interrupts,
    progress,
    tls: values.tls,
    trace: values.trace,
  });
  process.stdout.write(resultTable(summary));
  return 0;
}
