/** How well each classifier does on the whole test set: counts first, rates from them. */
import { BraidError } from '../core/errors.ts';
import { addScores, CALIBRATION_BINS, type Score } from '../nn/scores.ts';

export interface ClassifierResult {
  classifier: string;
  samples: number;
  top1Correct: number;
  top5Correct: number;
  top1Accuracy: number;
  top5Accuracy: number;
  top1Error: number;
  top5Error: number;
  /** Mean cross-entropy, nats. */
  loss: number;
  calibration: Calibration;
}

/** Whether what a classifier is sure of is so (Guo et al. 2017). */
export interface Calibration {
  /** Expected calibration error: the mean over the samples of their bin's |accuracy - confidence|. */
  ece: number;
  /** By confidence, [i / 15, (i + 1) / 15): samples, and the means over them; 0 where there are none. */
  bins: { samples: number; confidence: number; accuracy: number }[];
}

/** The name of all branches taken together: their counts added up, which makes its rates their mean. */
export const MEAN_OF_BRANCHES = 'branches';
/** What the names of the averaged weights' classifiers begin with (`training.ema`). */
export const AVERAGED = 'ema.';

/**
 * @param samples of the test set: every one must have been seen exactly once
 * @returns the classifiers, with the mean of the branches after the last branch where there are several
 * @throws BraidError PROTOCOL when samples are missing or doubled
 */
export function resultsOf(scores: Score[], samples: number): ClassifierResult[] {
  for (const { classifier, samples: seen } of scores) {
    if (seen !== samples) {
      throw new BraidError('PROTOCOL', `${classifier} was evaluated on ${seen} samples, the test set has ${samples}`);
    }
  }
  const averaged = scores.filter(({ classifier }) => classifier.startsWith(AVERAGED));
  const others = scores.filter((score) => !averaged.includes(score));
  return [...withMean(others, ''), ...withMean(averaged, AVERAGED)].map(resultOf);
}

function withMean(scores: Score[], prefix: string): Score[] {
  const branches = scores.filter(({ classifier }) => classifier.startsWith(`${prefix}branch.`));
  if (branches.length < 2) return scores;
  const rest = scores.filter((score) => !branches.includes(score));
  const mean = addScores(
    [`${prefix}${MEAN_OF_BRANCHES}`],
    branches.map((score) => [score]),
  );
  return [...branches, ...mean, ...rest];
}

function resultOf({ classifier, samples, top1, top5, lossSum, bins }: Score): ClassifierResult {
  return {
    classifier,
    samples,
    top1Correct: top1,
    top5Correct: top5,
    top1Accuracy: top1 / samples,
    top5Accuracy: top5 / samples,
    top1Error: 1 - top1 / samples,
    top5Error: 1 - top5 / samples,
    loss: lossSum / samples,
    calibration: calibrationOf(bins, samples),
  };
}

function calibrationOf(figures: number[], samples: number): Calibration {
  const bins = Array.from({ length: CALIBRATION_BINS }, (_, i) => {
    const [count, confidences, right] = [0, 1, 2].map((which) => figures[which * CALIBRATION_BINS + i]!);
    const mean = (sum: number) => (count === 0 ? 0 : sum / count!);
    return { samples: count!, confidence: mean(confidences!), accuracy: mean(right!) };
  });
  const ece = bins.reduce((sum, bin) => sum + (bin.samples / samples) * Math.abs(bin.accuracy - bin.confidence), 0);
  return { ece, bins };
}
