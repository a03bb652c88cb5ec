/**
 * The method in `split`: it turns all branches' outputs into losses and cotangents. Its shares work side by side, each for
 * some of the replicas, and hold the same state: they apply the same sum, made in replica order whoever computed it.
 */
import { availableParallelism } from 'node:os';
import type { Recipe } from '../core/recipe.ts';
import { alignedSharedBuffer } from '../core/shared-buffer.ts';
import type { Program } from '../nn/device.ts';
import { readScores, type Score } from '../nn/scores.ts';
import { fromTensors, toTensors } from '../nn/variables.ts';
import type { Position } from '../proto/messages.ts';
import type { Crew } from './crew.ts';
import type { Losses } from './events.ts';
import type { FlatState, NetworkState } from './group.ts';
import { openShare } from './method-link.ts';
import type { FuseRequest, Share, Trust } from './method-share.ts';
import { type Decision, type Plan, positionAfter, type Update } from './plan.ts';
import { requireIdentical } from './replicas.ts';

/** The method's threads take two cores each when they are busy: one for TensorFlow, one for what comes and goes. */
const CORES_A_THREAD = 2;

/** How many threads the method has, for so many replicas, on a coordinator of so many cores. */
export function methodThreadsOf({ cluster }: Recipe, replicas: number, cores = availableParallelism()): number {
  const wanted = cluster.methodThreads ?? Math.floor(cores / CORES_A_THREAD);
  return Math.min(replicas, Math.max(1, wanted));
}

/** Opens the shares of a run's method, each in a thread of its own. @throws BraidError CAPTURE or DEVICE */
export async function openShares(plan: Plan, trust: Trust): Promise<Share[]> {
  const opening = Array.from({ length: methodThreadsOf(plan.recipe, plan.replicas) }, (_, index) =>
    openShare(plan, trust, index),
  );
  const opened = await Promise.allSettled(opening);
  const shares = opened.flatMap((share) => (share.status === 'fulfilled' ? [share.value] : []));
  const failed = opened.find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined;
  if (failed === undefined) return shares;
  await Promise.all(shares.map((share) => share.close()));
  throw failed.reason;
}

/** Between steps nothing is given up: a run that ends closes the method. */
const WHOLE = { signal: new AbortController().signal };

export class Method {
  readonly shardSizes: string;
  private readonly shares: Share[];
  /** Where training is on the method's devices; null before they have a state. */
  position: Position | null = null;
  /** L2 norm of the sum over the replicas; null: there is none of the step under way. */
  private norm: number | null = null;

  /** @param shardSizes what the devices' programs were made for */
  constructor(shares: Share[], shardSizes: string) {
    this.shares = shares;
    this.shardSizes = shardSizes;
  }

  get program(): Program {
    return this.shares[0]!.program;
  }

  /** Takes the workers of a generation on. */
  async begin({ members }: Crew, { branches, replicas }: Plan): Promise<void> {
    const length = Math.max(...this.program.rounds.map(({ gradientLength }) => gradientLength));
    const vector = () => new Float32Array(alignedSharedBuffer(4 * length), 0, length);
    const gradients = Array.from({ length: replicas }, vector);
    const sum = vector();
    const of = this.shares.length;
    await this.each((share, index) => {
      const own = members.filter(({ rank }) => this.of(Math.floor(rank / branches)) === share);
      const peers = own.map(({ rank, name, joined }) => ({ rank, name, address: joined.address }));
      return share.begin({ peers, gradients, sum, part: { index, of } }, WHOLE);
    });
  }

  /** The share that a replica's workers send to. */
  of(replica: number): Share {
    return this.shares[replica % this.shares.length]!;
  }

  /**
   * Losses and cotangents of a micro-batch that has been gathered.
   * @param shards in replica order: those that have it   @returns its part of the losses over the global batch
   */
  async fuse(
    { round, distillWeight, lossScale }: Update,
    microBatch: number,
    shards: FuseRequest['shards'],
  ): Promise<Losses> {
    this.norm = null;
    const answered = new Map<number, Float32Array>();
    await this.each(async (share) => {
      const own = shards.filter(({ replica }) => this.of(replica) === share);
      const answers = await share.fuse({ round, distillWeight, lossScale, microBatch, shards: own }, WHOLE);
      own.forEach(({ replica }, i) => {
        answered.set(replica, answers[i]!);
      });
    });
    const names = this.program.rounds[round]!.losses;
    const losses: Losses = {};
    for (const { replica, shardWeight } of shards) {
      names.forEach((name, i) => {
        losses[name] = (losses[name] ?? 0) + shardWeight * answered.get(replica)![i]!;
      });
    }
    return losses;
  }

  /** Sums the replicas' gradients. @returns L2 norm of the sum; 0 for a method without variables */
  async reduce({ round }: Update): Promise<number> {
    if (this.program.rounds[round]!.gradientLength === 0) return 0;
    const squares = await this.each((share) => share.sum({ round }, WHOLE));
    this.norm = Math.sqrt(squares.reduce((a, b) => a + b, 0));
    return this.norm;
  }

  /** What has been committed already stays as it is. */
  async commit(update: Decision): Promise<void> {
    const { step, round, learningRate, skip } = update;
    const { position, norm } = this;
    if (position === null || step < position.step || (step === position.step && round < position.round)) return;
    this.position = null; // an apply that fails may have changed some weights
    this.norm = null;
    if (norm !== null && !skip) await this.each((share) => share.apply({ round, learningRate }, WHOLE));
    this.position = positionAfter(update);
  }

  /** The same method for other shard sizes, with what this one has learnt; this one is closed. */
  async succeed(open: () => Promise<Share[]>, shardSizes: string): Promise<Method> {
    const { position } = this;
    const state = position === null ? null : await this.read(position.step);
    await this.close();
    const next = new Method(await open(), shardSizes);
    if (state !== null) await next.write(toTensors(state.variables, state.state));
    next.position = position;
    return next;
  }

  /** Scores of one evaluation batch that has been gathered. @param labels i32[evaluation.batch], -1 where it is padded */
  async evaluate(replica: number, labels: Int32Array): Promise<Score[]> {
    const scores = await this.of(replica).evaluate({ replica, labels }, WHOLE);
    const samples = labels.reduce((count, label) => count + (label >= 0 ? 1 : 0), 0);
    return readScores(this.program.classifiers, scores, samples);
  }

  async write({ weights, momenta, averages }: NetworkState): Promise<void> {
    if (this.program.stateLength === 0) return;
    const state = fromTensors(this.program.variables, weights, momenta, averages);
    await this.each((share) => share.write({ state }, WHOLE));
  }

  /** @param step how many have been done   @throws BraidError REPLICAS_DIVERGED when the shares' states differ */
  async read(step: number): Promise<FlatState> {
    const { variables, stateLength } = this.program;
    if (stateLength === 0) return { variables, state: new Float32Array(0) };
    if (this.shares.length > 1) {
      const hashes = await this.each(async (share, rank) => ({ rank, sha256: await share.hash({}, WHOLE) }));
      requireIdentical(hashes, "method's state", step, 'threads of the coordinator');
    }
    return { variables, state: await this.shares[0]!.read({}, WHOLE) };
  }

  async close(): Promise<void> {
    await Promise.all(this.shares.map((share) => share.close()));
  }

  /** All of them are done when it returns, and when it throws. */
  private async each<T>(work: (share: Share, index: number) => Promise<T>): Promise<T[]> {
    const working = this.shares.map(work);
    await Promise.allSettled(working);
    return Promise.all(working);
  }
}
