/** How well each classifier does on the whole test set: counts first, rates from them. */
import { BraidError } from '../core/errors.ts';
import type { Score } from '../nn/scores.ts';
import type { ClassifierScore } from '../proto/messages.ts';

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
}

/** The name of all branches taken together: their counts added up, which makes its rates their mean. */
export const MEAN_OF_BRANCHES = 'branches';

/** Sums the scores of disjoint parts of the test set, each part in the order of `classifiers`. */
export function addScores(classifiers: string[], scores: ClassifierScore[][]): Score[] {
  return classifiers.map((classifier, i) => {
    const sum = { classifier, samples: 0, top1: 0, top5: 0, lossSum: 0 };
    for (const part of scores) {
      if (part.length !== classifiers.length) {
        throw new BraidError(
          'PROTOCOL',
          `scores of ${part.length} classifiers came where there are ${classifiers.length}`,
        );
      }
      sum.samples += part[i]!.samples;
      sum.top1 += part[i]!.top1;
      sum.top5 += part[i]!.top5;
      sum.lossSum += part[i]!.lossSum;
    }
    return sum;
  });
}

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
  const branches = scores.filter(({ classifier }) => classifier.startsWith('branch.'));
  if (branches.length < 2) return scores.map(resultOf);
  const rest = scores.filter((score) => !branches.includes(score));
  const [mean] = addScores(
    [MEAN_OF_BRANCHES],
    branches.map((score) => [score]),
  );
  return [...branches, mean!, ...rest].map(resultOf);
}

function resultOf({ classifier, samples, top1, top5, lossSum }: Score): ClassifierResult {
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
  };
}
