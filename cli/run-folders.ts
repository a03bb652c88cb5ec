/** Where a run goes: runs/<name>, or the next free runs/<name>-2, -3, ... */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

/** To resume is to go on in the newest folder of that name; otherwise a folder that is not in use yet. */
export function chooseRunFolder(runs: string, name: string, resume: boolean): string {
  const folder = (n: number) => join(runs, n === 1 ? name : `${name}-${n}`);
  let free = 1;
  while (existsSync(folder(free)) && readdirSync(folder(free)).length > 0) free++;
  return folder(resume ? Math.max(1, free - 1) : free);
}
