/** The sockets under the exchange: node:net, or node:tls where the run is secured. */
import { createServer, connect as dialPlain, isIP, type Server, type Socket } from 'node:net';
import {
  checkServerIdentity,
  createServer as createTlsServer,
  connect as dialTls,
  Server as TlsServer,
} from 'node:tls';
import type { Pems } from '../../proto/tls.ts';
import { parseAddress } from './address.ts';
import type { FrameReader } from './frame-reader.ts';
import { HELLO_TIMEOUT_MS } from './handshake.ts';
import { limitSendBuffer } from './send-buffer.ts';

/** The certificates for a connection that is made now: new ones are taken as soon as they are there. */
export type CurrentPems = () => Pems;

const MIN_VERSION = 'TLSv1.3';

/** A server that is not listening yet. */
export function createListener(tls: CurrentPems | null): Server {
  if (tls === null) return createServer({ noDelay: true }).on('connection', limitSendBuffer);
  let pems = tls();
  const server = createTlsServer({
    ...pems,
    noDelay: true,
    minVersion: MIN_VERSION,
    requestCert: true,
    rejectUnauthorized: true,
    handshakeTimeout: HELLO_TIMEOUT_MS,
  });
  server.on('connection', limitSendBuffer);
  server.prependListener('connection', () => {
    const now = tls();
    if (now !== pems) server.setSecureContext({ ...now, minVersion: MIN_VERSION });
    pems = now;
  });
  return server;
}

/** @param accept takes a connection, where there is TLS one with a certificate of the CA, that has said nothing yet */
export function onPeer(server: Server, accept: (socket: Socket) => void): void {
  server.on(server instanceof TlsServer ? 'secureConnection' : 'connection', accept);
}

/** A socket that fills `reader`, and pauses when that says so. */
export interface Dialed {
  socket: Socket;
  resume(): void;
}

export type Reader = Pick<FrameReader, 'space' | 'advance'>;

export function dial(address: string, tls: CurrentPems | null, reader: Reader): Dialed {
  const where = parseAddress(address);
  if (tls === null) {
    const onread = { buffer: () => reader.space(), callback: (n: number) => reader.advance(n) };
    const socket = dialPlain({ ...where, noDelay: true, onread });
    return { socket, resume: () => socket.resume() };
  }
  const host = 'host' in where ? where.host : 'localhost';
  const socket = dialTls({
    ...where,
    ...tls(),
    minVersion: MIN_VERSION,
    ...(isIP(host) === 0 && { servername: host }), // it may not be an address (RFC 6066)
    checkServerIdentity: (_, certificate) => checkServerIdentity(host, certificate),
  });
  socket.setNoDelay(true);
  // A TLS socket hands on all that it has decrypted, also past a pause: what is too much is kept for later.
  let rest: Uint8Array = new Uint8Array(0);
  const feed = (data: Uint8Array) => {
    for (let at = 0; at < data.length; ) {
      const space = reader.space();
      const n = Math.min(space.length, data.length - at);
      space.set(data.subarray(at, at + n));
      at += n;
      if (reader.advance(n)) continue;
      socket.pause();
      rest = data.subarray(at);
      return;
    }
  };
  socket.on('data', feed);
  return {
    socket,
    resume() {
      const data = rest;
      rest = new Uint8Array(0);
      socket.resume();
      feed(data);
    },
  };
}
