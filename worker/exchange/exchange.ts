/**
 * The gradient exchange: sums the gradients of the workers that share a segment, worker to worker, without the coordinator.
 *
 *     const exchange = await Exchange.listen('unix:/tmp/w/exchange');        // told to the others with Join
 *     await exchange.connect(plan, signal);                                 // Prepare: a generation's mesh
 *     ... the device writes exchange.gradient ...
 *     const { segmentNorms } = await exchange.reduce(step, 0, signal);      // exchange.reduced holds the sum
 *
 * Between every two ranks that share a segment there are two sockets, each opened by the side that reads it and bound to
 * (run, generation, rank) by its hello. Whatever goes wrong on one of them ends the exchange for its generation: all
 * sockets are destroyed, and only `connect` with a later generation begins anew.
 */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { asBraidError, BraidError } from '../../core/errors.ts';
import { formatAddress, parseAddress } from './address.ts';
import { GradientMemory } from './gradient-memory.ts';
import { type Hello, hello, readHello, refuse, welcome } from './handshake.ts';
import { Inbound } from './inbound.ts';
import { Outbound } from './outbound.ts';
import { type Link, Reduction } from './reduction.ts';
import type { Traffic } from './traffic.ts';

export interface Segment {
  name: string;
  /** f32 elements into the gradient. */
  offset: number;
  length: number;
  /** Who sums it: ascending, this worker among them. */
  ranks: number[];
}

/** A generation's exchange, as the coordinator planned it. */
export interface ExchangePlan {
  run: string;
  generation: number;
  rank: number;
  /** By rank. */
  addresses: string[];
  /** f32 elements: the longest round's. */
  gradientLength: number;
  /** A round's gradient is its segments, one after another from 0. */
  rounds: Segment[][];
}

export interface Reduced {
  /** L2 norm of each reduced segment, in the plan's order: the same on every rank that shares it. */
  segmentNorms: number[];
  sentBytes: number;
  receivedBytes: number;
}

export class Exchange {
  /** Where peers reach this exchange. */
  readonly address: string;
  private readonly server: Server;
  /** Accepted, with nothing heard yet or of a generation that this worker has not been told of. */
  private readonly unbound = new Set<Socket>();
  private readonly traffic: Traffic = { sentBytes: 0, receivedBytes: 0 };
  /** null exactly before the first `connect`. */
  private mesh: Mesh | null = null;
  private readonly early = new Map<Socket, Hello>();

  private constructor(server: Server, address: string) {
    this.server = server;
    this.address = address;
    server.on('connection', (socket) => this.accept(socket));
  }

  /**
   * @param address `unix:/path` or `host:port`, port 0 for any
   * @throws BraidError SETUP when nothing can listen there
   */
  static async listen(address: string): Promise<Exchange> {
    const server = createServer({ noDelay: true });
    const wanted = parseAddress(address);
    try {
      server.listen(wanted);
      await once(server, 'listening');
    } catch (cause) {
      throw new BraidError('SETUP', `the gradient exchange cannot listen on ${address}: ${(cause as Error).message}`, {
        remedy: 'Name an address of this machine with --listen; port 0 is any free one.',
        cause,
      });
    }
    const bound = server.address();
    const port = bound !== null && typeof bound === 'object' ? bound.port : 0;
    return new Exchange(server, 'host' in wanted ? formatAddress(wanted.host, port) : address);
  }

  /** f32[gradientLength] of the current plan, on shared memory: the device writes this worker's gradient here. */
  get gradient(): Float32Array {
    return this.current().memory.gradient;
  }

  /** f32[gradientLength], on shared memory: what `reduce` leaves. The same memory as `gradient` when nobody shares a segment. */
  get reduced(): Float32Array {
    return this.current().memory.reduced;
  }

  /**
   * Leaves the generation before, and meets the peers of this one, each of which must be connecting too.
   * @throws BraidError STALE_GENERATION, PROTOCOL (a plan that contradicts itself), WORKER_LOST (naming the rank), or the signal's reason
   */
  async connect(plan: ExchangePlan, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const generation = this.mesh?.plan.generation ?? -1;
    if (plan.generation <= generation) {
      throw new BraidError(
        'STALE_GENERATION',
        `generation ${plan.generation} comes after ${generation}, which this worker has been in`,
      );
    }
    requireSound(plan);
    this.mesh?.fail(
      new BraidError('STALE_GENERATION', `generation ${generation} has been replaced by ${plan.generation}`),
    );
    const mesh = new Mesh(plan, this.traffic);
    this.mesh = mesh;
    for (const [socket, from] of this.early) this.admit(socket, from);
    await mesh.connected(signal);
  }

