/**
 * Dynamic loss scaling (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2): f16 has no numbers between 0 and
 * 6e-8, where many gradients are. A loss is multiplied by a scale before it is differentiated, and its gradient divided by
 * it in f32. A gradient that overflows all the same is left out, and halves the scale; so many in a row that do not double it.
 * The rule is that of PyTorch's GradScaler.
 */
import type { Recipe } from './recipe.ts';

/** Part of where training is: equal on whoever goes on from there. */
export interface LossScale {
  /** A power of two, so that it rounds nothing: 1 to 2^24; 1 where precision is not f16. */
  lossScale: number;
  /** Updates since it changed. */
  goodUpdates: number;
}

type Training = Pick<Recipe['training'], 'precision' | 'lossScale'>;

const GROWTH = 2;
const BACKOFF = 0.5;
/** Gradients that never overflow are nearly zero: what f16 loses of them does not matter any more. */
export const MAX_LOSS_SCALE = 2 ** 24;

/** Where it stands when training begins, or goes on. @param known from a checkpoint or a worker */
export function firstLossScale({ precision, lossScale }: Training, known?: LossScale): LossScale {
  if (precision !== 'f16') return { lossScale: 1, goodUpdates: 0 };
  return { lossScale: known?.lossScale ?? lossScale.initial, goodUpdates: known?.goodUpdates ?? 0 };
}

/** Where it stands after an update. */
export function nextLossScale(at: LossScale, overflowed: boolean, { precision, lossScale }: Training): LossScale {
  if (precision !== 'f16') return at;
  if (overflowed) return { lossScale: at.lossScale * BACKOFF, goodUpdates: 0 };
  const goodUpdates = at.goodUpdates + 1;
  if (goodUpdates < lossScale.growthInterval) return { ...at, goodUpdates };
  return { lossScale: Math.min(MAX_LOSS_SCALE, at.lossScale * GROWTH), goodUpdates: 0 };
}
