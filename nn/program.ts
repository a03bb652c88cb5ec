/**
 * The graph of one role: a whole replica (`together`), one branch, or the method (`split`).
 *
 * Each role has the phases that change its state, `apply`, `read` and `write`, and those that compute:
 *   replica   compute@n: images, labels -> gradient, losses          evaluate: images, labels -> scores
 *   branch    forward@n: images -> outputs; backward@n: cotangents -> gradient      forwardTest: images -> outputs
 *   method    fuse@n: outputs.k, labels -> losses, gradient, cotangents.k          evaluate: outputs.k, labels -> scores
 * where n is how many samples the shard has. `outputs` is flat: [features | logits].
 *
 * The gradient is flat too: per segment, the gradients of its trainable variables and then the batch statistics of its
 * batch norms, all times the shard's part of the global batch, so that the sum over all shards is the mean over the batch.
 */
import { BraidError } from '../core/errors.ts';
import { branchesOf, type Recipe } from '../core/recipe.ts';
import { Builder, VariableStore } from './builder.ts';
import { type Capture, capture, type Graph } from './graph/capture.ts';
import { cast, crossEntropy, inTopK } from './graph/ops.ts';
import { type MethodInput, methodOf, type TrainingInput } from './methods/method.ts';
import { type BranchOutputs, branch, featureShape, type ImageSize, trunk } from './models/resnet.ts';
import { type Tensor, tf } from './tensorflow.ts';
import { stateLength, type VariableSpec } from './variables.ts';

export type Role = { kind: 'replica' } | { kind: 'branch'; branch: number } | { kind: 'method' };

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
  gradientLength: number;
  /** Parts of the flat gradient that are summed over different workers, in order; together they are all of it. */
  segments: { name: 'all' | 'trunk' | 'branch' | 'method'; offset: number; length: number }[];
  /** Names of the variables, in the order in which the flat gradient has them. */
  gradientOrder: string[];
  losses: string[];
  classifiers: string[];
  /** f32 elements of `outputs`, for each of a branch's forward phases. */
  outputLengths: Record<string, number>;
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

class ProgramBuilder {
  private readonly c: Capture;
  private readonly options: ProgramOptions;
  private readonly store: VariableStore;
  private readonly momenta = new Map<string, ReturnType<Capture['variable']>>();
  private readonly losses: string[] = [];
  private readonly classifiers: string[] = [];
  private readonly outputLengths: Record<string, number> = {};

  constructor(c: Capture, options: ProgramOptions) {
    this.c = c;
    this.options = options;
    const shared = options.recipe.trunk === 'shared';
    this.store = new VariableStore(c, (name) => {
      if (name.startsWith('trunk.')) return shared ? 'trunk' : 'branch';
      return name.startsWith('branch.') ? 'branch' : 'method';
    });
  }

  build(): Program {
    const { role, shardSizes } = this.options;
    // Evaluation first: it declares every variable, so that training can differentiate with respect to all of them.
    if (role.kind === 'branch') this.forwardTest(role.branch);
    else this.evaluate();
    this.store.close();
    for (const { name, shape, trainable } of this.store.specs) {
      if (trainable) this.momenta.set(name, this.c.variable(`${name}/momentum`, shape));
    }
    for (const n of shardSizes) {
      if (role.kind === 'replica') this.compute(n);
      else if (role.kind === 'branch') this.forwardBackward(role.branch, n);
      else this.fuse(n);
    }
    this.apply();
    this.readAndWrite();
    const segments = this.segments();
    return {
      variables: this.store.specs,
      stateLength: stateLength(this.store.specs),
      gradientLength: segments.reduce((sum, { length }) => sum + length, 0),
      segments,
      gradientOrder: segments.flatMap(({ name }) => this.segmentVariables(name).map((v) => v.name)),
      losses: this.losses,
      classifiers: this.classifiers,
      outputLengths: this.outputLengths,
    };
  }

  // ---------------------------------------------------------------------------------------------- together

