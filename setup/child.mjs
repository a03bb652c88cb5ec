/** Runs npm, pip, python3 and g++ with their output in the log, and turns a failure into one clear error. */
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { failureFrom, SetupFailure } from './failure.mjs';
import { which } from './machine.mjs';

/**
 * @typedef {object} Workshop  what every step works with
 * @property {string} root the project's folder
 * @property {string} log the file that takes all output
 * @property {NodeJS.ProcessEnv} env of the children; its PATH is the host's, without node_modules/.bin
 * @property {AbortSignal} signal aborted when somebody stops the set-up
 */

const TAIL_CHARS = 64 * 1024; // enough to hold the line that names the cause under a long stack trace

/** Asks Linux to kill this process when its parent dies (prctl 1 = PR_SET_PDEATHSIG), then becomes the command. */
const DIE_WITH_PARENT = 'import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])';

/**
 * @param {Workshop} workshop
 * @param {string} what as in "installing the npm packages"
 * @param {[string, ...string[]]} command
 * @param {{cwd?: string, env?: NodeJS.ProcessEnv}} [options]
 * @returns {Promise<string>} what it printed on stdout
 * @throws {SetupFailure} when it does not exit with 0
 */
export async function runLogged({ root, log, env, signal }, what, command, options = {}) {
  const [name, ...args] = command;
  const path = env.PATH ?? '';
  const program = name.includes('/') ? name : which(name, path);
  const python = which('python3', path);
  if (program === undefined || python === undefined) throw new SetupFailure(`${name} is gone.`, 'install it again.');
  signal.throwIfAborted();
  note(log, `\n$ ${command.join(' ')}\n`);
  const child = spawn(python, ['-c', DIE_WITH_PARENT, program, ...args], {
    cwd: options.cwd ?? root,
    env: { ...env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    signal,
    killSignal: 'SIGKILL',
  });
  let tail = '';
  let stdout = '';
  const keep = (/** @type {Buffer} */ chunk) => {
    tail = (tail + chunk).slice(-TAIL_CHARS);
    note(log, chunk);
  };
  child.stdout.on('data', (chunk) => {
    stdout += chunk;
    keep(chunk);
  });
  child.stderr.on('data', keep);
  /** @type {{code: number | null, killer: string | null}} */
  const { code, killer } = await new Promise((resolve, reject) => {
    child.on('error', (error) => (error.name === 'AbortError' ? undefined : reject(error)));
    child.on('close', (code, killer) => resolve({ code, killer }));
  });
  if (code === 0) return stdout;
  signal.throwIfAborted();
  throw failureFrom(what, tail, killer);
}

/** Adds to the log; a disk too full for that is the command's failure to tell, not the log's. @param {string} log @param {string | Buffer} text */
export function note(log, text) {
  try {
    appendFileSync(log, text);
  } catch {
    // Nowhere to say it.
  }
}
