/** The sending half of a pair of ranks: frames to one peer, on the socket that the peer opened to receive them. */
import type { Socket } from 'node:net';
import { encodeHeader, type Header } from './frame.ts';
import type { GradientMemory } from './gradient-memory.ts';
import type { Traffic } from './traffic.ts';

/** Frames handed to the socket at once: the next one is ready when one has left, and checksums are not made ahead of need. */
const FRAMES_IN_FLIGHT = 2;

/** Part of a gradient to send, perhaps to several peers: their checksum is made once, when the first of them needs it. */
export class Payload {
  readonly bytes: Uint8Array;
  private readonly memory: GradientMemory;
  private made: number | undefined;

  /** @param at byte address in `memory`   @param length bytes */
  constructor(memory: GradientMemory, at: number, length: number) {
    this.memory = memory;
    this.bytes = memory.bytes(at, length);
  }

  get checksum(): number {
    this.made ??= this.memory.checksum(this.bytes);
    return this.made;
  }
}

interface Frame {
  header: Header;
  payload: Payload;
  sent(): void;
}

export class Outbound {
  private readonly socket: Socket;
  private readonly traffic: Traffic;
  private readonly queue: Frame[] = [];
  private inFlight = 0;

  constructor(socket: Socket, traffic: Traffic) {
    this.socket = socket;
    this.traffic = traffic;
  }

  /**
   * Queues a frame. The payload is not copied: it must not change until `sent` is called, when the kernel has it all.
   * On a socket that fails, `sent` is never called.
   */
  send(header: Header, payload: Payload, sent: () => void): void {
    this.queue.push({ header, payload, sent });
    this.pump();
  }

  destroy(): void {
    this.queue.length = 0;
    this.socket.destroy();
  }

  private pump(): void {
    while (this.inFlight < FRAMES_IN_FLIGHT && this.queue.length > 0) {
      const { header, payload, sent } = this.queue.shift()!;
      this.inFlight++;
      const head = encodeHeader(header, payload.checksum);
      this.socket.cork();
      this.socket.write(head);
      this.socket.write(payload.bytes, (error) => {
        if (error !== null && error !== undefined) return; // the socket's 'close' says why
        this.inFlight--;
        this.traffic.sentBytes += head.length + payload.bytes.length;
        sent();
        this.pump();
      });
      this.socket.uncork();
    }
  }
}
