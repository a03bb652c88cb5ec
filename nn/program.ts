/**
 * The graph of one role: a whole replica (`together`), one branch, or the method (`split`).
 *
 * Each role has the phases that change its state, `apply`, `read` and `write`, and those that compute:
 *   replica   compute@n: images, labels -> gradient, losses          evaluate: images, labels -> scores
 *   branch    forward@n: images -> outputs; backward@n: cotangents -> gradient      forwardTest: images -> outputs
 *   method    fuse@n: outputs.k, labels -> losses, gradient, cotangents.k          evaluate: outputs.k, labels -> scores
 * where n is how many samples the shard has, or a micro-batch of it: with `training.microBatches` gradients are added up on
 * the device. `clear` makes their sum zero, compute@n and backward@n add to it, `gradient` gives it; and forward and backward
 * come in slots (phases.ts). `outputs` is flat: the logits, then what the method reads.
 *
 * A method whose steps are several updates (core/schedule.ts's rounds) has those of training and `apply` once a round, in
 * which only some variables learn: `compute.1@n`, `apply.1` are those of the second.
 *
 * The gradient is flat too: per segment, the gradients of its trainable variables and then the batch statistics of its
 * batch norms, all times the shard's part of the global batch, so that the sum over all shards is the mean over the batch.
 * In f16 the losses are multiplied by `lossScale` before they are differentiated, and so cotangents are; gradients are divided by
 * it before they are anything else's.
 */
import { branchesOf, type Recipe } from '../core/recipe.ts';
import { distinctMicroSizes } from '../core/sampler.ts';
import { roundNames } from '../core/schedule.ts';
import { Builder, VariableStore } from './builder.ts';
import { type Capture, capture, type Graph } from './graph/capture.ts';
import {
  cast,
  globalAveragePool,
  inTopK,
  logSoftmax,
  packBf16,
  crossEntropy as perSampleCrossEntropy,
  stopGradient,
  unpackBf16,
} from './graph/ops.ts';
import { crossEntropy } from './losses.ts';
import {
  type BranchOutputs,
  type Method,
  type MethodInput,
  methodOf,
  type Owner,
  type TrainingInput,
} from './methods/method.ts';
import { type Cut, cutOf, type Network, networkOf, type Stage, shapeAfter } from './models/network.ts';
import { applyPhase, clearPhase, gradientPhase, SLOTS, trainingPhase } from './phases.ts';
import { recomputed } from './recompute.ts';
import { CALIBRATION_BINS } from './scores.ts';
import { type Tensor, tf } from './tensorflow.ts';
import { stateLength, type VariableSpec } from './variables.ts';

export type Role = { kind: 'replica' } | { kind: 'branch'; branch: number } | { kind: 'method' };

export interface ImageSize {
  height: number;
  width: number;
  channels: number;
}

export interface ProgramOptions {
  recipe: Recipe;
  role: Role;
  image: ImageSize;
  classes: number;
  /** Every distinct shard size of the run, in samples. */
  shardSizes: number[];
}

/** What a program is to those who run it. Plain data. */
export interface Program {
  variables: VariableSpec[];
  /** f32 elements. */
  stateLength: number;
  /** In core/schedule.ts's order. */
  rounds: Round[];
  classifiers: string[];
  /** f32 elements of `outputs`, by the samples of a branch's forward phases, and in evaluation: "train@128", "test". */
  outputLengths: Record<string, number>;
}

/** One update. */
export interface Round {
  /** f32 elements; 0 where nothing of this role learns. */
  gradientLength: number;
  /** Parts of the flat gradient that are summed over different workers, in order; together they are all of it. */
  segments: { name: 'all' | 'trunk' | 'branch' | 'method'; offset: number; length: number }[];
  /** Names of the variables, in the order in which the flat gradient has them. */
  gradientOrder: string[];
  losses: string[];
}