  /**
   * Sums every segment of a round's `gradient` over its ranks into `reduced`, in rank order. Every rank of a segment must
   * call it with the same step and round. `gradient` keeps its values, whatever happens.
   * @throws BraidError NON_FINITE naming rank and segment, the same on every rank: the exchange stays usable.
   *   WORKER_LOST, PROTOCOL, STALE_GENERATION or the signal's reason: it is over for this generation.
   */
  reduce(step: number, round: number, signal: AbortSignal): Promise<Reduced> {
    return this.current().reduce(step, round, signal);
  }

  /** Ends the exchange for its generation; a reduction under way fails with `reason`. */
  abort(reason: BraidError): void {
    this.mesh?.fail(reason);
  }

  async close(): Promise<void> {
    this.abort(new BraidError('CANCELLED', 'the gradient exchange has been closed'));
    for (const socket of this.unbound) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }

  private current(): Mesh {
    if (this.mesh === null) throw new BraidError('PROTOCOL', 'the gradient exchange has not been connected');
    return this.mesh;
  }

  private accept(socket: Socket): void {
    this.unbound.add(socket);
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => {
      this.unbound.delete(socket);
      this.early.delete(socket);
    });
    readHello(socket, (from) => this.admit(socket, from));
  }

  /** A peer has said who it is and wants to receive: yes, no, or not yet. */
  private admit(socket: Socket, from: Hello): void {
    const { mesh } = this;
    if (mesh === null || from.generation > mesh.plan.generation) {
      this.early.set(socket, from);
      return;
    }
    this.unbound.delete(socket);
    this.early.delete(socket);
    mesh.admit(socket, from);
  }
}

/** The sockets, memory and reductions of one generation. */
class Mesh {
  readonly plan: ExchangePlan;
  readonly memory: GradientMemory;
  private readonly traffic: Traffic;
  private readonly inbound = new Map<number, Inbound>();
  private readonly outbound = new Map<number, Outbound>();
  /** Peers, by rank, with the addresses of their windows. */
  private readonly windows = new Map<number, number[]>();
  private readonly ready = Promise.withResolvers<void>();
  /** Sockets still to be opened or accepted. */
  private missing: number;
  /** Why this generation's exchange is over. */
  private failure: BraidError | null = null;
  /** null exactly when no segment is under way. */
  private reduction: Reduction | null = null;

  constructor(plan: ExchangePlan, traffic: Traffic) {
    this.plan = plan;
    this.traffic = traffic;
    const peers = new Set(
      plan.rounds
        .flat()
        .flatMap(({ ranks }) => ranks)
        .filter((rank) => rank !== plan.rank),
    );
    this.memory = new GradientMemory(plan.gradientLength, peers.size);
    [...peers].forEach((rank, i) => {
      this.windows.set(rank, this.memory.window(i));
    });
    this.missing = 2 * peers.size;
    this.ready.promise.catch(() => {}); // a mesh may fail with nobody waiting for it
    if (this.missing === 0) this.ready.resolve();
    for (const rank of peers) this.inbound.set(rank, this.dial(rank));
  }

  async connected(signal: AbortSignal): Promise<void> {
    await this.unlessAborted(signal, this.ready.promise);
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
    welcome(socket, this.plan);
    this.arrived();
  }

