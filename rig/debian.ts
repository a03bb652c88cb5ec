/** Programs from Debian's packages, unpacked into this project's cache: nothing is installed, and nobody need be root. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

const CACHE = new URL('../.cache/debian/', import.meta.url).pathname;
const FETCH_TIMEOUT_MS = 120_000;

const run = promisify(execFile);

/** @returns a program's path   @throws where the package cannot be had: no apt, or no network */
export async function debianProgram(packageName: string, path: string): Promise<string> {
  const unpacked = join(CACHE, packageName);
  if (!existsSync(unpacked)) await fetch(packageName, unpacked);
  return join(unpacked, path);
}

/** Aside first, then renamed: what is in its place is whole. */
async function fetch(packageName: string, unpacked: string): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const aside = await mkdtemp(join(CACHE, 'aside-'));
  try {
    for (const folder of ['lists/partial', 'cache/archives/partial', 'root']) {
      await mkdir(join(aside, folder), { recursive: true });
    }
    const own = ['-qq', '-o', `Dir::State::Lists=${aside}/lists`, '-o', `Dir::Cache=${aside}/cache`];
    const options = { cwd: aside, timeout: FETCH_TIMEOUT_MS };
    await run('apt-get', [...own, '-o', 'Debug::NoLocking=1', 'update'], options);
    await run('apt-get', [...own, 'download', packageName], options);
    const [archive] = (await readdir(aside)).filter((name) => name.endsWith('.deb'));
    await run('dpkg-deb', ['-x', archive!, 'root'], options);
    // Somebody else may have been quicker.
    if (!existsSync(unpacked)) await rename(join(aside, 'root'), unpacked);
  } finally {
    await rm(aside, { recursive: true, force: true });
  }
}
