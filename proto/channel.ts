/** The options of every channel and server, and addresses: "unix:/path" or "host:port". */
import { isIP } from 'node:net';
import {
  type ChannelCredentials,
  type ChannelOptions,
  credentials,
  logVerbosity,
  type Server,
  ServerCredentials,
  setLogVerbosity,
} from '@grpc/grpc-js';
import { BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import type { Tls } from './tls.ts';

// What fails is thrown, with more to say than grpc-js's own lines on stderr; its tracing variables still work.
if (process.env.GRPC_VERBOSITY === undefined) setLogVerbosity(logVerbosity.NONE);

/** Four parts: a larger message is no correct peer's, and no memory is taken for it. */
const MESSAGE_BYTES = 4 << 20;
/** Calls under way on one connection: a peer has a few, and many at once are no correct peer's. */
const MAX_STREAMS = 64;
/** A silent connection is asked for a sign of life this often ... */
const KEEPALIVE_INTERVAL_MS = 5_000;
/** ... and given up this long after: a healthy peer's event loop may be busy for a few seconds (capture, garbage). */
const KEEPALIVE_TIMEOUT_MS = 15_000;
/** HTTP/2's window on TCP: Node's 64 KiB makes a stream four times slower; 8 MiB and more can deadlock two busy ends. */
const TCP_WINDOW_BYTES = 1 << 20;
/** A peer that is not there yet is tried again this soon, and never more rarely than RECONNECT_MAX_MS. */
const RECONNECT_INITIAL_MS = 100;
const RECONNECT_MAX_MS = 1_000;
/** sockaddr_un.sun_path, without its final zero. */
const UNIX_PATH_BYTES = 107;

const UNIX_PATH = /^\/[^\p{Cc}]+$/u;
const HOST_AND_PORT = /^(?:\[([\da-fA-F:.]{2,45})\]|([\w.-]{1,253})):(\d{1,5})$/;

const commonOptions: ChannelOptions = {
  'grpc.max_send_message_length': MESSAGE_BYTES,
  'grpc.max_receive_message_length': MESSAGE_BYTES,
  'grpc.keepalive_time_ms': KEEPALIVE_INTERVAL_MS,
  'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
};

export const serverOptions: ChannelOptions = {
  ...commonOptions,
  'grpc.max_concurrent_streams': MAX_STREAMS,
};

/** What a client of an address is made with. */
export function channel(
  address: string,
  tls: Tls | null,
): { credentials: ChannelCredentials; options: ChannelOptions } {
  // A unix socket's peer is this machine.
  const secured = tls?.channel(isUnix(address) ? 'localhost' : hostOf(address).replace(/^\[|\]$/g, ''));
  return {
    credentials: secured?.credentials ?? credentials.createInsecure(),
    options: { ...channelOptions(address), ...secured?.options },
  };
}

function channelOptions(address: string): ChannelOptions {
  return {
    ...commonOptions,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc.initial_reconnect_backoff_ms': RECONNECT_INITIAL_MS,
    'grpc.max_reconnect_backoff_ms': RECONNECT_MAX_MS,
    'grpc.enable_retries': 0, // whoever drives the step decides what is tried again
    'grpc.service_config_disable_resolution': 1,
    'grpc.enable_http_proxy': 0,
    'grpc.use_local_subchannel_pool': 1, // a connection of its own, so that bulk of two clients never meets
    ...(isUnix(address) ? {} : { 'grpc-node.flow_control_window': TCP_WINDOW_BYTES }),
  };
}

/** How what listens is protected from others than this machine. */
export interface Exposure {
  /** Everybody who connects shows a certificate. */
  tls?: Tls | null;
  /** Clear text is wanted. */
  insecure?: boolean;
}

/** @throws BraidError SETUP when others could reach an address in clear text, and nobody has said that they may */
export function requireUnexposed(address: string, { insecure = false, tls = null }: Exposure): void {
  if (insecure || tls !== null || isLocal(address)) return;
  throw new BraidError('SETUP', `${address} can be reached from other machines, and nothing is encrypted`, {
    remedy: 'Give --tls <folder>, listen on 127.0.0.1 or a unix: path, or say --insecure in a network that you trust.',
  });
}

/** Says so where others than this machine can connect in clear text. @param more what else that allows */
export function warnOfExposure(log: Log, address: string, tls: Tls | null, more = ''): void {
  if (tls === null && !isLocal(address)) {
    log.warn(`${address} is open to other machines: nothing is encrypted${more}`);
  }
}

/**
 * Binds a server.
 * @param address port 0: any free one
 * @returns the address as clients write it, with the port it got
 * @throws BraidError SETUP when the address is taken, not this machine's, or open to others in clear text
 */
export async function listen(
  server: Server,
  address: string,
  { insecure = false, tls = null }: Exposure = {},
): Promise<string> {
  requireUnexposed(address, { insecure, tls });
  if (isUnix(address) && Buffer.byteLength(address.slice('unix:'.length)) > UNIX_PATH_BYTES) {
    throw new BraidError('SETUP', `${address}: a unix socket's path has at most ${UNIX_PATH_BYTES} bytes`, {
      remedy: 'Set TMPDIR to a shorter folder, or listen on a host and port.',
    });
  }
  return new Promise((resolve, reject) => {
    server.bindAsync(address, tls?.serverCredentials() ?? ServerCredentials.createInsecure(), (cause, port) => {
      if (cause === null) return resolve(isUnix(address) ? address : `${hostOf(address)}:${port}`);
      const remedy = `Stop what listens there, or choose another address${isUnix(address) ? '' : ' (port 0: any free one)'}.`;
      reject(new BraidError('SETUP', `cannot listen on ${address}: ${cause.message}`, { remedy, cause }));
    });
  });
}

export function isUnix(address: string): boolean {
  return address.startsWith('unix:');
}

/** Whether only this machine can connect. */
export function isLocal(address: string): boolean {
  if (isUnix(address)) return true;
  const host = hostOf(address).replace(/^\[|\]$/g, '');
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

/** Whether it is where a peer can be dialed: "unix:/path" or "host:port", and nothing else that gRPC would resolve. */
export function isAddress(address: string): boolean {
  if (isUnix(address)) {
    const path = address.slice('unix:'.length);
    return Buffer.byteLength(path) <= UNIX_PATH_BYTES && UNIX_PATH.test(path);
  }
  const [, ipv6, name, port] = HOST_AND_PORT.exec(address) ?? [];
  return (ipv6 === undefined ? name !== undefined : isIP(ipv6) === 6) && Number(port) > 0 && Number(port) <= 65_535;
}

/** @throws BraidError SETUP when it is none */
export function hostOf(address: string): string {
  const colon = address.lastIndexOf(':');
  if (colon < 1 || !/^\d+$/.test(address.slice(colon + 1))) {
    throw new BraidError('SETUP', `${address} is not an address`, { remedy: 'Write host:port or unix:/path.' });
  }
  return address.slice(0, colon);
}
