/**
 * The gradient exchange: sums the gradients of the workers that share a segment, worker to worker, without the coordinator.
 *
 *     const exchange = await Exchange.listen('unix:/tmp/w/exchange');        // told to the others with Join
 *     await exchange.connect(plan, signal);                                 // Prepare: a generation's sockets
 *     ... the device writes exchange.gradient ...
 *     const { segmentNorms } = await exchange.reduce(step, 0, signal);      // exchange.reduced holds the sum
 *
 * From each rank to each that it sends to there is a socket, opened by the side that reads it and bound to
 * (run, generation, rank) by its hello. Whatever goes wrong on one of them ends the exchange for its generation: all
 * sockets are destroyed, and only `connect` with a later generation begins anew.
 */
import { once } from 'node:events';
import type { Server, Socket } from 'node:net';
import { BraidError } from '../../core/errors.ts';
import { isSecret } from '../../core/secret.ts';
import { formatAddress, parseAddress } from './address.ts';
import { Generation, type Reduced } from './generation.ts';
import { type Hello, readHello } from './handshake.ts';
import { type ExchangePlan, requireSound } from './plan.ts';
import type { Traffic } from './traffic.ts';
import { type CurrentPems, createListener, onPeer } from './transport.ts';

/** One a peer, and for a while those of the generation before: more are no workers of a run. */
const MAX_CONNECTIONS = 1024;

export type { Reduced } from './generation.ts';
export type { ExchangePlan, Segment } from './plan.ts';

export interface ExchangeOptions {
  /** Both ends of a connection show certificates of one CA; null: nothing is encrypted. */
  tls?: CurrentPems | null;
  /**
   * The run's at the moment, besides that of the current plan: a coordinator that comes back has another one, and peers that
   * it has prepared can be here before its Prepare is.
   */
  secret?: () => string | null;
  /** Whether workers of one machine read one another's gradients in place (default), or send them as to any other. */
  inPlace?: boolean;
}

export class Exchange {
  /** Where peers reach this exchange. */
  readonly address: string;
  private readonly server: Server;
  private readonly tls: CurrentPems | null;
  private readonly secret: () => string | null;
  private readonly inPlace: boolean;
  /** Accepted, whatever has become of them since. */
  private readonly open = new Set<Socket>();
  readonly traffic: Traffic = { sentBytes: 0, receivedBytes: 0 };
  /** null exactly before the first `connect`. */
  private generation: Generation | null = null;
  /** Peers of a generation that this worker has not been told of. */
  private readonly early = new Map<Socket, Hello>();

  private constructor(
    server: Server,
    address: string,
    { tls = null, secret = () => null, inPlace = true }: ExchangeOptions,
  ) {
    this.server = server;
    this.address = address;
    this.tls = tls;
    this.secret = secret;
    this.inPlace = inPlace;
    server.on('connection', (socket) => {
      this.open.add(socket);
      socket.on('close', () => this.open.delete(socket));
    });
    onPeer(server, (socket) => this.accept(socket));
  }

  /**
   * @param address `unix:/path` or `host:port`, port 0 for any
   * @throws BraidError SETUP when nothing can listen there
   */
  static async listen(address: string, options: ExchangeOptions = {}): Promise<Exchange> {
    const server = createListener(options.tls ?? null);
    server.maxConnections = MAX_CONNECTIONS;
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
    return new Exchange(server, 'host' in wanted ? formatAddress(wanted.host, port) : address, options);
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
   * @throws BraidError STALE_GENERATION, PROTOCOL (a plan that contradicts itself), WORKER_LOST or UNAUTHORIZED (naming the
   *   rank), or the signal's reason
   */
  async connect(plan: ExchangePlan, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const before = this.generation?.plan.generation ?? -1;
    if (plan.generation <= before) {
      throw new BraidError(
        'STALE_GENERATION',
        `generation ${plan.generation} comes after ${before}, which this worker has been in`,
      );
    }
    requireSound(plan);
    this.abort(new BraidError('STALE_GENERATION', `generation ${before} has been replaced by ${plan.generation}`));
    this.generation?.memory.discard();
    const generation = new Generation(plan, this.traffic, this.tls, this.inPlace);
    this.generation = generation;
    for (const [socket, from] of this.early) this.admit(socket, from);
    await generation.connected(signal);
  }

  /**
   * Sums every segment of a round's `gradient` over its ranks into `reduced`, in the order of mesh.ts or ring.ts. Every rank
   * of a segment must call it with the same step and round. `gradient` keeps its values, whatever happens.
   * A sum that is not finite is an answer like others.
   * @throws BraidError WORKER_LOST, PROTOCOL, STALE_GENERATION or the signal's reason: it is over for this generation.
   */
  reduce(step: number, round: number, signal: AbortSignal): Promise<Reduced> {
    return this.current().reduce(step, round, signal);
  }

  /**
   * Starts on a round's first segment, whose gradient is there, for `reduce` to finish: the rest may still be written.
   * @throws BraidError why the exchange is over for this generation
   */
  begin(step: number, round: number): void {
    this.current().begin(step, round);
  }

  /** Nothing that was begun is still under way, and `gradient` may be written: a step that is left out is not reduced. */
  async idle(): Promise<void> {
    await this.current().idle();
  }

  /** Ends the exchange for its generation; a reduction under way fails with `reason`. */
  abort(reason: BraidError): void {
    this.generation?.fail(reason);
  }

  async close(): Promise<void> {
    this.abort(new BraidError('CANCELLED', 'the gradient exchange has been closed'));
    for (const socket of this.open) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }

  private current(): Generation {
    if (this.generation === null) throw new BraidError('PROTOCOL', 'the gradient exchange has not been connected');
    return this.generation;
  }

  private accept(socket: Socket): void {
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => this.early.delete(socket));
    readHello(socket, (from) => this.admit(socket, from));
  }

  /** A peer has said who it is and wants to receive: yes, no, or not yet. */
  private admit(socket: Socket, from: Hello): void {
    const { generation } = this;
    const known = () => generation?.knows(from) || isSecret(from.secret, this.secret());
    if (generation === null || (from.generation > generation.plan.generation && known())) {
      this.early.set(socket, from);
      return;
    }
    this.early.delete(socket);
    generation.admit(socket, from);
  }
}
