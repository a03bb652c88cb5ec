/** What is known of a recipe before it is trained: everything that can be refused is refused here. */
import { planRun } from '../coordinator/plan.ts';
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import { openDataset } from '../input/dataset.ts';
import type { Complexity } from '../nn/complexity.ts';
import { complexitiesOf } from './complexity.ts';
import { imagesOf } from './finished-run.ts';

export interface Survey {
  stepsPerEpoch: number;
  /** Training images of the whole run, each as often as it is seen. */
  images: number;
  complexity: Complexity;
}

/**
 * @returns by recipe
 * @throws BraidError INVALID_DATA, INVALID_RECIPE and others, as a run of the recipe would
 */
export async function surveyOf(recipes: Recipe[], signal: AbortSignal): Promise<Survey[]> {
  const plans = [];
  for (const recipe of recipes) {
    const { train, test, image, classes, steps, stepsPerEpoch } = await planRun(recipe, openDataset);
    train.close();
    test.close();
    plans.push({ recipe, image, classes, stepsPerEpoch, images: imagesOf(steps, train.length, recipe.training.batch) });
  }
  const complexities = await complexitiesOf(plans, signal);
  return plans.map(({ stepsPerEpoch, images }, i) => ({ stepsPerEpoch, images, complexity: complexities[i]! }));
}

/** The complexity of a finished run's networks; null where its recipe or its data are not here. */
export async function surveyIfPossible(recipe: Recipe | null, signal: AbortSignal): Promise<Complexity | null> {
  if (recipe === null) return null;
  try {
    const [survey] = await surveyOf([recipe], signal);
    return survey!.complexity;
  } catch (thrown) {
    if (thrown instanceof BraidError && ['INVALID_DATA', 'INVALID_RECIPE'].includes(thrown.code)) return null;
    throw thrown;
  }
}
