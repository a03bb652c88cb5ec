/** The sockets, memory and reductions of one generation. */
import type { Socket } from 'node:net';
import { asBraidError, BraidError } from '../../core/errors.ts';
import { isSecret } from '../../core/secret.ts';
import { GradientMemory, type Readable } from './gradient-memory.ts';
import { type Hello, hello, refuse, welcome } from './handshake.ts';
import { Inbound } from './inbound.ts';
import { MeshReduction } from './mesh.ts';
import { Outbound } from './outbound.ts';
import { type ExchangePlan, peersOf, type Segment } from './plan.ts';
import type { Links, Reduction } from './reduction.ts';
import { RingReduction } from './ring.ts';
import type { Traffic } from './traffic.ts';
import type { CurrentPems } from './transport.ts';

export interface Reduced {
  /** L2 norm of each reduced segment, in the plan's order: the same on every rank that shares it. Finite if its elements are. */
  segmentNorms: number[];
  /** Whether one of them is not finite, and this rank's own part of it is not, either. */
  culprit: boolean;
  sentBytes: number;
  receivedBytes: number;
}

export class Generation {
  readonly plan: ExchangePlan;
  readonly memory: GradientMemory;
  private readonly traffic: Traffic;
  private readonly tls: CurrentPems | null;
  private readonly targets: Set<number>;
  private readonly inbound = new Map<number, Inbound>();
  private readonly outbound = new Map<number, Outbound>();
  private readonly links: Links;
  /** Peers whose gradients are read where they are. */
  private readonly readable = new Map<number, Readable>();
  /** Peers that read this worker's so. */
  private readonly readers = new Set<number>();
  private readonly ready = Promise.withResolvers<void>();
  /** Sockets still to be opened or accepted. */
  private missing: number;
  /** Why this generation's exchange is over. */
  private failure: BraidError | null = null;
  /** A first segment that `reduce` has not asked for yet. */
  private begun: { step: number; round: number; before: Traffic; sum: Promise<number> } | null = null;
  /** null exactly when no segment is under way. */
  private reduction: Reduction | null = null;

  constructor(plan: ExchangePlan, traffic: Traffic, tls: CurrentPems | null, inPlace: boolean) {
    this.plan = plan;
    this.traffic = traffic;
    this.tls = tls;
    const { sources, targets, windows } = peersOf(plan);
    this.targets = targets;
    this.memory = new GradientMemory({ ...plan, shared: sources.size > 0, windows: windows.size, inPlace });
    const windowOf = new Map([...windows].map((rank, i) => [rank, this.memory.window(i)]));
    this.links = {
      window: (rank) => windowOf.get(rank)!,
      readable: (rank) => this.readable.get(rank) ?? null,
      isReader: (rank) => this.readers.has(rank),
      send: (rank, header, payload, sent) => this.outbound.get(rank)!.send(header, payload, sent),
      wake: (rank) => this.inbound.get(rank)!.wake(),
    };
    this.missing = sources.size + targets.size;
    this.ready.promise.catch(() => {}); // a generation may fail with nobody waiting for it
    if (this.missing === 0) this.ready.resolve();
    for (const rank of sources) this.inbound.set(rank, this.dial(rank));
  }

  async connected(signal: AbortSignal): Promise<void> {
    await this.unlessAborted(signal, this.ready.promise);
  }

  /** Whether it is of this run. */
  knows({ secret }: Hello): boolean {
    return isSecret(secret, this.plan.secret);
  }

  /** Answers a hello of this generation or an earlier one. */
  admit(socket: Socket, from: Hello): void {
    const reason = this.objection(from);
    if (reason !== null) {
      refuse(socket, this.plan, reason);
      return;
    }
    socket.on('close', () => this.lost(from.rank));
    this.outbound.set(from.rank, new Outbound(socket, this.traffic));
    const readable = from.memory === null ? null : this.memory.read(from.memory);
    if (readable !== null) this.readable.set(from.rank, readable);
    welcome(socket, this.plan, readable !== null);
    this.arrived();
  }

  begin(step: number, round: number): void {
    if (this.failure !== null) throw this.failure;
    this.requireFree(step);
    const before = { ...this.traffic };
    const sum = this.reduceSegment(step, round, 0);
    sum.catch(() => {}); // whoever reduces hears of it
    this.begun = { step, round, before, sum };
  }

  async idle(): Promise<void> {
    await this.begun?.sum;
    this.begun = null;
  }

