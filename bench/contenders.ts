/** Everyone who takes training steps in the bench, started as a child. */
import { join } from 'node:path';
import type { Recipe } from '../core/recipe.ts';
import { peerEnvironment } from './peers/venv.ts';
import { Stepper } from './stepper.ts';

export type Precision = Recipe['training']['precision'];

/** What is trained, where it is not recipe.yaml's FFL with two branches on one trunk. */
export interface Work {
  /** cifar: ResNet-32 at 32 pixels, batch 128 (recipe.yaml). imagenet: ResNet-34 at 224, batch 32 (imagenet.yaml). */
  network?: 'cifar' | 'imagenet';
  precision?: Precision;
  threads?: number;
  batch?: number;
  branches?: number;
  unshared?: boolean;
}

/** One process's, all of it said. */
export type StepWork = Required<Pick<Work, 'network' | 'precision' | 'threads'>>;

/** The captured graph in one process, fed from memory. */
export function braidStep(work: Work): Promise<Stepper> {
  return Stepper.start(
    'braid-step',
    process.execPath,
    ['--expose-gc', join(import.meta.dirname, 'braid-step.ts'), ...flags(work)],
    process.env,
  );
}

/** glibc returns large blocks to the system and takes them anew, page by page: where pages are slow to get, that is much of a step. */
const KEEP_MEMORY = { MALLOC_MMAP_MAX_: '0', MALLOC_TRIM_THRESHOLD_: '100000000000', MALLOC_TOP_PAD_: '200000000' };

/** PyTorch in one process, fed from memory; eager as it is installed, or with glibc told to keep memory. */
export function torchStep(python: string, mode: 'eager' | 'compiled' | 'keeping', work: Work): Promise<Stepper> {
  const script = join(import.meta.dirname, 'peers/step.py');
  const args = [script, '--mode', mode === 'keeping' ? 'eager' : mode, ...flags(work)];
  const environment = { ...peerEnvironment(), ...(mode === 'keeping' && KEEP_MEMORY) };
  return Stepper.start(`PyTorch, ${mode}`, python, args, environment);
}

/** PyTorch DistributedDataParallel: two processes of one thread, fed from CIFAR's files. */
export function torchDdp(python: string, data: string): Promise<Stepper> {
  const script = join(import.meta.dirname, 'peers/ddp.py');
  return Stepper.start('PyTorch DDP', python, [script, '--data', data], peerEnvironment());
}

/** A work's, for braid-step.ts and peers/step.py. */
export function flags({ unshared, ...work }: Work): string[] {
  const valued = Object.entries(work).flatMap(([name, value]) => [`--${name}`, String(value)]);
  return unshared === true ? [...valued, '--unshared'] : valued;
}
