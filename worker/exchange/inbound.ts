/**
 * The receiving half of a pair of ranks: this side opens the socket, says who it is, and from then on only reads.
 *
 * Bytes go from the kernel to where they belong (`onread`). It reads a header only when the frame that has to come next is
 * known; what a peer sends early waits in the kernel, and slows that peer down.
 */
import { crc32 } from 'node:zlib';
import { asBraidError, BraidError, type ErrorCode } from '../../core/errors.ts';
import { tlsFailure } from '../../proto/tls-failure.ts';
import { type Announced, type Header, requireSame } from './frame.ts';
import { FrameReader } from './frame-reader.ts';
import type { Traffic } from './traffic.ts';
import { type CurrentPems, type Dialed, dial } from './transport.ts';

/** A refusal is a sentence. */
const MAX_REFUSAL_BYTES = 4096;

export interface Expected {
  header: Announced;
  /** `header.length` bytes. */
  into: Uint8Array;
}

export interface InboundOptions {
  /** Of the peer. */
  rank: number;
  address: string;
  tls: CurrentPems | null;
  /** Encoded hello. */
  hello: Uint8Array;
  traffic: Traffic;
  /** Of a gradient's frame. */
  checksum(payload: Uint8Array): number;
  /** The peer accepts: frames can follow. `inPlace`: it reads this side's gradient where that is. */
  onWelcome(inPlace: boolean): void;
  /** The frame that has to come next from this peer; null when there is none now: `wake` asks again. */
  next(): Expected | null;
  /** The frame that `next` announced is in place and undamaged. */
  onFrame(header: Header): void;
  /** Once: the socket is unusable, for this reason. */
  onFailure(error: BraidError): void;
}

export class Inbound {
  private readonly options: InboundOptions;
  private readonly dialed: Dialed;
  private welcomed = false;
  /** True exactly while the socket is paused at a frame's border. */
  private held = false;
  /** null exactly while held, and before the welcome. */
  private expected: Expected | null = null;
  private refusal: Uint8Array | null = null;
  private readonly welcome = new Uint8Array(1);

  constructor(options: InboundOptions) {
    this.options = options;
    const reader = new FrameReader({
      begin: (header) => this.begin(header),
      checksum: (payload) => (this.welcomed ? options.checksum(payload) : crc32(payload)),
      end: (header) => this.end(header),
    });
    this.dialed = dial(options.address, options.tls, {
      space: () => reader.space(),
      advance: (n) => {
        options.traffic.receivedBytes += n;
        try {
          return reader.advance(n);
        } catch (error) {
          this.fail(this.refused(asBraidError(error)));
          return false;
        }
      },
    });
    const { socket } = this.dialed;
    socket.on('error', (cause) => this.fail(this.broken(cause)));
    socket.on('close', () => {
      this.fail(
        new BraidError('WORKER_LOST', `rank ${options.rank} at ${options.address} closed its gradient exchange`, {
          details: { rank: options.rank },
        }),
      );
    });
    socket.write(options.hello);
  }

  /** Something is expected that was not before. */
  wake(): void {
    if (!this.held) return;
    this.expected = this.options.next();
    if (this.expected === null) return;
    this.held = false;
    this.dialed.resume();
  }

  destroy(): void {
    this.dialed.socket.destroy();
  }

  private begin(header: Header): Uint8Array {
    if (this.welcomed) {
      const { header: expected, into } = this.expected!;
      requireSame(header, expected);
      return into;
    }
    if (header.phase === 'welcome' && header.length === this.welcome.length) return this.welcome;
    if (header.phase === 'refuse' && header.length <= MAX_REFUSAL_BYTES) {
      this.refusal = new Uint8Array(header.length);
      return this.refusal;
    }
    const found = `a ${header.phase} frame of ${header.length} bytes`;
    throw new BraidError('PROTOCOL', `it answered a hello with ${found}`);
  }

  private end(header: Header): boolean {
    if (this.refusal !== null) throw readRefusal(this.refusal);
    if (this.welcomed) {
      this.options.onFrame(header);
    } else {
      this.welcomed = true;
      this.options.onWelcome(this.welcome[0] === 1);
    }
    this.expected = this.options.next();
    this.held = this.expected === null;
    return !this.held;
  }

  /** The error, with whose bytes these were. */
  private refused(cause: BraidError): BraidError {
    const { rank } = this.options;
    const details = { ...cause.details, rank };
    return new BraidError(cause.code, `rank ${rank}: ${cause.message}`, { ...cause, details, cause });
  }

  private broken(cause: Error): BraidError {
    const { rank, address } = this.options;
    const where = `the gradient exchange with rank ${rank} at ${address} broke`;
    const distrust = tlsFailure(cause.message);
    if (distrust === undefined) {
      return new BraidError('WORKER_LOST', `${where}: ${cause.message}`, { details: { rank }, cause });
    }
    const { what, remedy } = distrust;
    return new BraidError('UNAUTHORIZED', `${where}: ${what}`, { remedy, details: { rank }, cause });
  }

  private fail(error: BraidError): void {
    this.dialed.socket.destroy();
    this.options.onFailure(error);
  }
}

function readRefusal(bytes: Uint8Array): BraidError {
  try {
    const { code, message } = JSON.parse(new TextDecoder().decode(bytes)) as { code: ErrorCode; message: string };
    return new BraidError(code, `it refuses to exchange gradients: ${message}`);
  } catch (cause) {
    return new BraidError('PROTOCOL', 'it refuses to exchange gradients, without a readable reason', { cause });
  }
}
