/**
 * Stands between one worker and everybody else, and does to their talk what a network, or a sudden death, would: the worker
 * joins here, the coordinator and the other workers reach it through here.
 */
import { once } from 'node:events';
import { createServer, connect as dial, type Server as NetServer, type Socket } from 'node:net';
import { Server } from '@grpc/grpc-js';
import { type Connection, connect } from '../proto/calls.ts';
import { listen, serverOptions } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type {
  Call,
  CommitRequest,
  CoordinatorService,
  Messages,
  Part,
  ShardsRequest,
  WorkerService,
} from '../proto/messages.ts';

/** A call of the worker's, or the shards of a step on their way to it. */
export type Moment = keyof WorkerService | 'join' | 'shards';

export interface Script {
  /** Called before each call is passed on, and for each part of a stream. @returns what to do with it */
  at(moment: Moment, step: number): Promise<'pass' | 'garble' | 'not a number'>;
  /** The worker's membership has ended. */
  left(): void;
  /** A shard, whole and as the coordinator sent it, is on its way. */
  shard?(request: ShardsRequest, part: Part): void;
  /** The coordinator asks for a commit. */
  commit?(request: CommitRequest): void;
}

const DELAY_MS = 1_500;

export class FaultProxy {
  /** Where the worker joins. */
  address = '';
  /** Of the process behind, once it has joined. */
  pid = 0;
  private readonly script: Script;
  private readonly coordinator: Connection<CoordinatorService>;
  private readonly fronts: Server[] = [];
  private readonly sockets = new Set<Socket>();
  private readonly gates: NetServer[] = [];
  private worker: Connection<WorkerService> | null = null;
  private secret: string | null = null;
  /** What happens to the next bytes between this worker's exchange and the others'. */
  private garbleNext = false;
  private closed = false;

  constructor(coordinator: string, script: Script) {
    this.script = script;
    this.coordinator = connect(coordinatorService, coordinator, { peer: 'the coordinator', secret: () => this.secret });
  }

  async open(): Promise<void> {
    const front = new Server(serverOptions);
    implement(front, coordinatorService, this.coordinatorSide());
    this.fronts.push(front);
    this.address = await listen(front, this.address === '' ? '127.0.0.1:0' : this.address);
  }

  /** Every connection of this worker breaks; it may come back. */
  async cut(): Promise<void> {
    for (const front of this.fronts.splice(0)) front.forceShutdown();
    for (const socket of this.sockets) socket.destroy();
    this.worker?.close();
    if (!this.closed) await this.open();
  }

  /** The next bytes of the exchange on their way to or from this worker are not what was sent. */
  garbleExchange(): void {
    this.garbleNext = true;
  }

  /** The exchange's connections break. */
  cutExchange(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  static delay(): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, DELAY_MS));
  }

  close(): void {
    this.closed = true;
    for (const front of this.fronts) front.forceShutdown();
    for (const socket of this.sockets) socket.destroy();
    for (const gate of this.gates) gate.close();
    this.worker?.close();
    this.coordinator.close();
  }

  private coordinatorSide(): CoordinatorService {
    const { coordinator } = this;
    const proxy = this;
    return {
      async *join(request, call) {
        proxy.pid = request.pid;
        await proxy.script.at('join', 0);
        proxy.worker?.close();
        proxy.worker = connect(workerService, request.address, { peer: 'the worker', secret: () => proxy.secret });
        const back = new Server(serverOptions);
        implement(back, workerService, proxy.workerSide());
        proxy.fronts.push(back);
        const address = await listen(back, '127.0.0.1:0');
        const exchangeAddress = await proxy.gate(request.exchangeAddress);
        try {
          for await (const answer of coordinator.join({ ...request, address, exchangeAddress }, call)) {
            proxy.secret = answer.secret;
            yield answer;
          }
        } finally {
          proxy.script.left();
        }
      },
      leave: (request, call) => coordinator.leave(request, call),
      watch: (request, call) => coordinator.watch(request, call),
      shards: (request, call) =>
        request.split === 'SPLIT_TRAIN'
          ? proxy.garbled('shards', proxy.shown(request, coordinator.shards(request, call)))
          : coordinator.shards(request, call),
    };
  }

  private workerSide(): WorkerService {
    const { script } = this;
    const worker = () => this.worker!;
    const unary =
      <Request extends { step: number }, Response>(
        rpc: Moment,
        to: () => (request: Request, call: Call) => Promise<Response>,
      ) =>
      async (request: Request, call: Call): Promise<Response> => {
        await script.at(rpc, request.step);
        return to()(request, call);
      };
    return {
      status: (request, call) => worker().status(request, call),
      trace: (request, call) => worker().trace(request, call),
      async prepare(request, call) {
        await script.at('prepare', 0);
        return worker().prepare(request, call);
      },
      readState: (request, call) => this.garbled('readState', worker().readState(request, call)),
      writeState: (parts, call) => worker().writeState(this.garbled('writeState', parts), call),
      hashState: unary('hashState', () => worker().hashState),
      async compute(request, call) {
        const what = await script.at('compute', request.step);
        const answer = await worker().compute(request, call);
        return what === 'not a number' ? { ...answer, losses: answer.losses.map(() => Number.NaN) } : answer;
      },
      forward: (request, call) =>
        request.split === 'SPLIT_TRAIN'
          ? this.garbled('forward', worker().forward(request, call))
          : worker().forward(request, call),
      backward: (parts, call) => worker().backward(this.garbled('backward', parts), call),
      inspect: (request, call) => worker().inspect(request, call),
      reduce: unary('reduce', () => worker().reduce),
      async commit(request, call) {
        await script.at('commit', request.step);
        script.commit?.(request);
        return worker().commit(request, call);
      },
      evaluate: unary('evaluate', () => worker().evaluate),
      stop: (request, call) => worker().stop(request, call),
    };
  }

  private async *shown(request: ShardsRequest, parts: Messages<Part>): AsyncGenerator<Part> {
    for await (const part of parts) {
      if (part.offset === 0 && part.last) this.script.shard?.(request, part);
      yield part;
    }
  }

  private async *garbled(moment: Moment, parts: Messages<Part>): AsyncGenerator<Part> {
    for await (const part of parts) {
      const what = await this.script.at(moment, part.step);
      const data = what === 'garble' ? part.data.map((byte, i) => (i === 0 ? byte ^ 0xff : byte)) : part.data;
      yield { ...part, data };
    }
  }

  /** A door of the proxy's own to the worker's exchange. @returns its address */
  private async gate(to: string): Promise<string> {
    const [host, port] = [to.slice(0, to.lastIndexOf(':')), Number(to.slice(to.lastIndexOf(':') + 1))];
    const gate = createServer((near) => {
      const far = dial(port, host);
      for (const [from, other] of [
        [near, far],
        [far, near],
      ] as const) {
        this.sockets.add(from);
        from.on('error', () => {});
        from.on('close', () => {
          this.sockets.delete(from);
          other.destroy();
        });
        from.on('data', (bytes: Buffer) => {
          if (this.garbleNext) {
            this.garbleNext = false;
            bytes[bytes.length - 1]! ^= 0xff;
          }
          other.write(bytes);
        });
      }
    });
    gate.listen(0, '127.0.0.1');
    await once(gate, 'listening');
    this.gates.push(gate);
    return `127.0.0.1:${(gate.address() as { port: number }).port}`;
  }
}
