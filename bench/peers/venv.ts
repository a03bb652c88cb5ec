/**
 * Python with PyTorch for the peers, in bench/.venv: made once, made anew when what it is made from changes.
 *
 * PyPI's torch for Linux is the CUDA one, and 2 GB of NVIDIA packages come with it. On a CPU its code needs none of
 * them, only its linking does, so stand-ins take their place (cuda-stand-ins.ts); torch's own files stay as they are.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BraidError } from '../../core/errors.ts';
import { writeStandIns } from './cuda-stand-ins.ts';

const VENV = join(import.meta.dirname, '../.venv');
const PYTHON = join(VENV, 'bin/python');
const REQUIREMENTS = join(import.meta.dirname, 'requirements.txt');

/** Holds the hash of what the venv was made from; written last, so that an interrupted set-up is taken up again. */
const STAMP = join(VENV, 'ready');
const MADE_FROM = [REQUIREMENTS, import.meta.filename, join(import.meta.dirname, 'cuda-stand-ins.ts')];

const SMOKE_TEST =
  'import torch, torchvision.io; assert not torch.cuda.is_available(); torch.nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 8, 8))';

/** What the peers run with: no GPU, and their compiled code kept with the venv. */
export function peerEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, CUDA_VISIBLE_DEVICES: '', TORCHINDUCTOR_CACHE_DIR: join(VENV, 'inductor') };
}

/**
 * @param say takes a line of progress; pip's own goes to stderr
 * @returns the path of a Python that imports torch
 * @throws BraidError SETUP when a tool is missing, or when a step of the set-up fails
 */
export async function peerPython(say: (line: string) => void): Promise<string> {
  const made = createHash('sha256');
  for (const file of MADE_FROM) made.update(readFileSync(file));
  const stamp = made.digest('hex');
  if (existsSync(STAMP) && readFileSync(STAMP, 'utf8') === stamp) return PYTHON;

  const step = async (what: string, remedy: string, ...command: [string, ...string[]]) => {
    say(`peer: ${what}`);
    await run(what, remedy, command);
  };
  await step(
    'making bench/.venv',
    'Install Python 3.11 or later with its venv module (Debian and Ubuntu: apt-get install python3 python3-venv).',
    ...(['python3', '-m', 'venv', '--without-pip', VENV] as const),
  );
  await step(
    'checking that Python is 3.11 or later',
    'Install Python 3.11 or later, delete bench/.venv, and run it again.',
    ...([PYTHON, '-c', 'import sys; assert sys.version_info >= (3, 11), sys.version'] as const),
  );
  await step(
    'installing PyTorch (0.5 GB to download, 1.3 GB on disk)',
    'Read what pip says above; it needs pip 22.3 or later, a registry that it reaches, and 2 GB of disk. Then run it again.',
    ...(['python3', '-m', 'pip', '--python', PYTHON, 'install', '--no-deps', '-r', REQUIREMENTS] as const),
  );
  say('peer: standing in for the CUDA libraries');
  writeStandIns(VENV);
  await step('importing torch', 'Delete bench/.venv and run it again.', PYTHON, '-c', SMOKE_TEST);
  writeFileSync(STAMP, stamp);
  return PYTHON;
}

/** Runs a command with its output on stderr: stdout is the bench's own. */
async function run(what: string, remedy: string, [name, ...args]: [string, ...string[]]): Promise<void> {
  const child = spawn(name, args, { stdio: ['ignore', 2, 2], env: peerEnvironment() });
  const ended = await new Promise<number | string | Error>((resolve) => {
    child.once('error', resolve);
    child.once('close', (code, signal) => resolve(signal ?? code ?? 0));
  });
  if (ended === 0) return;
  if (ended instanceof Error) throw new BraidError('SETUP', `${what}: ${ended.message}`, { remedy, cause: ended });
  throw new BraidError('SETUP', `${what}: ${name} ended with ${ended}`, { remedy });
}
