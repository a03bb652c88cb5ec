/** Files out of a Debian or Ubuntu package, without root and without installing it. */
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { DownloadOptions } from './download.ts';

const POLL_MS = 500; // how often the growing file is looked at
const NETWORK_OPTIONS = [
  '-o',
  'Acquire::http::Timeout=15',
  '-o',
  'Acquire::https::Timeout=15',
  '-o',
  'Acquire::Retries=1',
];
const STDERR_CHARACTERS = 2000; // kept of what a tool says

/**
 * Downloads a package into `staging` with apt-get, which checks its signature and resumes, and unpacks it there.
 * Where this machine has no package lists (a fresh container), or old ones, it fetches lists of its own into `staging`.
 * @returns the folder that stands for the package's root
 * @throws Error saying which tool said what
 */
export async function unpackDebianPackage(name: string, staging: string, options: DownloadOptions): Promise<string> {
  const root = join(staging, 'root');
  rmSync(root, { recursive: true, force: true });
  const deb = await downloadPackage(name, staging, [], options).catch((error: NodeJS.ErrnoException) => {
    options.signal.throwIfAborted();
    if (error.code === 'ENOENT') throw new Error('this machine has no apt-get');
    return downloadWithOwnLists(name, staging, options);
  });
  await run('dpkg-deb', ['-x', deb, root], staging, options.signal);
  return root;
}

async function downloadWithOwnLists(name: string, staging: string, options: DownloadOptions): Promise<string> {
  const folder = join(staging, 'apt');
  const lists = privateLists(folder);
  // Some other source of the machine may be unreachable: the download shows whether the lists suffice.
  let complaint = '';
  try {
    await run('apt-get', [...NETWORK_OPTIONS, ...lists, 'update'], staging, options.signal).catch((error: Error) => {
      complaint = `; ${error.message}`;
    });
    return await downloadPackage(name, staging, lists, options);
  } catch (error) {
    throw new Error(`${(error as Error).message}${complaint}`, { cause: error });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function downloadPackage(
  name: string,
  staging: string,
  lists: string[],
  { signal, progress }: DownloadOptions,
): Promise<string> {
  const arguments_ = [...NETWORK_OPTIONS, ...lists, 'download'];
  // 'http://...' dataset_1.0_all.deb 30900652 SHA256:...
  const described = await run('apt-get', [...arguments_, '--print-uris', name], staging, signal);
  const total = Number(/\.deb (\d+)/.exec(described)?.[1] ?? Number.NaN);
  const ours = () => readdirSync(staging).find((file) => file.startsWith(`${name}_`) && file.endsWith('.deb'));
  const poll = setInterval(() => {
    const growing = ours();
    if (growing === undefined) return;
    progress(statSync(join(staging, growing)).size, Number.isNaN(total) ? null : total);
  }, POLL_MS);
  try {
    await run('apt-get', [...arguments_, name], staging, signal);
  } finally {
    clearInterval(poll);
  }
  const deb = ours();
  if (deb === undefined) throw new Error(`apt-get download left no ${name}_*.deb`);
  return join(staging, deb);
}

/** Options that make apt-get keep its lists and caches in a folder of ours, still with the machine's sources and keys. */
function privateLists(folder: string): string[] {
  mkdirSync(join(folder, 'lists', 'partial'), { recursive: true });
  mkdirSync(join(folder, 'cache', 'archives', 'partial'), { recursive: true });
  const options = [
    `Dir::State::Lists=${folder}/lists`,
    `Dir::Cache=${folder}/cache`,
    'Acquire::Languages=none',
    'APT::Update::Error-Mode=any',
  ];
  return options.flatMap((option) => ['-o', option]);
}

/** Runs a tool to its end. @returns its standard output */
async function run(command: string, arguments_: string[], cwd: string, signal: AbortSignal): Promise<string> {
  const child = spawn(command, arguments_, {
    cwd,
    signal,
    env: { ...process.env, LC_ALL: 'C' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [output, complaints] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints = (complaints + text).slice(-STDERR_CHARACTERS);
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (code !== 0) {
    const errors = complaints.split('\n').filter((line) => line.startsWith('E:') || line.includes('error'));
    const said = (errors.length > 0 ? errors.join(' ') : complaints.trim()) || `exit code ${code}`;
    throw new Error(`${command}: ${said}`);
  }
  return output;
}
