/** Starts cli/main.ts under Node 24 and is its stand-in for whoever started `braid`: signals go in, the exit code comes out. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { RUNTIME } from './packages.mjs';
import { readReady } from './ready.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '');

/** @param {string[]} argv of the braid command */
export async function main(argv) {
  if (readReady(ROOT, process.env) === undefined) {
    const { setUpOrExplain } = await import('./install.mjs');
    if (!(await setUpOrExplain())) return;
  }
  const child = spawn(join(ROOT, RUNTIME), [join(ROOT, 'cli', 'main.ts'), ...argv], {
    // The channel carries signals, and its end tells the child that this process is gone, however it went.
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
    // TensorFlow reads it when it is loaded. 2: errors only.
    env: { ...process.env, TF_CPP_MIN_LOG_LEVEL: process.env.TF_CPP_MIN_LOG_LEVEL ?? '2' },
  });
  // A Ctrl-C reaches the child from the terminal and from here: it knows that they are one (cli/interrupts.ts).
  const forward = (/** @type {NodeJS.Signals} */ signal) => {
    if (child.connected) child.send({ signal }, () => {});
  };
  for (const signal of FORWARDED) process.on(signal, forward);
  if (process.env.npm_lifecycle_event !== undefined) {
    // Killed with -9, the npm of `npm start` cannot pass it on: this process finds itself adopted by another.
    const parent = process.ppid;
    const watch = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(watch);
      forward('SIGHUP');
    }, PARENT_CHECK_MS);
    watch.unref();
  }
  child.on('error', (error) => {
    console.error(`braid: ${error.message}\n  Remedy: remove node_modules and run the same command again.`);
    process.exitCode = 1;
  });
  child.on('exit', (code, signal) => {
    for (const name of FORWARDED) process.off(name, forward);
    if (signal === null) process.exitCode = code ?? 1;
    else process.kill(process.pid, signal); // whoever waits for this process sees how the child ended
  });
}

const PARENT_CHECK_MS = 500; // unnoticed work after a kill -9 stays short; costs one system call

const FORWARDED = /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP']);
