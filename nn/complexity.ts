/** What a recipe's networks cost, without running anything: parameters and multiply-adds. */
import { branchesOf, type Recipe } from '../core/recipe.ts';
import { Builder, VariableStore } from './builder.ts';
import { capture } from './graph/capture.ts';
import { globalAveragePool } from './graph/ops.ts';
import { type BranchOutputs, methodOf } from './methods/method.ts';
import { cutOf, networkOf, runStages } from './models/network.ts';
import { parameterCount } from './variables.ts';

export interface Cost {
  /** Trainable numbers. */
  parameters: number;
  /** Of convolutions and linear layers, to classify one image. FLOPs are twice as many. */
  multiplyAdds: number;
}

export interface Complexity extends Cost {
  /** By branch: the network that would be deployed, which is trunk, branch and classifier. */
  branches: Cost[];
}

/** The whole is all that evaluation runs: a shared trunk once, every branch, and the method's own layers. */
export function complexityOf(
  recipe: Recipe,
  image: { height: number; width: number; channels: number },
  classes: number,
): Complexity {
  const method = methodOf(recipe);
  const networks = branchesOf(recipe).map(networkOf);
  const cuts = networks.map((network) => cutOf(network, recipe));
  const branches: Cost[] = [];
  let whole: Cost | undefined;
  capture((c) => {
    const store = new VariableStore(c, () => 'branch');
    const b = new Builder(store, 'f32', 'running');
    const soFar = (): Cost => ({ parameters: parameterCount(store.specs), multiplyAdds: b.multiplyAdds });
    const withCost = <Built extends object>(build: () => Built): Built & { cost: Cost } => {
      const before = soFar();
      return { ...build(), cost: minus(soFar(), before) };
    };
    c.phase('evaluate', () => {
      const images = c.feed('images', [1, image.height, image.width, image.channels]);
      const trunkOf = (k: number) => withCost(() => ({ map: runStages(cuts[k]!.trunk, b, `trunk.${k}`, images) }));
      const shared = recipe.trunk === 'shared' ? trunkOf(0) : null;
      const outputs = networks.map((network, k): BranchOutputs => {
        const trunk = shared ?? trunkOf(k);
        const { cost, ...branch } = withCost(() => {
          const map = runStages(cuts[k]!.branch, b, `branch.${k}`, trunk.map);
          const pooled = globalAveragePool(map);
          return { map, pooled, logits: network.head(b, `branch.${k}`, pooled, classes) };
        });
        branches.push(plus(trunk.cost, cost));
        const gated = shared === null || k === 0;
        return { ...branch, ...(gated && method.gateFeatures && { gate: method.gateFeatures(b, trunk.map) }) };
      });
      const classifiers = method.classifiers(b, { branches: outputs, classes });
      whole = soFar();
      return classifiers;
    });
  });
  return { ...whole!, branches };
}

function plus(a: Cost, b: Cost): Cost {
  return { parameters: a.parameters + b.parameters, multiplyAdds: a.multiplyAdds + b.multiplyAdds };
}

function minus(a: Cost, b: Cost): Cost {
  return { parameters: a.parameters - b.parameters, multiplyAdds: a.multiplyAdds - b.multiplyAdds };
}
