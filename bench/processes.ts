/** What Linux says of a process, by its id. */
import { readFileSync } from 'node:fs';

const TICKS_A_SECOND = 100; // USER_HZ, which is 100 wherever Node runs

/** @returns null when the process is gone */
export function residentBytes(pid: number): number | null {
  const kib = /^VmRSS:\s*(\d+) kB$/m.exec(read(pid, 'status') ?? '')?.[1];
  return kib === undefined ? null : 1024 * Number(kib);
}

/** The most that has been resident of any process that `pid` started, or one of those, or of itself. */
export function peakBytesUnder(pid: number): number {
  const kib = /^VmHWM:\s*(\d+) kB$/m.exec(read(pid, 'status') ?? '')?.[1] ?? 0;
  return Math.max(1024 * Number(kib), ...childrenOf(pid).map(peakBytesUnder));
}

/** Of its main thread, which starts all that Node starts. */
function childrenOf(pid: number): number[] {
  return (read(pid, `task/${pid}/children`) ?? '').trim().split(' ').filter(Boolean).map(Number);
}

/** User and system time of all its threads. @returns null when the process is gone */
export function cpuSeconds(pid: number): number | null {
  const stat = read(pid, 'stat');
  if (stat === null) return null;
  // The name, in brackets, may hold anything; utime and stime are the 14th and 15th of the whole line.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND;
}

function read(pid: number, file: string): string | null {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return null;
  }
}
