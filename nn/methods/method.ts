/**
 * A method turns all branches' outputs into losses: the only thing that knows about distillation. It is one
 * differentiable function with variables of its own (a fusion module, a gate); autodiff gives the cotangents.
 * A new method is one new file, one line here and its options in core/recipe.ts.
 */
import type { Recipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import type { Tensor } from '../tensorflow.ts';
import { dml } from './dml.ts';
import { dualnet } from './dualnet.ts';
import { ffl } from './ffl.ts';
import { one } from './one.ts';
import { vanilla } from './vanilla.ts';

/** What a branch gives to the method: its logits, and of the rest only what the method reads. */
export interface BranchOutputs {
  /** f32[B, classes] */
  logits: Tensor;
  /** [B, H, W, C] in the builder's precision: the last feature map, after its activation, before pooling. */
  map?: Tensor;
  /** f32[B, C]: the mean over that map. */
  pooled?: Tensor;
  /** f32[B, C]: what `gateFeatures` makes of the trunk's map. A shared trunk's comes with branch 0 alone. */
  gate?: Tensor;
}

export type Read = Exclude<keyof BranchOutputs, 'logits'>;

export interface MethodInput {
  branches: BranchOutputs[];
  classes: number;
}

export interface TrainingInput extends MethodInput {
  /** @param logits f32[B, classes]   @returns f32[]: against the batch's labels, as the recipe wants it smoothed */
  crossEntropy(logits: Tensor): Tensor;
  /** f32[]: w(e), the ramp-up weight of the distillation terms. */
  distillWeight: Tensor;
}

/** Loss terms by name, f32[] means over the batch, in a fixed order; `total` is what is differentiated. */
export type LossTerms = Record<string, Tensor> & { total: Tensor };

/** Whose a variable is. */
export interface Owner {
  /** null: the method's own. A shared trunk is branch 0's. */
  branch: number | null;
  /** Of a branch: whether it is part of the classifier. */
  head: boolean;
}

export interface Method {
  /** What it reads of every branch besides the logits. */
  reads: Read[];
  /** @param round one of core/schedule.ts's roundNames */
  losses(b: Builder, input: TrainingInput, round: string): LossTerms;
  /** Every classifier's logits f32[B, C] by name, in a fixed order. */
  classifiers(b: Builder, input: MethodInput): Record<string, Tensor>;
  /** What of the trunk's map [B, H, W, C] the gate sees, f32[B, C]: computed where the map is, so that only this travels. */
  gateFeatures?(b: Builder, map: Tensor): Tensor;
  /** Whether a variable learns in a round. Absent: all do. */
  learns?(owner: Owner, round: string): boolean;
  /** Whether a branch is a fixed function in a round: its running statistics normalise, no gradient passes. Absent: none is. */
  isFixed?(branch: number, round: string): boolean;
}

export function methodOf(recipe: Pick<Recipe, 'method'>): Method {
  const { method } = recipe;
  switch (method.name) {
    case 'vanilla':
      return vanilla();
    case 'ffl':
      return ffl(method);
    case 'dml':
      return dml(method);
    case 'one':
      return one(method);
    case 'dualnet':
      return dualnet(method);
  }
}
