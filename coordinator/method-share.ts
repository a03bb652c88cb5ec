/**
 * A share of the method in `split`: a set of replicas. It has connections of its own to their workers and a device of its own,
 * so that what is bulky (outputs, cotangents, the method's gradient) goes past the thread that owns the run. It lives in a
 * thread (method-thread.ts); the shares of one method meet in shared memory.
 */
import { sha256 } from '../core/digest.ts';
import { BraidError } from '../core/errors.ts';
import { bytesOf, floatsOf } from '../core/floats.ts';
import { alignedSharedBuffer } from '../core/shared-buffer.ts';
import type { Device, Program } from '../nn/device.ts';
import { applyPhase, SLOTS, trainingPhase } from '../nn/phases.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { workerService } from '../proto/load.ts';
import type { Call, ForwardRequest, StepRequest, WorkerService } from '../proto/messages.ts';
import { collect, parts } from '../proto/parts.ts';
import type { Tls } from '../proto/tls.ts';

/** What a share needs of nn's Device. */
export type MethodDevice = Pick<Device, 'program' | 'run' | 'close'>;

/** How its workers are called. */
export interface Trust {
  /** The run's. */
  secret: string;
  /** null: in clear text. */
  tls: Tls | null;
}

export interface ShareGeneration {
  /** The workers of its replicas. */
  peers: { rank: number; name: string; address: string }[];
  /** Of the whole method, by replica, in shared memory: each round's gradient begins at 0. */
  gradients: Float32Array[];
  /** Their sum, in shared memory. */
  sum: Float32Array;
  /** Which part of the sum is made here: the `index`th of `of`. */
  part: { index: number; of: number };
}

export interface FuseRequest {
  round: number;
  distillWeight: number;
  /** What the losses are multiplied by before they are differentiated, and cotangents come multiplied by. */
  lossScale: number;
  /** Which micro-batch of their shards it is. */
  microBatch: number;
  /** Those that have it. `shardWeight`: its samples over the global batch's. */
  shards: { replica: number; labels: Int32Array; shardWeight: number }[];
}

/** One for this process's own thread, and for others a link (method-link.ts): plain data in, plain data out. */
export interface Share {
  readonly program: Program;
  /** Whom it serves from here on; connections of before are closed. */
  begin(generation: ShareGeneration, call: Call): Promise<void>;
  /** A worker's outputs, of `elements` f32, are here when it returns. @returns bytes */
  gather(request: { rank: number; elements: number; forward: ForwardRequest }, call: Call): Promise<number>;
  /** Losses and cotangents of replicas whose outputs are here. @returns losses by shard, in the program's order */
  fuse(request: FuseRequest, call: Call): Promise<Float32Array[]>;
  /** Sends a worker its cotangents: `elements` zeros where its branch does not learn. @returns bytes */
  scatter(request: { rank: number; elements: number; stamp: StepRequest }, call: Call): Promise<number>;
  /** Its part of the sum of all replicas' gradients, in replica order. @returns the sum of its squares */
  sum(request: { round: number }, call: Call): Promise<number>;
  apply(request: { round: number; learningRate: number }, call: Call): Promise<void>;
  /** @param request labels: i32[evaluation.batch], -1 where the batch is padded   @returns the program's scores */
  evaluate(request: { replica: number; labels: Int32Array }, call: Call): Promise<Float32Array>;
  write(request: { state: Float32Array }, call: Call): Promise<void>;
  read(request: object, call: Call): Promise<Float32Array>;
  hash(request: object, call: Call): Promise<Uint8Array>;
  close(): Promise<void>;
}

export class MethodShare implements Share {
  private readonly device: MethodDevice;
  private readonly branches: number;
  private readonly trust: Trust;
  private generation: ShareGeneration | null = null;
  /** By rank, as what follows. */
  private readonly workers = new Map<number, Connection<WorkerService>>();
  /** By slot and rank, reused: outputs have been used up when the next ones of their slot come. */
  private readonly outputs = Array.from({ length: SLOTS }, () => new Map<number, Uint8Array>());
  /** Between fuse and scatter; none for a branch that does not learn. */
  private readonly cotangents = new Map<number, Float32Array>();

  private spare: Float32Array = new Float32Array(0);

  /** @param branches of a replica: its branch b has rank replica * branches + b */
  constructor(device: MethodDevice, branches: number, trust: Trust) {
    this.device = device;
    this.branches = branches;
    this.trust = trust;
  }

  get program(): Program {
    return this.device.program;
  }

  async begin(generation: ShareGeneration): Promise<void> {
    this.disconnect();
    this.generation = generation;
    this.cotangents.clear();
    const { secret, tls } = this.trust;
    for (const { rank, name: peer, address } of generation.peers) {
      this.workers.set(rank, connect(workerService, address, { peer, tls, secret: () => secret }));
    }
  }

