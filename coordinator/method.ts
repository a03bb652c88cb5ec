/** The method in `split`: the coordinator's own device, which turns all branches' outputs into losses and cotangents. */
import { availableParallelism } from 'node:os';
import { Device, type Program } from '../nn/device.ts';
import { applyPhase, type Phase, trainingPhase } from '../nn/phases.ts';
import { readScores, type Score } from '../nn/scores.ts';
import { fromTensors, toTensors } from '../nn/variables.ts';
import type { Position } from '../proto/messages.ts';
import type { Losses } from './events.ts';
import type { FlatState, NetworkState } from './group.ts';
import type { Plan, Update } from './plan.ts';

type Feeds = Record<string, Float32Array | Int32Array | Uint8Array | number>;

/** What the method needs of nn's Device. */
export interface MethodDevice {
  readonly program: Program;
  run(phase: Phase, feeds: Feeds): Promise<Record<string, Float32Array>>;
  close(): Promise<void>;
}

/** Opens nn's Device for the method. It computes while the workers wait for it, so it may have every core. */
export async function openMethodDevice({ recipe, image, classes, shardSizes }: Plan): Promise<MethodDevice> {
  const threads = availableParallelism();
  return Device.open({ recipe, role: { kind: 'method' }, image, classes, shardSizes, threads });
}

export interface Fused {
  /** Over the global batch. */
  losses: Losses;
  /** [replica][branch], each in the layout of its outputs; undefined for a branch that does not learn. */
  cotangents: (Float32Array | undefined)[][];
}

export class Method {
  private readonly device: MethodDevice;
  readonly shardSizes: string;
  /** Where training is on the method's device; null before it has a state. */
  position: Position | null = null;
  /** Sum over the replicas of the step under way. */
  private gradient: Float32Array | null = null;

  /** @param shardSizes what the device's program was made for */
  constructor(device: MethodDevice, shardSizes: string) {
    this.device = device;
    this.shardSizes = shardSizes;
  }

  get program(): Program {
    return this.device.program;
  }

  /**
   * One run a replica, in replica order; gradients add up in that order, too.
   * @param outputs [replica][branch], flat   @param labels by replica, i32[n]
   */
  async fuse(
    { round, shardWeights, distillWeight }: Update,
    outputs: Float32Array[][],
    labels: Int32Array[],
  ): Promise<Fused> {
    const losses: Losses = {};
    const cotangents: Fused['cotangents'] = [];
    this.gradient = null;
    for (const [replica, ofBranches] of outputs.entries()) {
      const shardWeight = shardWeights[replica]!;
      const fused = await this.device.run(trainingPhase('fuse', round, labels[replica]!.length), {
        ...named('outputs', ofBranches),
        labels: labels[replica]!,
        distillWeight,
        shardWeight,
      });
      this.program.rounds[round]!.losses.forEach((name, i) => {
        losses[name] = (losses[name] ?? 0) + shardWeight * fused.losses![i]!;
      });
      cotangents.push(ofBranches.map((_, branch) => fused[`cotangents.${branch}`]));
      this.add(fused.gradient);
    }
    return { losses, cotangents };
  }

  /** L2 norm of the summed gradient; 0 for a method without variables. */
  gradientNorm(): number {
    let squares = 0;
    for (const g of this.gradient ?? []) squares += g * g;
    return Math.sqrt(squares);
  }

  /** What has been committed already stays as it is. */
  async commit({ step, round, learningRate, last, skip }: Update): Promise<void> {
    const { position, gradient } = this;
    if (position === null || step < position.step || (step === position.step && round < position.round)) return;
    this.position = null; // an apply that fails may have changed some weights
    this.gradient = null;
    if (gradient !== null && !skip) await this.device.run(applyPhase(round), { gradient, learningRate });
    this.position = last ? { step: step + 1, round: 0 } : { step, round: round + 1 };
  }

  /** The same method for other shard sizes, with what this one has learnt; this one is closed. */
  async succeed(open: () => Promise<MethodDevice>, shardSizes: string): Promise<Method> {
    const { position } = this;
    const state = position === null ? null : await this.read();
    await this.close();
    const next = new Method(await open(), shardSizes);
    if (state !== null) await next.write(toTensors(state.variables, state.state));
    next.position = position;
    return next;
  }

  /** Scores of one evaluation batch. @param labels i32[evaluation.batch], -1 where the batch is padded */
  async evaluate(outputs: Float32Array[], labels: Int32Array): Promise<Score[]> {
    const { scores } = await this.device.run('evaluate', { ...named('outputs', outputs), labels });
    const samples = labels.reduce((count, label) => count + (label >= 0 ? 1 : 0), 0);
    return readScores(this.program.classifiers, scores!, samples);
  }

  async write({ weights, momenta }: NetworkState): Promise<void> {
    if (this.program.stateLength === 0) return;
    await this.device.run('write', { state: fromTensors(this.program.variables, weights, momenta) });
  }

  async read(): Promise<FlatState> {
    const { variables, stateLength } = this.program;
    if (stateLength === 0) return { variables, state: new Float32Array(0) };
    const { state } = await this.device.run('read', {});
    return { variables, state: state! };
  }

  close(): Promise<void> {
    return this.device.close();
  }

  private add(gradient: Float32Array | undefined): void {
    if (gradient === undefined || gradient.length === 0) return;
    if (this.gradient === null) {
      this.gradient = gradient;
      return;
    }
    for (let i = 0; i < gradient.length; i++) this.gradient[i]! += gradient[i]!;
  }
}

function named(name: string, values: Float32Array[]): Record<string, Float32Array> {
  return Object.fromEntries(values.map((value, i) => [`${name}.${i}`, value]));
}
