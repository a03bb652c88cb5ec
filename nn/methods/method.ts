/**
 * A method turns all branches' features and logits into losses: the only thing that knows about distillation. It is
 * one differentiable function with variables of its own (a fusion module, a gate); autodiff gives the cotangents.
 * A new method is one new file and one line here.
 */
import type { Recipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import type { BranchOutputs } from '../models/resnet.ts';
import type { Tensor } from '../tensorflow.ts';
import { ffl } from './ffl.ts';
import { vanilla } from './vanilla.ts';

export interface MethodInput {
  branches: BranchOutputs[];
  classes: number;
}

export interface TrainingInput extends MethodInput {
  /** i32[B] */
  labels: Tensor;
  /** f32[]: w(e), the ramp-up weight of the distillation terms. */
  distillWeight: Tensor;
}

export interface Method {
  /** Loss terms by name, f32[] means over the batch, in a fixed order; `total` is what is differentiated. */
  losses(b: Builder, input: TrainingInput): Record<string, Tensor> & { total: Tensor };
  /** Every classifier's logits f32[B, C] by name, in a fixed order. */
  classifiers(b: Builder, input: MethodInput): Record<string, Tensor>;
}

export function methodOf(recipe: Pick<Recipe, 'method'>): Method {
  const { method } = recipe;
  switch (method.name) {
    case 'vanilla':
      return vanilla();
    case 'ffl':
      return ffl(method);
  }
}
