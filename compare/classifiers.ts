/** What the classifiers of a run are called, and in which order tables and figures have them. */
import { AVERAGED, MEAN_OF_BRANCHES } from '../coordinator/evaluation.ts';

const TITLES: Record<string, string> = {
  [MEAN_OF_BRANCHES]: 'mean of branches',
  gated: 'gated',
  fused: 'fused classifier',
  weighted: 'weighted',
  ensemble: 'ensemble (mean logits)',
  'ensemble.probabilities': 'ensemble (mean probabilities)',
};

const AFTER_ALL = 1000; // more than there are classifiers
const BRANCH = /^branch\.(\d+)$/;

/** Those that take all branches to answer, the learnt ones first. */
export const LEARNT = ['fused', 'gated', 'weighted'];

export function titleOf(classifier: string): string {
  if (classifier.startsWith(AVERAGED)) return `${titleOf(classifier.slice(AVERAGED.length))}, averaged weights`;
  return TITLES[classifier] ?? classifier.replace(BRANCH, 'branch $1');
}

/** Each once: the branches by number, then the others as TITLES has them, then unknown ones; last those of averaged weights. */
export function inOrder(classifiers: Iterable<string>): string[] {
  const order = Object.keys(TITLES);
  const rank = (classifier: string): number => {
    if (classifier.startsWith(AVERAGED)) return rank(classifier.slice(AVERAGED.length)) + AFTER_ALL;
    const branch = BRANCH.exec(classifier)?.[1];
    if (branch !== undefined) return Number(branch) - AFTER_ALL;
    const known = order.indexOf(classifier);
    return known === -1 ? order.length : known;
  };
  return [...new Set(classifiers)].sort((a, b) => rank(a) - rank(b));
}

/** The results of one network on its own: a single one's, or the mean of several. */
export function oneNetwork<T extends { classifier: string }>(results: T[]): T | undefined {
  return pick(results, [MEAN_OF_BRANCHES, 'branch.0']);
}

/** The first of `classifiers` that there is. */
export function pick<T extends { classifier: string }>(results: T[], classifiers: string[]): T | undefined {
  return classifiers.flatMap((name) => results.filter(({ classifier }) => classifier === name))[0];
}
