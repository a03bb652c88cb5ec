/** Who sees an image: all branches alike, or (data.perBranch) one of them, by its number, each with a draw of its own. */
import { Random, Stream } from '../../core/random.ts';

export type Eye = 'all' | number;

/** What an image is augmented by: a pure function of these, the same on every worker. */
export function augmentRandom(seed: number, epoch: number, sampleId: number, eye: Eye): Random {
  const key = [Stream.AUGMENT, seed, epoch, sampleId];
  return new Random(...key, ...(eye === 'all' ? [] : [eye]));
}