  async reduce(step: number, round: number, signal: AbortSignal): Promise<Reduced> {
    if (this.failure !== null) throw this.failure;
    const { begun } = this;
    this.begun = null;
    const early = begun?.step === step && begun.round === round ? begun : null;
    if (early === null) this.requireFree(step);
    const before = early?.before ?? { ...this.traffic };
    const sums: number[] = [];
    const segments = this.plan.rounds[round]!;
    for (const i of segments.keys()) {
      const sum = i === 0 && early !== null ? early.sum : this.reduceSegment(step, round, i);
      sums.push(await this.unlessAborted(signal, sum));
    }
    return {
      segmentNorms: sums.map(Math.sqrt),
      culprit: segments.some((segment, i) => !Number.isFinite(sums[i]!) && !this.ownIsFinite(segment)),
      sentBytes: this.traffic.sentBytes - before.sentBytes,
      receivedBytes: this.traffic.receivedBytes - before.receivedBytes,
    };
  }

  fail(reason: BraidError): void {
    if (this.failure !== null) return;
    this.failure = reason;
    for (const socket of this.inbound.values()) socket.destroy();
    for (const socket of this.outbound.values()) socket.destroy();
    this.ready.reject(reason);
    this.memory.hide();
    this.reduction?.fail(reason);
  }

  private requireFree(step: number): void {
    if (this.reduction !== null) throw new BraidError('PROTOCOL', `step ${step} cannot be reduced beside another one`);
  }

  /** @returns the sum of its squares */
  private async reduceSegment(step: number, round: number, i: number): Promise<number> {
    const { rounds } = this.plan;
    const { offset, length, ranks, topology } = rounds[round]![i]!;
    const bucket = rounds.slice(0, round).flat().length + i;
    const { memory, links } = this;
    const { gradient, reduced, kernels } = memory;
    if (ranks.length === 1) {
      if (reduced !== gradient) reduced.set(gradient.subarray(offset, offset + length), offset);
      return kernels.sumSquares(reduced.byteOffset + offset * 4, length);
    }
    const { generation, rank } = this.plan;
    const Reducing = topology === 'ring' ? RingReduction : MeshReduction;
    const reduction = new Reducing({ generation, step, bucket, offset, length, ranks, rank, memory, links });
    this.reduction = reduction;
    try {
      reduction.start();
      return await reduction.done;
    } finally {
      this.reduction = null;
    }
  }

  private dial(rank: number): Inbound {
    const { run, secret, generation, rank: own, addresses } = this.plan;
    return new Inbound({
      rank,
      address: addresses[rank]!,
      hello: hello({ ...{ run, secret, generation, rank: own }, to: rank, memory: this.memory.offer }),
      tls: this.tls,
      traffic: this.traffic,
      checksum: (payload) => this.memory.checksum(payload),
      onWelcome: (inPlace) => {
        if (inPlace) this.readers.add(rank);
        this.arrived();
      },
      next: () => this.reduction?.next(rank) ?? null,
      onFrame: (header) => this.reduction!.received(rank, header),
      onFailure: (error) => this.fail(this.placed(error)),
    });
  }

  private arrived(): void {
    this.missing--;
    if (this.missing > 0) return;
    this.memory.hide();
    this.ready.resolve();
  }

  private lost(rank: number): void {
    this.fail(
      this.placed(
        new BraidError('WORKER_LOST', `rank ${rank} at ${this.plan.addresses[rank]} closed its gradient exchange`, {
          details: { rank },
        }),
      ),
    );
  }

  /** The error, with where this rank was. */
  private placed(error: BraidError): BraidError {
    const where = this.reduction?.where ?? (this.missing > 0 ? 'while connecting' : 'between two steps');
    const message = `${error.message}, ${where} (seen by rank ${this.plan.rank}, generation ${this.plan.generation})`;
    return new BraidError(error.code, message, { ...error, cause: error });
  }

  private objection(from: Hello): BraidError | null {
    if (!this.knows(from)) return new BraidError('UNAUTHORIZED', "a hello without the run's secret");
    const { run, generation, rank } = this.plan;
    const me = `rank ${rank}`;
    if (from.run !== run) return new BraidError('VERSION_MISMATCH', `run ${from.run} is not ${run}, which ${me} is in`);
    if (from.generation !== generation || this.failure !== null) {
      const state = this.failure === null ? 'is in' : 'has left';
      return new BraidError('STALE_GENERATION', `generation ${from.generation}: ${me} ${state} ${generation}`);
    }
    if (from.to !== rank) return new BraidError('PROTOCOL', `this is ${me}, not ${from.to}`);
    if (!this.targets.has(from.rank)) return new BraidError('PROTOCOL', `${me} sends nothing to a rank ${from.rank}`);
    if (this.outbound.has(from.rank)) return new BraidError('PROTOCOL', `${me} sends to a rank ${from.rank} already`);
    return null;
  }

  private ownIsFinite({ offset, length }: Segment): boolean {
    const { gradient, kernels } = this.memory;
    return Number.isFinite(kernels.sumSquares(gradient.byteOffset + offset * 4, length));
  }

  /** An abort leaves sockets in the middle of a frame: it ends the generation. */
  private async unlessAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
    const abort = () => this.fail(this.placed(asBraidError(signal.reason, 'CANCELLED')));
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort);
    try {
      return await work;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }
}
