/** What the `evaluate` phase of a program yields for one batch: three numbers a classifier. */

/** Top-1 count, top-5 count, sum of cross-entropies (nats). */
const SCORE_VALUES = 3;

export interface Score {
  /** "branch.0", "ensemble" (the mean of the branches' logits), "fused". */
  classifier: string;
  samples: number;
  top1: number;
  top5: number;
  lossSum: number;
}

/**
 * @param scores f32[classifiers * 3]   @param samples how many of the batch count: padding does not
 */
export function readScores(classifiers: string[], scores: Float32Array, samples: number): Score[] {
  return classifiers.map((classifier, i) => {
    const [top1, top5, lossSum] = scores.subarray(SCORE_VALUES * i, SCORE_VALUES * (i + 1));
    return { classifier, samples, top1: top1!, top5: top5!, lossSum: lossSum! };
  });
}
