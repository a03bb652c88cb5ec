/**
 * DualNet (Hou, Liu, Wang: DualNet: Learn Complementary Features for Image Recognition, ICCV 2017).
 *
 *   zf = W mean(F_1, F_2)                                            a classifier on the average of the last maps
 *   L  = CE(zf, y) + 0.3 (CE(z_1, y) + CE(z_2, y))
 * and the reported score is the weighted sum zf + 0.3 (z_1 + z_2). A classifier on a mean over the map reads the mean of
 * the maps and the mean of their means alike, so only pooled features are needed.
 *
 * `iterative` are the published phases: the first network alone; the second beside it, the first fixed; roles swapped;
 * then all classifiers, both networks fixed. The authors' learning-rate factors of the fine-tuned layers are left out:
 * they belong to weights that start from another training.
 */
import type { MethodRecipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import { type Tensor, tf } from '../tensorflow.ts';
import { branchClassifiers, mean } from './common.ts';
import type { BranchOutputs, Method, Owner } from './method.ts';

type Options = MethodRecipe<'dualnet'>;

interface Phase {
  /** The branches whose own cross-entropy counts. */
  judged: number[];
  fused: boolean;
  learns(owner: Owner): boolean;
  fixed: number[];
}

const PHASES: Record<string, Phase> = {
  all: { judged: [0, 1], fused: true, learns: () => true, fixed: [] },
  standard: { judged: [0], fused: false, learns: ({ branch }) => branch === 0, fixed: [] },
  fine: { judged: [1], fused: true, learns: ({ branch }) => branch !== 0, fixed: [0] },
  coarse: { judged: [0], fused: true, learns: ({ branch }) => branch !== 1, fixed: [1] },
  classifiers: { judged: [0, 1], fused: true, learns: ({ branch, head }) => branch === null || head, fixed: [0, 1] },
};

export function dualnet({ auxiliaryWeight }: Options): Method {
  const weigh = (terms: Tensor[]) => tf.mul(tf.addN(terms), tf.scalar(auxiliaryWeight));
  return {
    reads: ['pooled'],
    losses(b, { branches, classes, crossEntropy }, round) {
      const { judged, fused } = PHASES[round]!;
      const ce = judged.map((k) => crossEntropy(branches[k]!.logits));
      const named = Object.fromEntries(judged.map((k, i) => [`ce.${k}`, ce[i]!]));
      if (!fused) return { ...named, total: tf.addN(ce) };
      const ceFused = crossEntropy(fuse(b, branches, classes));
      return { ...named, 'ce.fused': ceFused, total: tf.add(ceFused, weigh(ce)) };
    },
    classifiers(b, { branches, classes }) {
      const fused = fuse(b, branches, classes);
      const weighted = tf.add(fused, weigh(branches.map(({ logits }) => logits)));
      return { ...branchClassifiers(branches), fused, weighted };
    },
    learns: (owner, round) => PHASES[round]!.learns(owner),
    isFixed: (branch, round) => PHASES[round]!.fixed.includes(branch),
  };
}

function fuse(b: Builder, branches: BranchOutputs[], classes: number): Tensor {
  return b.linear('fused_fc', mean(branches.map(({ pooled }) => pooled!)), classes);
}