  async reduce(step: number, round: number, signal: AbortSignal): Promise<Reduced> {
    if (this.failure !== null) throw this.failure;
    if (this.reduction !== null) throw new BraidError('PROTOCOL', `step ${step} cannot be reduced beside another one`);
    const before = { ...this.traffic };
    const sums: number[] = [];
    const segments = this.plan.rounds[round]!;
    const firstBucket = this.plan.rounds.slice(0, round).flat().length;
    for (const [i, segment] of segments.entries()) {
      sums.push(await this.unlessAborted(signal, this.reduceSegment(step, firstBucket + i, segment)));
    }
    segments.forEach((segment, i) => {
      if (!Number.isFinite(sums[i]!)) throw this.nonFinite(segment, step);
    });
    return {
      segmentNorms: sums.map(Math.sqrt),
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
    this.reduction?.fail(reason);
  }

  private async reduceSegment(step: number, bucket: number, { offset, length, ranks }: Segment): Promise<number> {
    const { gradient, reduced, kernels } = this.memory;
    if (ranks.length === 1) {
      if (reduced !== gradient) reduced.set(gradient.subarray(offset, offset + length), offset);
      return kernels.sumSquares(reduced.byteOffset + offset * 4, length);
    }
    const { generation, rank } = this.plan;
    const links = new Map(ranks.filter((r) => r !== rank).map((r) => [r, this.link(r)]));
    const reduction = new Reduction({
      generation,
      step,
      bucket,
      offset,
      length,
      ranks,
      rank,
      memory: this.memory,
      links,
    });
    this.reduction = reduction;
    try {
      reduction.start();
      return await reduction.done;
    } finally {
      this.reduction = null;
    }
  }

  private link(rank: number): Link {
    const inbound = this.inbound.get(rank)!;
    const outbound = this.outbound.get(rank)!;
    return {
      window: this.windows.get(rank)!,
      send: (header, payload, sent) => outbound.send(header, payload, sent),
      wake: () => inbound.wake(),
    };
  }

  private dial(rank: number): Inbound {
    const { plan } = this;
    return new Inbound({
      rank,
      address: plan.addresses[rank]!,
      hello: hello({ run: plan.run, generation: plan.generation, rank: plan.rank, to: rank }),
      traffic: this.traffic,
      checksum: (payload) => this.memory.checksum(payload),
      onWelcome: () => this.arrived(),
      next: () => this.reduction?.next(rank) ?? null,
      onFrame: () => this.reduction!.received(rank),
      onFailure: (error) => this.fail(this.placed(error)),
    });
  }

  private arrived(): void {
    this.missing--;
    if (this.missing === 0) this.ready.resolve();
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
    const { run, generation, rank } = this.plan;
    const me = `rank ${rank}`;
    if (from.run !== run) return new BraidError('VERSION_MISMATCH', `run ${from.run} is not ${run}, which ${me} is in`);
    if (from.generation !== generation || this.failure !== null) {
      const state = this.failure === null ? 'is in' : 'has left';
      return new BraidError('STALE_GENERATION', `generation ${from.generation}: ${me} ${state} ${generation}`);
    }
    if (from.to !== rank) return new BraidError('PROTOCOL', `this is ${me}, not ${from.to}`);
    if (!this.windows.has(from.rank)) return new BraidError('PROTOCOL', `${me} shares no segment with ${from.rank}`);
    if (this.outbound.has(from.rank)) return new BraidError('PROTOCOL', `${me} sends to a rank ${from.rank} already`);
    return null;
  }

  private nonFinite({ name, offset, length }: Segment, step: number): BraidError {
    const { gradient, kernels } = this.memory;
    const own = Number.isFinite(kernels.sumSquares(gradient.byteOffset + offset * 4, length));
    const whose = own
      ? `though rank ${this.plan.rank}'s own is`
      : `rank ${this.plan.rank}'s own gradient has NaN or infinity`;
    return new BraidError(
      'NON_FINITE',
      `step ${step}: the summed gradient of segment ${name} is not finite, ${whose}`,
      {
        remedy: 'Lower training.learningRate, or train in f32. No weight has been changed by this step.',
        details: { rank: this.plan.rank, segment: name, ownIsFinite: own, step },
      },
    );
  }

  /** An abort leaves sockets in the middle of a frame: it ends the mesh. */
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

/** @throws BraidError PROTOCOL: peers would wait for one another, or add past the gradient's end */
function requireSound(plan: ExchangePlan): void {
  const lengths = plan.rounds.map((segments) => lengthOf(segments, plan));
  const longest = Math.max(...lengths);
  if (longest !== plan.gradientLength) {
    throw new BraidError('PROTOCOL', `the segments cover ${longest} of the gradient's ${plan.gradientLength} elements`);
  }
}

function lengthOf(segments: Segment[], { rank, addresses }: ExchangePlan): number {
  let end = 0;
  for (const { name, offset, length, ranks } of segments) {
    const ascending = ranks.every((r, i) => Number.isInteger(r) && (i === 0 || r > ranks[i - 1]!));
    const problem = !ascending
      ? 'are not ascending'
      : !ranks.includes(rank)
        ? `lack rank ${rank}, which has it`
        : ranks[0]! < 0 || ranks.at(-1)! >= addresses.length
          ? `go past the ${addresses.length} workers`
          : null;
    if (problem !== null) throw new BraidError('PROTOCOL', `the ranks [${ranks}] of segment ${name} ${problem}`);
    if (offset !== end)
      throw new BraidError('PROTOCOL', `segment ${name} begins at ${offset}, the one before ends at ${end}`);
    end += length;
  }
  return end;
}