const RUNNING_DECAY = 0.9; // of the running statistics a step: PyTorch's momentum of 0.1
const TOP_K = 5;

export function buildProgram(options: ProgramOptions): { graph: Graph; program: Program } {
  let program: Program | undefined;
  const graph = capture((c) => {
    program = describeProgram(c, options);
  });
  return { graph, program: program! };
}

/** The same, written to any Capture. */
export function describeProgram(c: Capture, options: ProgramOptions): Program {
  return new ProgramBuilder(c, options).build();
}

/** How much of the network a builder's batch norms normalise by the batch: the rest are fixed functions. */
interface Builders {
  learning: Builder;
  fixed: Builder;
}

/** What is multiplied, f32[] each. */
interface Scale {
  /** All of the gradient, by the shard's part of the global batch. */
  shard: Tensor;
  /** The losses, before they are differentiated. Absent: by nothing. */
  loss?: Tensor;
}

class ProgramBuilder {
  private readonly c: Capture;
  private readonly options: ProgramOptions;
  private readonly method: Method;
  private readonly cuts: { network: Network; cut: Cut }[];
  private readonly shared: boolean;
  private readonly store: VariableStore;
  private readonly momenta = new Map<string, ReturnType<Capture['variable']>>();
  /** Names of each stage's weights, known from evaluation on. */
  private readonly stageWeights = new Map<string, string[]>();
  /** Names of the variables of the branches' classifiers. */
  private readonly heads = new Set<string>();
  private readonly rounds: Round[] = [];
  /** By round: sums of micro-batches' gradients. */
  private readonly sums = new Map<number, ReturnType<Capture['variable']>>();
  private readonly classifiers: string[] = [];
  private readonly outputLengths: Record<string, number> = {};

  constructor(c: Capture, options: ProgramOptions) {
    const { recipe } = options;
    this.c = c;
    this.options = options;
    this.method = methodOf(recipe);
    this.shared = recipe.trunk === 'shared';
    this.cuts = branchesOf(recipe).map((branch) => {
      const network = networkOf(branch);
      return { network, cut: cutOf(network, recipe) };
    });
    this.store = new VariableStore(
      c,
      (name) => {
        if (name.startsWith('trunk.')) return this.shared ? 'trunk' : 'branch';
        return /^(branch|gate\.blocks)\./.test(name) ? 'branch' : 'method';
      },
      recipe.training.ema !== null,
    );
  }

  build(): Program {
    const { role, shardSizes, recipe } = this.options;
    // Evaluation first: it declares every variable, so that training can differentiate with respect to all of them.
    if (role.kind === 'branch') this.forwardTest(role.branch);
    else this.evaluate();
    this.store.close();
    for (const { name, shape, trainable } of this.store.specs) {
      if (trainable) this.momenta.set(name, this.c.variable(`${name}/momentum`, shape));
    }
    roundNames(recipe).forEach((name, round) => {
      const segments = this.segments(name);
      this.rounds.push({
        segments,
        gradientLength: segments.reduce((sum, { length }) => sum + length, 0),
        gradientOrder: segments.flatMap((segment) => this.segmentVariables(segment.name, name).map((v) => v.name)),
        losses: [],
      });
      const { microBatches } = recipe.training;
      const pieces = microBatches > 1;
      if (pieces && role.kind !== 'method') this.accumulate(round);
      for (const n of distinctMicroSizes(shardSizes, microBatches)) {
        if (role.kind === 'replica') this.compute(round, name, n);
        else if (role.kind === 'method') this.fuse(round, name, n);
        else
          for (let slot = 0; slot < (pieces ? SLOTS : 1); slot++)
            this.forwardBackward(round, name, role.branch, n, slot);
      }
      this.apply(round, name);
    });
    this.readAndWrite();
    return {
      variables: this.store.specs,
      stateLength: stateLength(this.store.specs),
      rounds: this.rounds,
      classifiers: this.classifiers,
      outputLengths: this.outputLengths,
    };
  }

