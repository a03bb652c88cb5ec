/**
 * The graph of one role: a whole replica (`together`), one branch, or the method (`split`).
 *
 * Each role has the phases that change its state, `apply`, `read` and `write`, and those that compute:
 *   replica   compute@n: images, labels -> gradient, losses          evaluate: images, labels -> scores
 *             with `cluster.overlap` compute@n's gradient is without the trunks', which trunkBackward@n goes on to compute
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
 *
 * One file, because all roles are put together of the same parts: builders, losses, the flat gradient.
 */
import { evaluationBatchOf, type Recipe } from '../core/recipe.ts';
import { distinctMicroSizes } from '../core/sampler.ts';
import { roundNames } from '../core/schedule.ts';
import { Branches, type Builders } from './branches.ts';
import { Builder, VariableStore } from './builder.ts';
import { Feeds, type ImageSize, type Scale } from './feeds.ts';
import { flatLength, flatOffsets, flatParts } from './flat.ts';
import { type Capture, capture, type Graph, type Variable } from './graph/capture.ts';
import { type BranchOutputs, type Method, methodOf, type Owner, type TrainingInput } from './methods/method.ts';
import { Outputs } from './outputs.ts';
import {
  applyPhase,
  clearPhase,
  gradientPhase,
  isOverlapped,
  replicaSegments,
  type Segment,
  SLOTS,
  trainingPhase,
} from './phases.ts';
import { scoresOf } from './scoring.ts';
import { applyIn, type Learnt, readAndWrite } from './state.ts';
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
  segments: Segment[];
  /** By variable: where in the flat gradient it begins. */
  gradientOffsets: Record<string, number>;
  losses: string[];
}

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
  private readonly method: Method;
  private readonly feeds: Feeds;
  private readonly store: VariableStore;
  private readonly branches: Branches;
  private readonly outputs: Outputs;
  private readonly momenta = new Map<string, Variable>();
  private readonly rounds: Round[] = [];
  /** By round: sums of micro-batches' gradients. */
  private readonly sums = new Map<number, Variable>();
  private readonly classifiers: string[] = [];
  private readonly outputLengths: Record<string, number> = {};

  constructor(c: Capture, options: ProgramOptions) {
    const { recipe, image, classes } = options;
    this.c = c;
    this.options = options;
    this.method = methodOf(recipe);
    this.feeds = new Feeds(c, recipe, image);
    this.store = new VariableStore(
      c,
      (name) => {
        if (name.startsWith('trunk.')) return recipe.trunk === 'shared' ? 'trunk' : 'branch';
        return /^(branch|gate\.blocks)\./.test(name) ? 'branch' : 'method';
      },
      recipe.training.ema !== null,
    );
    this.branches = new Branches(recipe, classes, this.method, this.store);
    this.outputs = new Outputs(recipe, image, classes, this.method, this.branches);
  }

  build(): Program {
    const { role, shardSizes, recipe } = this.options;
    const learnt: Learnt = { store: this.store, momenta: this.momenta, training: recipe.training };
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
        gradientLength: lengthOf(segments),
        gradientOffsets: this.gradientOffsets(segments, name),
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
      const variables = segments.flatMap((segment) => this.segmentVariables(segment.name, name));
      if (variables.length > 0) applyIn(this.c, applyPhase(round), learnt, variables);
    });
    readAndWrite(this.c, learnt);
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
    const [above, below] = [trainingPhase('compute', round, n), trainingPhase('trunkBackward', round, n)];
    const { segments } = this.rounds[round]!;
    const overlapped = isOverlapped(segments);
    c.phase(above, () => {
      const images = this.feeds.imagesOf(n, this.branches.cuts.length);
      const { crossEntropy, distillWeight, scale } = this.feeds.training(n);
      const { builders, learning } = this.training(name);
      let losses: Tensor | undefined;
      const loss = () => {
        const atTrunks = overlapped ? () => c.continueIn(below) : undefined;
        const branches = this.branches.all(builders, images, name, atTrunks);
        const input = { branches, classes: this.options.classes, crossEntropy, distillWeight };
        const { total, flat } = this.lossesOf(builders.learning, input, round, name);
        losses = tf.keep(flat);
        return total;
      };
      const gradients = this.differentiate([...learning.values()], loss, scale.loss);
      const named = this.namedGradients(builders.learning, [...learning.keys()], gradients);
      if (!overlapped) this.give(round, name, segments, named, scale);
      else {
        const [upper, trunk] = segments;
        c.continueIn(below);
        this.give(round, name, [trunk!], named, scale);
        c.continueIn(above);
        this.give(round, name, [upper!], named, scale);
      }
      return { losses: losses! };
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
    this.c.phase(gradientPhase(round), () => {
      this.c.write('gradient', gradientLength, [{ offset: 0, value: sum.read() }]);
      return {};
    });
  }

  private evaluate(): void {
    const { recipe, role, classes } = this.options;
    const batch = evaluationBatchOf(recipe);
    this.c.phase('evaluate', () => {
      const evaluated = this.evaluated();
      const seen = role.kind === 'replica' ? this.feeds.images(batch) : null;
      const images = seen && this.branches.cuts.map(() => seen);
      const fed = images === null ? this.outputFeeds(batch, evaluated.length) : null;
      const labels = this.c.feed('labels', [batch], 'int32');
      const scores = evaluated.map(({ prefix, fixed }, i) => {
        const branches = images === null ? fed![i]! : this.branches.all({ learning: fixed, fixed }, images, null);
        const classifiers = this.method.classifiers(fixed, { branches, classes });
        this.classifiers.push(...Object.keys(classifiers).map((classifier) => `${prefix}${classifier}`));
        return scoresOf(classifiers, labels, classes);
      });
      return { scores: tf.concat(scores) };
    });
  }

  // ---------------------------------------------------------------------------------------------- split: a branch

  private forwardBackward(round: number, name: string, k: number, n: number, slot: number): void {
    const { c, branches, outputs } = this;
    const [forward, backward] = [trainingPhase('forward', round, n, slot), trainingPhase('backward', round, n, slot)];
    const length = outputs.wireLength(k, n);
    this.outputLengths[`train@${n}`] = length;
    const learns = this.rounds[round]!.gradientLength > 0;
    if (!learns) {
      c.phase(forward, () => {
        const { builders } = this.training(name);
        return {
          outputs: outputs.pack(outputs.flatten(branches.one(builders, this.feeds.images(n), k, name), k), k, n),
        };
      });
      return;
    }
    c.continueIn(backward);
    const cotangents = outputs.unpack(c.feed('cotangents', [length]), k, n);
    const scale = this.feeds.scale();
    c.continueIn(forward);
    const images = this.feeds.images(n);
    const { builders, learning } = this.training(name);
    const forwards = () => {
      const flat = outputs.flatten(branches.one(builders, images, k, name), k);
      c.fetch('outputs', outputs.pack(flat, k, n));
      c.continueIn(backward); // autodiff runs now, and is another session run
      return flat;
    };
    let gradients: Tensor[];
    if (this.branchLearns(k, name)) gradients = this.differentiate([...learning.values()], forwards, cotangents);
    else {
      // The shared trunk learns, but not by this branch.
      forwards();
      gradients = [...learning.values()].map((value) => tf.mul(value, tf.scalar(0)));
    }
    const named = this.namedGradients(builders.learning, [...learning.keys()], gradients);
    this.give(round, name, this.rounds[round]!.segments, named, scale);
  }

  private forwardTest(k: number): void {
    const batch = evaluationBatchOf(this.options.recipe);
    this.c.phase('forwardTest', () => {
      const images = this.feeds.images(batch);
      const outputs = this.evaluated().map(({ fixed }) =>
        this.outputs.flatten(this.branches.one({ learning: fixed, fixed }, images, k, null), k),
      );
      return { outputs: tf.concat(outputs) };
    });
    this.outputLengths.test = this.evaluated().length * this.outputs.length(k, batch);
  }

  // ---------------------------------------------------------------------------------------------- split: the method

  private fuse(round: number, name: string, n: number): void {
    const { c, branches, outputs } = this;
    c.phase(trainingPhase('fuse', round, n), () => {
      const flats = branches.cuts.map((_, k) =>
        outputs.unpack(c.feed(`outputs.${k}`, [outputs.wireLength(k, n)]), k, n),
      );
      const { crossEntropy, distillWeight, scale } = this.feeds.training(n);
      const { builders, learning } = this.training(name);
      const taught = flats.flatMap((_, k) => (this.branchLearns(k, name) ? [k] : []));
      let losses: Tensor | undefined;
      const xs = [...taught.map((k) => flats[k]!), ...learning.values()];
      const loss = () => {
        const given = flats.map((flat, k) => outputs.unflatten(flat, k, n));
        const input = { branches: given, classes: this.options.classes, crossEntropy, distillWeight };
        const { total, flat } = this.lossesOf(builders.learning, input, round, name);
        losses = tf.keep(flat);
        return total;
      };
      const gradients = this.differentiate(xs, loss, scale.loss);
      const fetches: Record<string, Tensor> = { losses: losses! };
      taught.forEach((k, i) => {
        fetches[`cotangents.${k}`] = outputs.pack(gradients[i]!, k, n);
      });
      const named = this.namedGradients(builders.learning, [...learning.keys()], gradients.slice(taught.length));
      this.give(round, name, this.rounds[round]!.segments, named, scale);
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
    const flats = this.branches.cuts.map((_, k) => {
      const length = this.outputs.length(k, n);
      return tf.split(this.c.feed(`outputs.${k}`, [copies * length]), new Array<number>(copies).fill(length));
    });
    return Array.from({ length: copies }, (_, i) => flats.map((parts, k) => this.outputs.unflatten(parts[i]!, k, n)));
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
    const owner: Owner = { branch: branchNumber(name), head: this.branches.heads.has(name) };
    return this.method.learns?.(owner, round) ?? true;
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

  private namedGradients(b: Builder, names: string[], gradients: Tensor[]): Map<string, Tensor> {
    return new Map([...names.map((name, i) => [name, gradients[i]!] as const), ...b.statistics]);
  }

  /** The gradient of segments that follow one another, for whoever runs the phase; or for the sum over micro-batches. */
  private give(round: number, name: string, segments: Segment[], gradients: Map<string, Tensor>, scale: Scale): void {
    if (segments.length === 0) return;
    const { role } = this.options;
    const unscale = scale.loss === undefined ? null : tf.div(tf.scalar(1), scale.loss);
    // In `split` every branch's worker brings the same statistics of a shared trunk, and they are summed.
    const sharers = role.kind === 'branch' ? this.branches.cuts.length : 1;
    const gradientOf = (v: VariableSpec) => {
      const flat = tf.reshape(gradients.get(v.name)!, [v.size]);
      if (v.trainable) return unscale === null ? flat : tf.mul(flat, unscale);
      const shared = v.segment === 'trunk' && sharers > 1;
      return shared ? tf.mul(flat, tf.scalar(1 / sharers)) : flat;
    };
    const variables = segments.flatMap((segment) => this.segmentVariables(segment.name, name));
    const parts = flatParts(variables.map(gradientOf)).map(({ offset, value }) => ({
      offset,
      value: tf.mul(value, scale.shard),
    }));
    const sum = this.sums.get(round);
    if (sum === undefined) this.c.write('gradient', lengthOf(segments), parts);
    else sum.add(tf.concat(parts.map(({ value }) => value)));
  }

  /** A segment's variables that learn in a round, in gradient order: trainable ones, then running statistics. */
  private segmentVariables(segment: string, round: string): VariableSpec[] {
    const own = this.store.specs.filter((v) => this.isOf(segment, v) && this.learns(v.name, round));
    return [...own.filter((v) => v.trainable), ...own.filter((v) => !v.trainable)];
  }

  private isOf(segment: string, { name, segment: own }: VariableSpec): boolean {
    if (this.options.role.kind !== 'replica') return own === segment;
    return segment === 'all' || (segment === 'trunk') === name.startsWith('trunk.');
  }

  private gradientOffsets(segments: Segment[], round: string): Record<string, number> {
    const variables = segments.flatMap((segment) => this.segmentVariables(segment.name, round));
    const offsets = flatOffsets(variables.map((v) => v.size));
    return Object.fromEntries(variables.map(({ name }, i) => [name, offsets[i]!]));
  }

  private segments(round: string): Segment[] {
    const { role, recipe } = this.options;
    const names = role.kind === 'replica' ? replicaSegments(recipe.cluster) : (['trunk', 'branch', 'method'] as const);
    let offset = 0;
    return names.flatMap((name) => {
      const length = flatLength(this.segmentVariables(name, round).map((v) => v.size));
      const segment = { name, offset, length };
      offset += length;
      return length === 0 ? [] : [segment];
    });
  }
}

function lengthOf(segments: Segment[]): number {
  return segments.reduce((sum, { length }) => sum + length, 0);
}

/** Whose a variable is: 'trunk.1.conv1.weight' is branch 1's; null: the method's own. */
function branchNumber(name: string): number | null {
  const match = /^(?:trunk|branch)\.(\d+)\./.exec(name);
  return match === null ? null : Number(match[1]);
}
