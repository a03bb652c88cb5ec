/** The sending half of a pair of ranks: frames to one peer, on the socket that the peer opened to receive them. */
import type { Socket } from 'node:net';
import { encodeHeader, type Header } from './frame.ts';
import type { Payload } from './payload.ts';
import type { Traffic } from './traffic.ts';

/** Frames handed to the socket at once: the next one is ready when one has left, and checksums are not made ahead of need. */
const FRAMES_IN_FLIGHT = 2;

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
      const { bytes, checksum } = payload.make();
      const head = encodeHeader(header, checksum);
      this.socket.cork();
      this.socket.write(head);
      this.socket.write(bytes, (error) => {
        if (error !== null && error !== undefined) return; // the socket's 'close' says why
        this.inFlight--;
        this.traffic.sentBytes += head.length + bytes.length;
        sent();
        this.pump();
      });
      this.socket.uncork();
    }
  }
}