  // ---------------------------------------------------------------------------------------------- together

  private compute(round: number, name: string, n: number): void {
    const { c } = this;
    c.phase(trainingPhase('compute', round, n), () => {
      const images = this.replicaImages(n);
      const { crossEntropy, distillWeight, scale } = this.trainingFeeds(n);
      const { builders, learning } = this.training(name);
      let losses: Tensor | undefined;
      const loss = () => {
        const branches = this.replica(builders, images, name);
        const input = { branches, classes: this.options.classes, crossEntropy, distillWeight };
        const { total, flat } = this.lossesOf(builders.learning, input, round, name);
        losses = tf.keep(flat);
        return total;
      };
      const gradients = this.differentiate([...learning.values()], loss, scale.loss);
      const gradient = this.flatGradient(round, builders.learning, [...learning.keys()], gradients, scale);
      return { ...this.given(round, gradient), losses: losses! };
    });
  }

  /** The phases around micro-batches. */
  private accumulate(round: number): void {
    const { gradientLength } = this.rounds[round]!;
    if (gradientLength === 0) return;
    const sum = this.c.variable(`gradient/${round}`, [gradientLength]);
    this.sums.set(round, sum);
    this.c.phase(clearPhase(round), () => {
      sum.assign(tf.zeros([gradientLength]));
      return {};
    });
    this.c.phase(gradientPhase(round), () => ({ gradient: sum.read() }));
  }

  /** What a phase fetches of a gradient: nothing where it is added to those of other micro-batches. */
  private given(round: number, gradient: Tensor): Record<string, Tensor> {
    const sum = this.sums.get(round);
    if (sum === undefined) return { gradient };
    sum.add(gradient);
    return {};
  }

  private evaluate(): void {
    const { recipe, role } = this.options;
    const { batch } = recipe.evaluation;
    this.c.phase('evaluate', () => {
      const evaluated = this.evaluated();
      const images = role.kind === 'replica' ? this.sameImages(this.images(batch)) : null;
      const fed = images === null ? this.outputFeeds(batch, evaluated.length) : null;
      const labels = this.c.feed('labels', [batch], 'int32');
      const scores = evaluated.map(({ prefix, fixed }, i) => {
        const branches = images === null ? fed![i]! : this.replica({ learning: fixed, fixed }, images, null);
        return this.scores(fixed, { branches, classes: this.options.classes }, labels, prefix);
      });
      return { scores: tf.concat(scores) };
    });
  }

  // ---------------------------------------------------------------------------------------------- networks

  /** Every branch's outputs. @param images by branch: a shared trunk sees the first's   @param round null: evaluation */
  private replica(builders: Builders, images: Tensor[], round: string | null): BranchOutputs[] {
    const trunk = this.shared ? this.trunk(builders, images[0]!, 0, round) : null;
    return images.map((seen, k) => this.branch(builders, trunk ?? this.trunk(builders, seen, k, round), k, round));
  }

