/** One process at a time: a file that holds the process id of whoever is at work. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout } from 'node:timers/promises';

const RETRY_MS = 200;

/**
 * Waits until no living process holds `file`, then holds it.
 * @param waiting told once, when another process is found to hold it
 * @returns lets go of it
 */
export async function acquireLock(
  file: string,
  signal: AbortSignal,
  waiting: (pid: number) => void,
): Promise<() => void> {
  mkdirSync(dirname(file), { recursive: true });
  for (let told = false; ; ) {
    try {
      writeFileSync(file, String(process.pid), { flag: 'wx' });
      return () => rmSync(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = holderOf(file);
    if (holder === null) {
      rmSync(file, { force: true }); // left by a process that was killed
      continue;
    }
    if (!told) waiting(holder);
    told = true;
    await setTimeout(RETRY_MS, undefined, { signal });
  }
}

/** The living process that holds `file`, or null. */
function holderOf(file: string): number | null {
  try {
    const pid = Number(readFileSync(file, 'utf8'));
    process.kill(pid, 0);
    return pid;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM' ? Number(readFileSync(file, 'utf8')) : null;
  }
}