  private compute(n: number): void {
    const { c } = this;
    c.phase(`compute@${n}`, () => {
      const images = this.images(n);
      const { labels, distillWeight, shardWeight } = this.trainingFeeds(n);
      const trainable = this.store.readTrainable();
      const b = this.builder(trainable);
      let losses: Tensor | undefined;
      const gradients = this.differentiate([...trainable.values()], () => {
        const input = { branches: this.replica(b, images), classes: this.options.classes, labels, distillWeight };
        const { total, flat } = this.lossesOf(b, input);
        losses = tf.keep(flat);
        return total;
      });
      return { gradient: this.flatGradient(b, gradients, shardWeight), losses: losses! };
    });
  }

  private evaluate(): void {
    const { recipe, role } = this.options;
    const { batch } = recipe.evaluation;
    this.c.phase('evaluate', () => {
      const branches =
        role.kind === 'replica'
          ? this.replica(this.builder(null), this.images(batch))
          : this.outputFeeds(batch).branches;
      const labels = this.c.feed('labels', [batch], 'int32');
      return { scores: this.scores(this.builder(null), { branches, classes: this.options.classes }, labels) };
    });
  }

  /** Every branch's outputs for the same images. */
  private replica(b: Builder, images: Tensor): BranchOutputs[] {
    const networks = branchesOf(this.options.recipe);
    const shared = this.options.recipe.trunk === 'shared' ? trunk(b, 'trunk.0', images, networks[0]!) : null;
    return networks.map((network, k) => this.branchOutputs(b, images, shared, network, k));
  }

  private branchOutputs(
    b: Builder,
    images: Tensor,
    shared: Tensor | null,
    network: ReturnType<typeof branchesOf>[number],
    k: number,
  ): BranchOutputs {
    return branch(b, `branch.${k}`, shared ?? trunk(b, `trunk.${k}`, images, network), network, this.options.classes);
  }

  // ---------------------------------------------------------------------------------------------- split: a branch

  private forwardBackward(k: number, n: number): void {
    const { c } = this;
    const [forward, backward] = [`forward@${n}`, `backward@${n}`];
    c.continueIn(backward);
    const length = this.outputLength(k, n);
    const cotangents = c.feed('cotangents', [length]);
    const shardWeight = c.feed('shardWeight', []);
    c.continueIn(forward);
    const images = this.images(n);
    const trainable = this.store.readTrainable();
    const b = this.builder(trainable);
    const gradients = this.differentiate(
      [...trainable.values()],
      () => {
        const outputs = this.flatOutputs(b, this.ownBranch(b, images, k));
        c.fetch('outputs', outputs);
        c.continueIn(backward); // autodiff runs now, and is another session run
        return outputs;
      },
      cotangents,
    );
    c.fetch('gradient', this.flatGradient(b, gradients, shardWeight));
    this.outputLengths[`train@${n}`] = length;
  }

  private forwardTest(k: number): void {
    const { batch } = this.options.recipe.evaluation;
    const b = this.builder(null);
    this.c.phase('forwardTest', () => ({ outputs: this.flatOutputs(b, this.ownBranch(b, this.images(batch), k)) }));
    this.outputLengths.test = this.outputLength(k, batch);
  }

  private ownBranch(b: Builder, images: Tensor, k: number): BranchOutputs {
    const { recipe } = this.options;
    const network = branchesOf(recipe)[k];
    if (network === undefined) throw new BraidError('INTERNAL', `branch ${k} of ${branchesOf(recipe).length}`);
    const shared = recipe.trunk === 'shared' ? trunk(b, 'trunk.0', images, network) : null;
    return this.branchOutputs(b, images, shared, network, k);
  }

  private flatOutputs(b: Builder, { features, logits }: BranchOutputs): Tensor {
    const maps = cast(features, b.precision, 'f32');
    return tf.concat([tf.reshape(maps, [maps.size]), tf.reshape(logits, [logits.size])]);
  }

  private outputLength(k: number, n: number): number {
    const [h, w, c] = this.featureShape(k);
    return n * (h * w * c + this.options.classes);
  }

  private featureShape(k: number): [number, number, number] {
    return featureShape(branchesOf(this.options.recipe)[k]!, this.options.image);
  }

  // ---------------------------------------------------------------------------------------------- split: the method

