/** The fault matrix: what goes wrong, to whom, at which moment; and which rows stand for all. */
import type { Moment } from '../../rig/proxy.ts';

export type What =
  | 'SIGKILL'
  | 'SIGSTOP'
  | 'connection cut'
  | 'delayed'
  | 'garbage bytes'
  | 'not a number'
  | 'disk full';

export interface Row {
  what: What;
  who: 'worker' | 'coordinator';
  /** In the words of a training step. */
  phase: string;
  placement: 'together' | 'split';
  moment: Moment;
  step: number;
  /** Part of `npm test`. */
  covering: boolean;
}

/** Where each phase is seen: 'split' where it exists only there. Steps 0 to 7, epochs of 4, checkpoints every 2. */
const PHASES: Record<string, [Row['placement'], Moment, number]> = {
  join: ['together', 'join', 0],
  prepare: ['together', 'prepare', 0],
  images: ['together', 'shards', 3],
  forward: ['together', 'compute', 3],
  gather: ['split', 'forward', 3],
  method: ['split', 'backward', 3], // its results are on their way
  backward: ['split', 'backward', 5],
  reduce: ['together', 'reduce', 3],
  commit: ['together', 'commit', 3],
  checkpoint: ['together', 'hashState', 4],
  evaluate: ['together', 'evaluate', 4],
};

const EVERYWHERE = Object.keys(PHASES);
/** A process that has not joined has no process id that anybody knows. */
const JOINED = EVERYWHERE.filter((phase) => phase !== 'join');
/** Where bytes travel that are checked. */
const BYTES = ['images', 'gather', 'backward', 'reduce'];

const KINDS: [What, Row['who'], string[]][] = [
  ['SIGKILL', 'worker', JOINED],
  ['SIGSTOP', 'worker', JOINED],
  ['connection cut', 'worker', EVERYWHERE],
  ['delayed', 'worker', EVERYWHERE],
  ['garbage bytes', 'worker', BYTES],
  ['not a number', 'worker', ['forward']],
  ['SIGKILL', 'coordinator', JOINED],
  ['disk full', 'coordinator', ['checkpoint']],
];

/** Every fault and every phase at least once. */
const COVERING = new Set([
  'SIGKILL worker commit',
  'SIGKILL worker gather',
  'SIGSTOP worker forward',
  'connection cut worker reduce',
  'connection cut worker prepare',
  'delayed worker join',
  'garbage bytes worker images',
  'garbage bytes worker backward',
  'not a number worker forward',
  'SIGKILL coordinator evaluate',
  'SIGKILL coordinator method',
  'disk full coordinator checkpoint',
]);

export const MATRIX: Row[] = KINDS.flatMap(([what, who, phases]) =>
  phases.map((phase) => {
    const [placement, moment, step] = PHASES[phase]!;
    return { what, who, phase, placement, moment, step, covering: COVERING.has(`${what} ${who} ${phase}`) };
  }),
);
