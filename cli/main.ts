/** The `braid` command, under Node 24: names a command, runs it, and tells what went wrong. */
import { asBraidError, type BraidError, isTemporary, nearest } from '../core/errors.ts';
import { Interrupts } from './interrupts.ts';

interface Command {
  about: string;
  load(): Promise<(argv: string[], interrupts: Interrupts) => Promise<number>>;
}

const COMMANDS: Record<string, Command> = {
  train: { about: 'run a recipe here: coordinator and workers', load: async () => (await import('./train.ts')).train },
  compare: {
    about: 'several recipes and seeds, one after another, and their tables',
    load: async () => (await import('./compare.ts')).compare,
  },
  coordinator: {
    about: "a recipe's coordinator alone",
    load: async () => (await import('./coordinator.ts')).coordinator,
  },
  worker: { about: 'one worker, which joins a coordinator', load: async () => (await import('./worker.ts')).worker },
  checkpoints: {
    about: "list, verify and prune a run's checkpoints",
    load: async () => (await import('./checkpoints.ts')).checkpoints,
  },
  certs: { about: 'certificates for --tls, for development', load: async () => (await import('./certs.ts')).certs },
  status: { about: 'how a running cluster is doing', load: async () => (await import('./status.ts')).status },
  dashboard: {
    about: 'a live view of a run in the browser',
    load: async () => (await import('./dashboard.ts')).dashboard,
  },
  config: { about: 'a recipe with every value resolved', load: async () => (await import('./config.ts')).config },
  plan: {
    about: 'what a cluster would make of a recipe, predicted',
    load: async () => (await import('./plan.ts')).plan,
  },
  data: {
    about: 'fetch, index, check and pack data sets',
    load: async () => async (argv, interrupts) => (await import('./data.ts')).data(argv, interrupts.orderly),
  },
  doctor: { about: 'what this machine has, and lacks', load: async () => (await import('./doctor.ts')).doctor },
  bench: {
    about: 'speed, beside PyTorch; endurance, and size',
    load: async () => (await import('../bench/bench.ts')).bench,
  },
};

/** Something is to be mended first: starting again would end the same way. */
const EXIT_FAILED = 1;
/** sysexits.h's EX_TEMPFAIL: start again, with --resume. */
const EXIT_TRY_AGAIN = 75;
/** Shells say 128 + the signal's number: SIGINT is 2. */
const EXIT_CANCELLED = 130;

function exitCodeOf(error: BraidError, { orderly }: Interrupts): number {
  if (isTemporary(error, orderly.reason)) return EXIT_TRY_AGAIN;
  return error.code === 'CANCELLED' ? EXIT_CANCELLED : EXIT_FAILED;
}

const [name = 'help', ...argv] = process.argv.slice(2);
const command = COMMANDS[name];
if (command === undefined) {
  const asked = ['help', '--help', '-h'].includes(name);
  const near = asked ? undefined : nearest(name, Object.keys(COMMANDS));
  const problem = asked ? '' : `braid: no command ${name}${near === undefined ? '' : `, did you mean ${near}?`}\n`;
  const list = Object.entries(COMMANDS).map(([key, { about }]) => `  braid ${key.padEnd(12)} ${about}\n`);
  process[asked ? 'stdout' : 'stderr'].write(`${problem}${list.join('')}`);
  process.exitCode = asked ? 0 : 1;
} else {
  const interrupts = new Interrupts(process, () => performance.now());
  try {
    process.exitCode = await (await command.load())(argv, interrupts);
  } catch (thrown) {
    const error = asBraidError(thrown);
    process.stderr.write(`braid ${name}: ${error.message}\n`);
    if (error.remedy !== '') process.stderr.write(`  Remedy: ${error.remedy}\n`);
    if (error.code === 'INTERNAL') process.stderr.write(`  A bug in Braid: ${error.stack}\n`);
    process.exitCode = exitCodeOf(error, interrupts);
  }
  // A peer whose node is gone never ends its side of a connection, which would keep this process for a quarter of an hour.
  process.exit();
}