  private fuse(n: number): void {
    const { c } = this;
    c.phase(`fuse@${n}`, () => {
      const { flats } = this.outputFeeds(n);
      const { labels, distillWeight, shardWeight } = this.trainingFeeds(n);
      const trainable = this.store.readTrainable();
      const b = this.builder(trainable);
      let losses: Tensor | undefined;
      const gradients = this.differentiate([...flats, ...trainable.values()], () => {
        const branches = flats.map((flat, k) => this.unflatten(flat, k, n));
        const { total, flat } = this.lossesOf(b, { branches, classes: this.options.classes, labels, distillWeight });
        losses = tf.keep(flat);
        return total;
      });
      const cotangents = Object.fromEntries(flats.map((_, k) => [`cotangents.${k}`, gradients[k]!]));
      const fetches: Record<string, Tensor> = { losses: losses!, ...cotangents };
      const own = gradients.slice(flats.length);
      if (own.length > 0) fetches.gradient = this.flatGradient(b, own, shardWeight);
      return fetches;
    });
  }

  private outputFeeds(n: number): { flats: Tensor[]; branches: BranchOutputs[] } {
    const flats = branchesOf(this.options.recipe).map((_, k) => this.c.feed(`outputs.${k}`, [this.outputLength(k, n)]));
    return { flats, branches: flats.map((flat, k) => this.unflatten(flat, k, n)) };
  }

  private unflatten(flat: Tensor, k: number, n: number): BranchOutputs {
    const [h, w, c] = this.featureShape(k);
    const [maps, logits] = tf.split(flat, [n * h * w * c, n * this.options.classes]);
    return {
      features: cast(tf.reshape(maps!, [n, h, w, c]), 'f32', this.options.recipe.training.precision),
      logits: tf.reshape(logits!, [n, this.options.classes]),
    };
  }

  // ---------------------------------------------------------------------------------------------- shared parts

  private builder(trainable: Map<string, Tensor> | null): Builder {
    return new Builder(this.store, this.options.recipe.training.precision, trainable);
  }

  /** Fed as bytes, normalised here: (x - mean) / std on the 0..255 scale. */
  private images(n: number): Tensor {
    const { image, recipe } = this.options;
    const { mean, std } = recipe.data;
    const bytes = this.c.feedBytes('images', [n, image.height, image.width, image.channels]);
    const centred = tf.sub(bytes, tf.tensor1d(mean));
    return cast(tf.mul(centred, tf.tensor1d(std.map((s) => 1 / s))), 'f32', recipe.training.precision);
  }

  private trainingFeeds(n: number): { labels: Tensor; distillWeight: Tensor; shardWeight: Tensor } {
    const { c } = this;
    return {
      labels: c.feed('labels', [n], 'int32'),
      distillWeight: c.feed('distillWeight', []),
      shardWeight: c.feed('shardWeight', []),
    };
  }

  private lossesOf(b: Builder, input: TrainingInput): { total: Tensor; flat: Tensor } {
    const terms = methodOf(this.options.recipe).losses(b, input);
    this.losses.splice(0, Infinity, ...Object.keys(terms));
    return { total: terms.total, flat: tf.stack(Object.values(terms)) };
  }

  /** d y / d xs, by tfjs's autodiff. A tensor that y does not depend on is an error. */
  private differentiate(xs: Tensor[], y: () => Tensor, dy?: Tensor): Tensor[] {
    return tf.engine().gradients(y as never, xs, (dy ?? null) as never).grads;
  }

  private flatGradient(b: Builder, gradients: Tensor[], shardWeight: Tensor): Tensor {
    const { role, recipe } = this.options;
    const trainable = this.store.specs.filter((v) => v.trainable);
    const byName = new Map([...trainable.map((v, i) => [v.name, gradients[i]!] as const), ...b.statistics]);
    // In `split` every branch's worker brings the same statistics of a shared trunk, and they are summed.
    const sharers = role.kind === 'branch' ? branchesOf(recipe).length : 1;
    const part = (v: VariableSpec): Tensor => {
      const flat = tf.reshape(byName.get(v.name)!, [v.size]);
      const shared = !v.trainable && v.segment === 'trunk' && sharers > 1;
      return shared ? tf.mul(flat, tf.scalar(1 / sharers)) : flat;
    };
    const parts = this.segments().flatMap(({ name }) => this.segmentVariables(name).map(part));
    return tf.mul(tf.concat(parts), shardWeight);
  }