  private ownBranch(builders: Builders, images: Tensor, k: number, round: string | null): BranchOutputs {
    return this.branch(builders, this.trunk(builders, images, this.shared ? 0 : k, round), k, round);
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
    const logits = network.head(b, prefix, pooled, this.options.classes);
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
    const { recompute, precision } = this.options.recipe.training;
    return stages.reduce((map, stage, i) => {
      const key = `${prefix}.${stage.name}`;
      const wanted = recompute === true || (Array.isArray(recompute) && recompute.includes(stage.name));
      if (wanted && b.learns) {
        const weights = this.stageWeights.get(key)!.map((name) => b.value(name));
        return recomputed(map, weights, differentiable || i > 0, (input, again) =>
          // What the second time finds of batch statistics is what the first one has found.
          stage.forward(again ? new Builder(this.store, precision, 'batch', b.values) : b, prefix, input),
        );
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

  /** A shared trunk's map reaches the gate once: by the first branch. */
  private hasGate(k: number): boolean {
    return this.method.reads.includes('gate') && (!this.shared || k === 0);
  }

  private isFixed(k: number, round: string | null): boolean {
    return round === null || (this.method.isFixed?.(k, round) ?? false);
  }

  private builderOf(builders: Builders, k: number, round: string | null): Builder {
    return this.isFixed(k, round) ? builders.fixed : builders.learning;
  }

  // ---------------------------------------------------------------------------------------------- split: a branch

  private forwardBackward(round: number, name: string, k: number, n: number, slot: number): void {
    const { c } = this;
    const [forward, backward] = [trainingPhase('forward', round, n, slot), trainingPhase('backward', round, n, slot)];
    const length = this.wireLength(k, n);
    this.outputLengths[`train@${n}`] = length;
    const learns = this.rounds[round]!.gradientLength > 0;
    if (!learns) {
      c.phase(forward, () => {
        const { builders } = this.training(name);
        return { outputs: this.pack(this.flatOutputs(this.ownBranch(builders, this.images(n), k, name), k), k, n) };
      });
      return;
    }
    c.continueIn(backward);
    const cotangents = this.unpack(c.feed('cotangents', [length]), k, n);
    const scale = this.scaleFeeds();
    c.continueIn(forward);
    const images = this.images(n);
    const { builders, learning } = this.training(name);
    const forwards = () => {
      const outputs = this.flatOutputs(this.ownBranch(builders, images, k, name), k);
      c.fetch('outputs', this.pack(outputs, k, n));
      c.continueIn(backward); // autodiff runs now, and is another session run
      return outputs;
    };
    let gradients: Tensor[];
    if (this.branchLearns(k, name)) gradients = this.differentiate([...learning.values()], forwards, cotangents);
    else {
      // The shared trunk learns, but not by this branch.
      forwards();
      gradients = [...learning.values()].map((value) => tf.mul(value, tf.scalar(0)));
    }
    const gradient = this.flatGradient(round, builders.learning, [...learning.keys()], gradients, scale);
    for (const [key, tensor] of Object.entries(this.given(round, gradient))) c.fetch(key, tensor);
  }

  private forwardTest(k: number): void {
    const { batch } = this.options.recipe.evaluation;
    this.c.phase('forwardTest', () => {
      const images = this.images(batch);
      const outputs = this.evaluated().map(({ fixed }) =>
        this.flatOutputs(this.ownBranch({ learning: fixed, fixed }, images, k, null), k),
      );
      return { outputs: tf.concat(outputs) };
    });
    this.outputLengths.test = this.evaluated().length * this.outputLength(k, batch);
  }

  private flatOutputs(outputs: BranchOutputs, k: number): Tensor {
    const { precision } = this.options.recipe.training;
    const parts = this.outputShapes(k, 1).map(([name]) => {
      const tensor = name === 'map' ? cast(outputs.map!, precision, 'f32') : outputs[name]!;
      return tf.reshape(tensor, [tensor.size]);
    });
    return parts.length === 1 ? parts[0]! : tf.concat(parts);
  }

  /** What branch k's flat outputs hold, in order. */
  private outputShapes(k: number, n: number): [keyof BranchOutputs, number[]][] {
    const { image, classes } = this.options;
    const { reads } = this.method;
    const { network, cut } = this.cuts[k]!;
    const [height, width, channels] = shapeAfter(network.stages, image);
    const shapes: [keyof BranchOutputs, number[]][] = [['logits', [n, classes]]];
    if (reads.includes('map')) shapes.push(['map', [n, height, width, channels]]);
    if (reads.includes('pooled')) shapes.push(['pooled', [n, channels]]);
    if (this.hasGate(k)) shapes.push(['gate', [n, shapeAfter(cut.trunk, image)[2]]]);
    return shapes;
  }

  private outputLength(k: number, n: number): number {
    return this.outputShapes(k, n).reduce((sum, [, shape]) => sum + sizeOf(shape), 0);
  }

  /**
   * Flat outputs, or their cotangents, as they travel in training: with `featureWire: bf16` two values of the map in each f32's
   * place, the last one with a zero where they are odd. The rest is small, and stays f32.
   */
  private pack(flat: Tensor, k: number, n: number): Tensor {
    const sizes = this.wireSizes(k, n);
    if (sizes.every(({ packed }) => !packed)) return flat;
    const parts = tf.split(
      flat,
      sizes.map(({ size }) => size),
    );
    const wired = sizes.map(({ size, packed }, i) => {
      const part = parts[i]!;
      if (!packed) return part;
      return packBf16(size % 2 === 0 ? part : tf.concat([part, tf.zeros([1])]));
    });
    return wired.length === 1 ? wired[0]! : tf.concat(wired);
  }

  private unpack(wired: Tensor, k: number, n: number): Tensor {
    const sizes = this.wireSizes(k, n);
    if (sizes.every(({ packed }) => !packed)) return wired;
    const parts = tf.split(
      wired,
      sizes.map(({ words }) => words),
    );
    return tf.concat(
      sizes.map(({ size, packed }, i) => (packed ? tf.slice(unpackBf16(parts[i]!), 0, size) : parts[i]!)),
    );
  }

  private wireLength(k: number, n: number): number {
    return this.wireSizes(k, n).reduce((sum, { words }) => sum + words, 0);
  }

  private wireSizes(k: number, n: number): { size: number; packed: boolean; words: number }[] {
    const bf16 = this.options.recipe.cluster.featureWire === 'bf16';
    return this.outputShapes(k, n).map(([name, shape]) => {
      const size = sizeOf(shape);
      const packed = bf16 && name === 'map';
      return { size, packed, words: packed ? Math.ceil(size / 2) : size };
    });
  }

  // ---------------------------------------------------------------------------------------------- split: the method

  private fuse(round: number, name: string, n: number): void {
    const { c } = this;
    c.phase(trainingPhase('fuse', round, n), () => {
      const flats = this.cuts.map((_, k) => this.unpack(c.feed(`outputs.${k}`, [this.wireLength(k, n)]), k, n));
      const { crossEntropy, distillWeight, scale } = this.trainingFeeds(n);
      const { builders, learning } = this.training(name);
      const taught = flats.flatMap((_, k) => (this.branchLearns(k, name) ? [k] : []));
      let losses: Tensor | undefined;
      const xs = [...taught.map((k) => flats[k]!), ...learning.values()];
      const loss = () => {
        const branches = flats.map((flat, k) => this.unflatten(flat, k, n));
        const input = { branches, classes: this.options.classes, crossEntropy, distillWeight };
        const { total, flat } = this.lossesOf(builders.learning, input, round, name);
        losses = tf.keep(flat);
        return total;
      };
      const gradients = this.differentiate(xs, loss, scale.loss);
      const fetches: Record<string, Tensor> = { losses: losses! };
      taught.forEach((k, i) => {
        fetches[`cotangents.${k}`] = this.pack(gradients[i]!, k, n);
      });
      const own = gradients.slice(taught.length);
      if (own.length > 0)
        fetches.gradient = this.flatGradient(round, builders.learning, [...learning.keys()], own, scale);
      return fetches;
    });
  }

  /** Whether any variable of the branch may learn. */
  private branchLearns(branch: number, round: string): boolean {
    const { learns } = this.method;
    return learns === undefined || [true, false].some((head) => learns({ branch, head }, round));
  }

  /** @returns [weights' or averages'][branch], as forwardTest puts them one after another */
  private outputFeeds(n: number, copies: number): BranchOutputs[][] {
    const flats = this.cuts.map((_, k) => {
      const length = this.outputLength(k, n);
      return tf.split(this.c.feed(`outputs.${k}`, [copies * length]), new Array<number>(copies).fill(length));
    });
    return Array.from({ length: copies }, (_, i) => flats.map((parts, k) => this.unflatten(parts[i]!, k, n)));
  }

  private unflatten(flat: Tensor, k: number, n: number): BranchOutputs {
    const shapes = this.outputShapes(k, n);
    const sizes = shapes.map(([, shape]) => sizeOf(shape));
    const parts = shapes.length === 1 ? [flat] : tf.split(flat, sizes);
    const named = shapes.map(([name, shape], i) => {
      const tensor = tf.reshape(parts[i]!, shape);
      return [name, name === 'map' ? cast(tensor, 'f32', this.options.recipe.training.precision) : tensor] as const;
    });
    return Object.fromEntries(named) as unknown as BranchOutputs;
  }

  // ---------------------------------------------------------------------------------------------- shared parts

  /** Builders over one reading of all variables, and those of the role's that learn in the round. */
  private training(round: string): { builders: Builders; learning: Map<string, Tensor> } {
    const { precision } = this.options.recipe.training;
    const values = this.store.readTrainable();
    const builders = {
      learning: new Builder(this.store, precision, 'batch', values),
      fixed: new Builder(this.store, precision, 'running', values),
    };
    const learning = new Map([...values].filter(([name]) => this.learns(name, round)));
    return { builders, learning };
  }

  /** What evaluation looks at, and what its classifiers' names begin with. */
  private evaluated(): { prefix: string; fixed: Builder }[] {
    const { ema, precision } = this.options.recipe.training;
    const weights = { prefix: '', fixed: new Builder(this.store, precision, 'running') };
    if (ema === null) return [weights];
    const averages = new Builder(this.store, precision, 'averages');
    if (ema.evaluate === 'instead') return [{ prefix: '', fixed: averages }];
    return [weights, { prefix: 'ema.', fixed: averages }];
  }

  private learns(name: string, round: string): boolean {
    const owner: Owner = { branch: branchNumber(name), head: this.heads.has(name) };
    return this.method.learns?.(owner, round) ?? true;
  }

  /** By branch: all see the same, or (data.perBranch) each what is augmented for it; a sample's images are one after another. */
  private replicaImages(n: number): Tensor[] {
    const branches = this.cuts.length;
    if (!this.options.recipe.data.perBranch) return this.sameImages(this.images(n));
    const images = this.images(n * branches);
    const shape: [number, number, number, number] = [n, ...(images.shape.slice(1) as [number, number, number])];
    const bySample = tf.reshape(images, [n, branches, images.size / (n * branches)]);
    return tf.split(bySample, branches, 1).map((seen) => tf.reshape(seen, shape));
  }

  private sameImages(images: Tensor): Tensor[] {
    return this.cuts.map(() => images);
  }

  /** Fed as bytes, normalised here: (x - mean) / std on the 0..255 scale. */
  private images(n: number): Tensor {
    const { image, recipe } = this.options;
    const { mean, std } = recipe.data;
    const bytes = this.c.feedBytes('images', [n, image.height, image.width, image.channels]);
    const centred = tf.sub(bytes, tf.tensor1d(mean));
    return cast(tf.mul(centred, tf.tensor1d(std.map((s) => 1 / s))), 'f32', recipe.training.precision);
  }

  private trainingFeeds(n: number): Pick<TrainingInput, 'crossEntropy' | 'distillWeight'> & { scale: Scale } {
    const { c } = this;
    const { labelSmoothing } = this.options.recipe.training;
    const labels = c.feed('labels', [n], 'int32');
    return {
      crossEntropy: (logits) => crossEntropy(logits, labels, labelSmoothing),
      distillWeight: c.feed('distillWeight', []),
      scale: this.scaleFeeds(),
    };
  }

  private scaleFeeds(): Scale {
    const f16 = this.options.recipe.training.precision === 'f16';
    return { shard: this.c.feed('shardWeight', []), ...(f16 && { loss: this.c.feed('lossScale', []) }) };
  }

  private lossesOf(b: Builder, input: TrainingInput, round: number, name: string): { total: Tensor; flat: Tensor } {
    const terms = this.method.losses(b, input, name);
    this.rounds[round]!.losses = Object.keys(terms);
    return { total: terms.total, flat: tf.stack(Object.values(terms)) };
  }

  /** d y / d xs, by tfjs's autodiff. A tensor that y does not depend on is an error. */
  private differentiate(xs: Tensor[], y: () => Tensor, dy?: Tensor): Tensor[] {
    if (xs.length === 0) {
      y();
      return [];
    }
    return tf.engine().gradients(y as never, xs, (dy ?? null) as never).grads;
  }

  private flatGradient(round: number, b: Builder, names: string[], gradients: Tensor[], scale: Scale): Tensor {
    const { role } = this.options;
    const unscale = scale.loss === undefined ? null : tf.div(tf.scalar(1), scale.loss);
    const byName = new Map([...names.map((name, i) => [name, gradients[i]!] as const), ...b.statistics]);
    // In `split` every branch's worker brings the same statistics of a shared trunk, and they are summed.
    const sharers = role.kind === 'branch' ? this.cuts.length : 1;
    const specs = new Map(this.store.specs.map((v) => [v.name, v]));
    const parts = this.rounds[round]!.gradientOrder.map((name) => {
      const v = specs.get(name)!;
      const flat = tf.reshape(byName.get(name)!, [v.size]);
      if (v.trainable) return unscale === null ? flat : tf.mul(flat, unscale);
      const shared = v.segment === 'trunk' && sharers > 1;
      return shared ? tf.mul(flat, tf.scalar(1 / sharers)) : flat;
    });
    return tf.mul(tf.concat(parts), scale.shard);
  }

  /** A segment's variables that learn in a round, in gradient order: trainable ones, then running statistics. */
  private segmentVariables(segment: string, round: string): VariableSpec[] {
    const own = this.store.specs.filter(
      (v) => (segment === 'all' || v.segment === segment) && this.learns(v.name, round),
    );
    return [...own.filter((v) => v.trainable), ...own.filter((v) => !v.trainable)];
  }

  private segments(round: string): Round['segments'] {
    const names = this.options.role.kind === 'replica' ? (['all'] as const) : (['trunk', 'branch', 'method'] as const);
    let offset = 0;
    return names.flatMap((name) => {
      const length = this.segmentVariables(name, round).reduce((sum, v) => sum + v.size, 0);
      const segment = { name, offset, length };
      offset += length;
      return length === 0 ? [] : [segment];
    });
  }

  /** nn/scores.ts's values for every classifier. */
  private scores(b: Builder, input: MethodInput, labels: Tensor, prefix: string): Tensor {
    const present = tf.cast(tf.greaterEqual(labels, tf.scalar(0, 'int32')), 'float32'); // -1 pads the last batch
    const targets = tf.maximum(labels, tf.scalar(0, 'int32'));
    const hits = (logits: Tensor, k: number) => tf.mul(tf.cast(inTopK(logits, targets, k), 'float32'), present);
    const bins = tf.tensor1d(Array.from({ length: CALIBRATION_BINS - 1 }, (_, i) => (i + 1) / CALIBRATION_BINS));
    const classifiers = this.method.classifiers(b, input);
    this.classifiers.push(...Object.keys(classifiers).map((name) => `${prefix}${name}`));
    return tf.concat(
      Object.values(classifiers).flatMap((logits) => {
        const right = hits(logits, 1);
        const confidence = tf.exp(tf.max(logSoftmax(logits), 1, true)); // [B, 1]
        const reached = tf.mul(tf.cast(tf.greaterEqual(confidence, bins), 'float32'), tf.expandDims(present, 1));
        // Of those that reached each edge (all reach the first): how many, their confidences, how many right.
        const counted = tf.concat([tf.expandDims(present, 1), reached], 1); // [B, bins]
        return [
          tf.stack([
            tf.sum(right),
            tf.sum(hits(logits, Math.min(TOP_K, this.options.classes))),
            tf.sum(tf.mul(perSampleCrossEntropy(logits, targets), present)),
          ]),
          tf.sum(counted, 0),
          tf.sum(tf.mul(counted, confidence), 0),
          tf.sum(tf.mul(counted, tf.expandDims(right, 1)), 0),
        ];
      }),
    );
  }

  // ---------------------------------------------------------------------------------------------- state

  /** SGD with coupled weight decay: g + wd w enters the momentum, as in PyTorch. Averages follow what has changed. */
  private apply(round: number, name: string): void {
    const { recipe } = this.options;
    const { momentum, nesterov, ema } = recipe.training;
    const variables = this.segments(name).flatMap((segment) => this.segmentVariables(segment.name, name));
    if (variables.length === 0) return;
    this.c.phase(applyPhase(round), () => {
      const learningRate = this.c.feed('learningRate', []);
      const parts = tf.split(
        this.c.feed('gradient', [this.rounds[round]!.gradientLength]),
        variables.map((v) => v.size),
      );
      variables.forEach((spec, i) => {
        const variable = this.store.get(spec.name);
        const part = tf.reshape(parts[i]!, spec.shape);
        let changed: Tensor;
        if (spec.trainable) {
          const decay = weightDecayOf(spec, recipe.training);
          const gradient = tf.add(part, tf.mul(variable.read(), tf.scalar(decay)));
          changed = variable.applyMomentum(this.momenta.get(spec.name)!, learningRate, gradient, momentum, nesterov);
        } else {
          changed = blend(variable.read(), part, RUNNING_DECAY);
          variable.assign(changed);
        }
        if (ema === null) return;
        const average = this.store.average(spec.name);
        average.assign(blend(average.read(), changed, ema.decay));
      });
      return {};
    });
  }

  private readAndWrite(): void {
    const { specs } = this.store;
    if (specs.length === 0) return;
    const trainable = specs.filter((v) => v.trainable);
    const averaged = this.options.recipe.training.ema === null ? [] : specs;
    const variables = [
      ...specs.map((v) => this.store.get(v.name)),
      ...trainable.map((v) => this.momenta.get(v.name)!),
      ...averaged.map((v) => this.store.average(v.name)),
    ];
    const sizes = [...specs, ...trainable, ...averaged].map((v) => v.size);
    this.c.phase('read', () => ({ state: tf.concat(variables.map((v, i) => tf.reshape(v.read(), [sizes[i]!]))) }));
    this.c.phase('write', () => {
      const parts = tf.split(this.c.feed('state', [sizes.reduce((a, b) => a + b, 0)]), sizes);
      for (const [i, variable] of variables.entries()) variable.assign(tf.reshape(parts[i]!, variable.shape));
      return {};
    });
  }
}

/** decay a + (1 - decay) b */
function blend(a: Tensor, b: Tensor, decay: number): Tensor {
  return tf.add(tf.mul(a, tf.scalar(decay)), tf.mul(b, tf.scalar(1 - decay)));
}

/** The weight-decay group of a variable: FFL's fusion module, batch norms and biases, or all other weights. */
export function weightDecayOf(
  { name, kind }: Pick<VariableSpec, 'name' | 'kind'>,
  training: Recipe['training'],
): number {
  if (name.startsWith('fusion.')) return training.fusionWeightDecay;
  return kind === 'vector' ? (training.normWeightDecay ?? training.weightDecay) : training.weightDecay;
}

/** Whose a variable is: 'trunk.1.conv1.weight' is branch 1's; null: the method's own. */
function branchNumber(name: string): number | null {
  const match = /^(?:trunk|branch)\.(\d+)\./.exec(name);
  return match === null ? null : Number(match[1]);
}

function sizeOf(shape: number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