  async gather({ rank, elements, forward }: Parameters<Share['gather']>[0], call: Call): Promise<number> {
    const { run, generation, step, microBatch } = forward;
    const outputs = this.outputs[microBatch % SLOTS]!;
    const memory = outputs.get(rank);
    const into = memory?.length === 4 * elements ? { into: memory } : {};
    const options = { maxBytes: 4 * elements, expect: { run, generation, step }, ...into };
    const bytes = await collect(this.workers.get(rank)!.forward(forward, call), options);
    if (bytes.length !== 4 * elements) {
      throw new BraidError('PROTOCOL', `worker ${rank} answered ${bytes.length} bytes of outputs, not ${4 * elements}`);
    }
    outputs.set(rank, bytes);
    return bytes.length;
  }

  async fuse({ round, distillWeight, lossScale, microBatch, shards }: FuseRequest): Promise<Float32Array[]> {
    const losses: Float32Array[] = [];
    const { gradientLength } = this.program.rounds[round]!;
    for (const { replica, labels, shardWeight } of shards) {
      const feeds = { ...this.outputsOf(replica, microBatch), labels, distillWeight, shardWeight, lossScale };
      const gradient = this.generation!.gradients[replica]!.subarray(0, gradientLength);
      const own = microBatch === 0 ? gradient : this.spareFor(gradient);
      const into = gradientLength > 0 ? { gradient: own } : {};
      const fused = await this.device.run(trainingPhase('fuse', round, labels.length), feeds, into);
      if (own !== gradient) {
        own.forEach((g, i) => {
          gradient[i]! += g;
        });
      }
      losses.push(fused.losses!);
      for (const [branch, rank] of this.ranksOf(replica).entries()) {
        const cotangents = fused[`cotangents.${branch}`];
        if (cotangents === undefined) this.cotangents.delete(rank);
        else this.cotangents.set(rank, cotangents);
      }
    }
    return losses;
  }

  /** Memory for a micro-batch's gradient that is added to `gradient`. */
  private spareFor({ length }: Float32Array): Float32Array {
    if (this.spare.length < length) this.spare = new Float32Array(alignedSharedBuffer(4 * length));
    return this.spare.subarray(0, length);
  }

  async scatter({ rank, elements, stamp }: Parameters<Share['scatter']>[0], call: Call): Promise<number> {
    // A branch that does not learn may still hold a trunk that does.
    const bytes = bytesOf(this.cotangents.get(rank) ?? new Float32Array(elements));
    await this.workers.get(rank)!.backward(parts(stamp, bytes), call);
    return bytes.length;
  }

  async sum({ round }: { round: number }): Promise<number> {
    const { gradients, sum, part } = this.generation!;
    const { gradientLength } = this.program.rounds[round]!;
    const at = (index: number) => Math.floor((index * gradientLength) / part.of);
    const slice = (all: Float32Array) => all.subarray(at(part.index), at(part.index + 1));
    const into = slice(sum);
    gradients.forEach((gradient, replica) => {
      const values = slice(gradient);
      if (replica === 0) into.set(values);
      else for (let i = 0; i < into.length; i++) into[i]! += values[i]!;
    });
    let squares = 0;
    for (let i = 0; i < into.length; i++) squares += into[i]! * into[i]!;
    return squares;
  }

  async apply({ round, learningRate }: Parameters<Share['apply']>[0]): Promise<void> {
    const gradient = this.generation!.sum.subarray(0, this.program.rounds[round]!.gradientLength);
    await this.device.run(applyPhase(round), { gradient, learningRate });
  }

  async evaluate({ replica, labels }: Parameters<Share['evaluate']>[0]): Promise<Float32Array> {
    const { scores } = await this.device.run('evaluate', { ...this.outputsOf(replica, 0), labels });
    return scores!;
  }

  async write({ state }: { state: Float32Array }): Promise<void> {
    await this.device.run('write', { state });
  }

  async read(): Promise<Float32Array> {
    return (await this.device.run('read', {})).state!;
  }

  async hash(): Promise<Uint8Array> {
    return await sha256(bytesOf(await this.read()));
  }

  async close(): Promise<void> {
    this.disconnect();
    await this.device.close();
  }

  private disconnect(): void {
    for (const worker of this.workers.values()) worker.close();
    this.workers.clear();
  }

  private ranksOf(replica: number): number[] {
    return Array.from({ length: this.branches }, (_, branch) => replica * this.branches + branch);
  }

  private outputsOf(replica: number, microBatch: number): Record<string, Float32Array> {
    const outputs = this.outputs[microBatch % SLOTS]!;
    const named = this.ranksOf(replica).map((rank, k) => [`outputs.${k}`, floatsOf(outputs.get(rank)!)]);
    return Object.fromEntries(named);
  }
}
