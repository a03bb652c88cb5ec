/** The networks of a recipe in a capture: every branch, from images to what the method reads of it. */
import { branchesOf, type Recipe } from '../core/recipe.ts';
import type { Builder, VariableStore } from './builder.ts';
import { atGradient, cast, globalAveragePool, stopGradient } from './graph/ops.ts';
import type { BranchOutputs, Method } from './methods/method.ts';
import { type Cut, cutOf, type Network, networkOf, type Stage } from './models/network.ts';
import type { Tensor } from './tensorflow.ts';

/** How much of the network a builder's batch norms normalise by the batch: the rest are fixed functions. */
export interface Builders {
  learning: Builder;
  fixed: Builder;
}

export class Branches {
  readonly cuts: readonly { network: Network; cut: Cut }[];
  /** Names of the variables of the classifiers, known from evaluation on, as what follows. */
  readonly heads = new Set<string>();
  /** Names of each stage's weights. */
  private readonly stageWeights = new Map<string, string[]>();
  private readonly recipe: Recipe;
  private readonly classes: number;
  private readonly method: Method;
  private readonly store: VariableStore;
  private readonly shared: boolean;

  constructor(recipe: Recipe, classes: number, method: Method, store: VariableStore) {
    this.recipe = recipe;
    this.classes = classes;
    this.method = method;
    this.store = store;
    this.shared = recipe.trunk === 'shared';
    this.cuts = branchesOf(recipe).map((branch) => {
      const network = networkOf(branch);
      return { network, cut: cutOf(network, recipe) };
    });
  }

  /**
   * Every branch's outputs.
   * @param images by branch: a shared trunk sees the first's
   * @param round null: evaluation
   * @param atTrunks called by autodiff between the branches and the trunks
   */
  all(builders: Builders, images: Tensor[], round: string | null, atTrunks?: () => void): BranchOutputs[] {
    const trunks = (this.shared ? images.slice(0, 1) : images)
      .map((seen, k) => this.trunk(builders, seen, k, round))
      .map((map) => (atTrunks === undefined ? map : atGradient(map, atTrunks)));
    return images.map((_, k) => this.branch(builders, trunks[this.shared ? 0 : k]!, k, round));
  }

  /** Branch k's outputs. */
  one(builders: Builders, images: Tensor, k: number, round: string | null): BranchOutputs {
    return this.branch(builders, this.trunk(builders, images, this.shared ? 0 : k, round), k, round);
  }

  /** A shared trunk's map reaches the gate once: by the first branch. */
  hasGate(k: number): boolean {
    return this.method.reads.includes('gate') && (!this.shared || k === 0);
  }

  private trunk(builders: Builders, images: Tensor, k: number, round: string | null): Tensor {
    return this.runStages(this.cuts[k]!.cut.trunk, this.builderOf(builders, k, round), `trunk.${k}`, images, false);
  }

  private branch(builders: Builders, trunkMap: Tensor, k: number, round: string | null): BranchOutputs {
    const { network, cut } = this.cuts[k]!;
    const fixed = this.isFixed(k, round);
    const b = this.builderOf(builders, k, round);
    const prefix = `branch.${k}`;
    const map = this.runStages(cut.branch, b, prefix, fixed ? stopGradient(trunkMap) : trunkMap, true);
    const { reads } = this.method;
    const pooled = globalAveragePool(cast(map, b.precision, 'f32'));
    const before = this.store.specs.length;
    const logits = network.head(b, prefix, pooled, this.classes);
    for (const { name } of this.store.specs.slice(before)) this.heads.add(name);
    return {
      logits,
      ...(reads.includes('map') && { map }),
      ...(reads.includes('pooled') && { pooled }),
      ...(this.hasGate(k) && { gate: this.method.gateFeatures!(b, trunkMap) }),
    };
  }

  /** @param differentiable whether x has a gradient */
  private runStages(stages: Stage[], b: Builder, prefix: string, x: Tensor, differentiable: boolean): Tensor {
    const { recompute } = this.recipe.training;
    return stages.reduce((map, stage, i) => {
      const key = `${prefix}.${stage.name}`;
      const wanted = recompute === true || (Array.isArray(recompute) && recompute.includes(stage.name));
      if (wanted && b.learns) {
        const forward = (builder: Builder, input: Tensor) => stage.forward(builder, prefix, input);
        return b.anew(map, this.stageWeights.get(key)!, forward, differentiable || i > 0);
      }
      const before = this.store.specs.length;
      const made = stage.forward(b, prefix, map);
      const declared = this.store.specs.slice(before).filter(({ trainable }) => trainable);
      if (!this.stageWeights.has(key))
        this.stageWeights.set(
          key,
          declared.map(({ name }) => name),
        );
      return made;
    }, x);
  }

  private isFixed(k: number, round: string | null): boolean {
    return round === null || (this.method.isFixed?.(k, round) ?? false);
  }

  private builderOf(builders: Builders, k: number, round: string | null): Builder {
    return this.isFixed(k, round) ? builders.fixed : builders.learning;
  }
}
