/** What the `evaluate` phase of a program yields for one batch: counts for every classifier. */
import { BraidError } from '../core/errors.ts';

/** Confidence bins of equal width, of which a calibration is made. */
export const CALIBRATION_BINS = 15;

/** Top-1 count, top-5 count, sum of cross-entropies (nats), and three figures for every bin. */
const SCORE_VALUES = 3 + 3 * CALIBRATION_BINS;

export interface Score {
  /** "branch.0", "ensemble" (mean of the branches' logits), "ensemble.probabilities", "fused", "gated", "weighted". */
  classifier: string;
  samples: number;
  top1: number;
  top5: number;
  lossSum: number;
  /** By confidence bin (the largest probability, [i / 15, (i + 1) / 15)), flat: samples, sums of confidences, top-1 counts. */
  bins: number[];
}

/**
 * @param scores f32[classifiers * 48]   @param samples how many of the batch count: padding does not
 */
export function readScores(classifiers: string[], scores: Float32Array, samples: number): Score[] {
  return classifiers.map((classifier, i) => {
    const values = scores.subarray(SCORE_VALUES * i, SCORE_VALUES * (i + 1));
    const [top1, top5, lossSum] = values;
    const bins = Array.from(values.subarray(3), (atLeast, j) => {
      const last = (j + 1) % CALIBRATION_BINS === 0;
      return last ? atLeast : atLeast - values[3 + j + 1]!; // the phase counts those that reach each bin's lower edge
    });
    return { classifier, samples, top1: top1!, top5: top5!, lossSum: lossSum!, bins };
  });
}

/** Sums the scores of disjoint parts of the test set, each part in the order of `classifiers`. */
export function addScores(classifiers: string[], parts: Omit<Score, 'classifier'>[][]): Score[] {
  return classifiers.map((classifier, i) => {
    const sum = {
      classifier,
      samples: 0,
      top1: 0,
      top5: 0,
      lossSum: 0,
      bins: new Array<number>(3 * CALIBRATION_BINS).fill(0),
    };
    for (const part of parts) {
      const score = part[i];
      if (part.length !== classifiers.length || score?.bins.length !== sum.bins.length) {
        const found = `${part.length} classifiers with ${score?.bins.length ?? 0} figures of calibration`;
        throw new BraidError('PROTOCOL', `scores of ${found} came where there are ${classifiers.length}`);
      }
      sum.samples += score.samples;
      sum.top1 += score.top1;
      sum.top5 += score.top5;
      sum.lossSum += score.lossSum;
      score.bins.forEach((figure, j) => {
        sum.bins[j]! += figure;
      });
    }
    return sum;
  });
}
