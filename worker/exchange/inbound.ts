/**
 * The receiving half of a pair of ranks: this side opens the socket, says who it is, and from then on only reads.
 *
 * Bytes go from the kernel to where they belong (`onread`). It reads a header only when the frame that has to come next is
 * known; what a peer sends early waits in the kernel, and slows that peer down.
 */
import { connect, type Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { asBraidError, BraidError, type ErrorCode } from '../../core/errors.ts';
import { parseAddress } from './address.ts';
import { type Header, requireSame } from './frame.ts';
import { FrameReader } from './frame-reader.ts';
import type { Traffic } from './traffic.ts';

/** A refusal is a sentence. */
const MAX_REFUSAL_BYTES = 4096;

export interface Expected {
  header: Header;
  /** `header.length` bytes. */
  into: Uint8Array;
}

export interface InboundOptions {
  /** Of the peer. */
  rank: number;
  address: string;
  /** Encoded hello. */
  hello: Uint8Array;
  traffic: Traffic;
  /** Of a gradient's frame. */
  checksum(payload: Uint8Array): number;
  /** The peer accepts: frames can follow. */
  onWelcome(): void;
  /** The frame that has to come next from this peer; null when there is none now: `wake` asks again. */
  next(): Expected | null;
  /** The frame that `next` announced is in place and undamaged. */
  onFrame(): void;
  /** Once: the socket is unusable, for this reason. */
  onFailure(error: BraidError): void;
}

export class Inbound {
  private readonly options: InboundOptions;
  private readonly socket: Socket;
  private welcomed = false;
  /** True exactly while the socket is paused at a frame's border. */
  private held = false;
  /** null exactly while held, and before the welcome. */
  private expected: Expected | null = null;
  private refusal: Uint8Array | null = null;

  constructor(options: InboundOptions) {
    this.options = options;
    const reader = new FrameReader({
      begin: (header) => this.begin(header),
      checksum: (payload) => (this.welcomed ? options.checksum(payload) : crc32(payload)),
      end: () => this.end(),
    });
    this.socket = connect({
      ...parseAddress(options.address),
      noDelay: true,
      onread: {
        buffer: () => reader.space(),
        callback: (n) => {
          options.traffic.receivedBytes += n;
          try {
            return reader.advance(n);
          } catch (error) {
            this.fail(asBraidError(error));
            return false;
          }
        },
      },
    });
    this.socket.on('error', (cause) => {
      this.fail(
        new BraidError(
          'WORKER_LOST',
          `the gradient exchange with rank ${options.rank} at ${options.address} broke: ${cause.message}`,
          {
            details: { rank: options.rank },
            cause,
          },
        ),
      );
    });
    this.socket.on('close', () => {
      this.fail(
        new BraidError('WORKER_LOST', `rank ${options.rank} at ${options.address} closed its gradient exchange`, {
          details: { rank: options.rank },
        }),
      );
    });
    this.socket.write(options.hello);
  }

  /** Something is expected that was not before. */
  wake(): void {
    if (!this.held) return;
    this.expected = this.options.next();
    if (this.expected === null) return;
    this.held = false;
    this.socket.resume();
  }

  destroy(): void {
    this.socket.destroy();
  }

  private begin(header: Header): Uint8Array {
    if (this.welcomed) {
      const { header: expected, into } = this.expected!;
      requireSame(header, expected);
      return into;
    }
    if (header.phase === 'welcome' && header.length === 0) return new Uint8Array(0);
    if (header.phase === 'refuse' && header.length <= MAX_REFUSAL_BYTES) {
      this.refusal = new Uint8Array(header.length);
      return this.refusal;
    }
    throw new BraidError(
      'PROTOCOL',
      `rank ${this.options.rank} answered a hello with a ${header.phase} frame of ${header.length} bytes`,
    );
  }

  private end(): boolean {
    if (this.refusal !== null) throw readRefusal(this.refusal, this.options.rank);
    if (this.welcomed) {
      this.options.onFrame();
    } else {
      this.welcomed = true;
      this.options.onWelcome();
    }
    this.expected = this.options.next();
    this.held = this.expected === null;
    return !this.held;
  }

  private fail(error: BraidError): void {
    this.socket.destroy();
    this.options.onFailure(error);
  }
}

function readRefusal(bytes: Uint8Array, rank: number): BraidError {
  try {
    const { code, message } = JSON.parse(new TextDecoder().decode(bytes)) as { code: ErrorCode; message: string };
    return new BraidError(code, `rank ${rank} refuses to exchange gradients: ${message}`, { details: { rank } });
  } catch (cause) {
    return new BraidError('PROTOCOL', `rank ${rank} refuses to exchange gradients, without a readable reason`, {
      details: { rank },
      cause,
    });
  }
}