  /** A segment's variables in gradient order: trainable ones, then running statistics. */
  private segmentVariables(name: string): VariableSpec[] {
    const own = this.store.specs.filter((v) => name === 'all' || v.segment === name);
    return [...own.filter((v) => v.trainable), ...own.filter((v) => !v.trainable)];
  }

  private segments(): Program['segments'] {
    const names = this.options.role.kind === 'replica' ? (['all'] as const) : (['trunk', 'branch', 'method'] as const);
    let offset = 0;
    return names.flatMap((name) => {
      const length = this.segmentVariables(name).reduce((sum, v) => sum + v.size, 0);
      const segment = { name, offset, length };
      offset += length;
      return length === 0 ? [] : [segment];
    });
  }

  private scores(b: Builder, input: MethodInput, labels: Tensor): Tensor {
    const present = tf.greaterEqual(labels, tf.scalar(0, 'int32')); // -1 pads the last batch
    const targets = tf.maximum(labels, tf.scalar(0, 'int32'));
    const count = (hits: Tensor) => tf.sum(tf.cast(tf.logicalAnd(hits, present), 'float32'));
    const classifiers = methodOf(this.options.recipe).classifiers(b, input);
    this.classifiers.push(...Object.keys(classifiers));
    return tf.stack(
      Object.values(classifiers).flatMap((logits) => [
        count(inTopK(logits, targets, 1)),
        count(inTopK(logits, targets, Math.min(TOP_K, this.options.classes))),
        tf.sum(tf.mul(crossEntropy(logits, targets), tf.cast(present, 'float32'))),
      ]),
    );
  }

  // ---------------------------------------------------------------------------------------------- state

  /** SGD with coupled weight decay: g + wd w enters the momentum, as in PyTorch. */
  private apply(): void {
    const { recipe } = this.options;
    const { momentum, nesterov, weightDecay, fusionWeightDecay } = recipe.training;
    const variables = this.segments().flatMap(({ name }) => this.segmentVariables(name));
    if (variables.length === 0) return;
    const total = variables.reduce((sum, v) => sum + v.size, 0);
    this.c.phase('apply', () => {
      const learningRate = this.c.feed('learningRate', []);
      const parts = tf.split(
        this.c.feed('gradient', [total]),
        variables.map((v) => v.size),
      );
      variables.forEach((spec, i) => {
        const variable = this.store.get(spec.name);
        const part = tf.reshape(parts[i]!, spec.shape);
        if (spec.trainable) {
          const decay = spec.segment === 'method' ? fusionWeightDecay : weightDecay;
          const gradient = tf.add(part, tf.mul(variable.read(), tf.scalar(decay)));
          variable.applyMomentum(this.momenta.get(spec.name)!, learningRate, gradient, momentum, nesterov);
        } else {
          const kept = tf.mul(variable.read(), tf.scalar(RUNNING_DECAY));
          variable.assign(tf.add(kept, tf.mul(part, tf.scalar(1 - RUNNING_DECAY))));
        }
      });
      return {};
    });
  }

  private readAndWrite(): void {
    const { specs } = this.store;
    if (specs.length === 0) return;
    const trainable = specs.filter((v) => v.trainable);
    const variables = [...specs.map((v) => this.store.get(v.name)), ...trainable.map((v) => this.momenta.get(v.name)!)];
    const sizes = [...specs, ...trainable].map((v) => v.size);
    this.c.phase('read', () => ({ state: tf.concat(variables.map((v, i) => tf.reshape(v.read(), [sizes[i]!]))) }));
    this.c.phase('write', () => {
      const parts = tf.split(this.c.feed('state', [sizes.reduce((a, b) => a + b, 0)]), sizes);
      for (const [i, variable] of variables.entries()) variable.assign(tf.reshape(parts[i]!, variable.shape));
      return {};
    });
  }
}
