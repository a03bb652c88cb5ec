/** braid coordinator: a recipe's coordinator alone. Its workers are started elsewhere: `braid worker --coordinator ...`. */

import { runCoordinator } from '../coordinator/run.ts';
import { createLog } from '../core/log.ts';
import { bringData } from './bring-data.ts';
import type { Interrupts } from './interrupts.ts';
import { parse, RESUME, recipeOf, resumeOf, SET, withResume } from './options.ts';
import { Progress } from './progress.ts';
import { resultTable } from './result-table.ts';
import { chooseRunFolder } from './run-folders.ts';
import { TLS, TOKEN_FILE, tlsOf, tokenOf } from './trust.ts';

const USAGE =
  'braid coordinator <recipe.yaml> [--listen <host:port>] [--tls <folder> | --insecure] [--token-file <file>] [--resume [step-<n>]] [--stay] [--trace <file>] [--runs <folder>] [--set path=value ...]';

const OPTIONS = {
  ...SET,
  ...RESUME,
  ...TLS,
  ...TOKEN_FILE,
  listen: { type: 'string', default: '127.0.0.1:7070' },
  /** Listen where other machines can connect, unencrypted. */
  insecure: { type: 'boolean', default: false },
  /** When the run is done, go on telling how it ended: for who would start again whatever ends. */
  stay: { type: 'boolean', default: false },
  runs: { type: 'string', default: 'runs' },
  /** Chrome's format: open it in ui.perfetto.dev. */
  trace: { type: 'string' },
} as const;

export async function coordinator(argv: string[], { orderly, atOnce }: Interrupts): Promise<number> {
  const { values, positionals } = parse('coordinator', withResume(argv), OPTIONS, USAGE);
  const recipe = recipeOf('coordinator', positionals, values.set, USAGE);
  const resume = resumeOf('coordinator', values.resume);
  const progress = new Progress(process.stdout, () => performance.now() / 1000);
  const write = (line: string) => progress.print(line);
  const log = createLog({ format: 'human', level: 'warn', write, now: () => new Date() });
  const tls = tlsOf(values, log);
  const token = tokenOf(values);
  await bringData(recipe, orderly);
  const summary = await runCoordinator({
    recipe,
    listen: values.listen,
    insecure: values.insecure,
    tls,
    token,
    runFolder: chooseRunFolder(values.runs, recipe.name, resume !== false),
    resume,
    stay: values.stay,
    trace: values.trace,
    signal: orderly,
    hard: atOnce,
    onEvent: (event) => progress.show(event),
    log,
  });
  process.stdout.write(resultTable(summary));
  return 0;
}
