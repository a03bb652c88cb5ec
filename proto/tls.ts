/**
 * Who a process is in mutual TLS, and whom it believes: a folder with cert.pem, key.pem and ca.pem.
 *
 * Files that change are taken for new connections as soon as they fit together, so that certificates are renewed without a
 * restart; connections that are open stay. Every certificate of the CA is a part of the cluster, whatever its name: what
 * a peer may ask for is decided by its secret (access.ts).
 */
import { X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { checkServerIdentity, createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, experimental, type ServerCredentials } from '@grpc/grpc-js';
import { asBraidError, BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';

/** PEM, as node:tls takes them. */
export interface Pems {
  ca: Buffer;
  cert: Buffer;
  key: Buffer;
}

const FILES = ['ca', 'cert', 'key'] as const;
/** How often the files are looked at while something listens or is connected. */
const LOOK_INTERVAL_MS = 1_000;
/** Far above a chain and a bundle of CAs: another file is not read. */
const MAX_PEM_BYTES = 1 << 20;

export class Tls implements experimental.CertificateProvider {
  readonly folder: string;
  private readonly log: Log;
  private pems: Pems;
  /** Sizes and times of the files, when they were last read. */
  private seen: string;
  private readonly caListeners = new Set<experimental.CaCertificateUpdateListener>();
  private readonly identityListeners = new Set<experimental.IdentityCertificateUpdateListener>();
  /** undefined exactly while nobody listens. */
  private timer: NodeJS.Timeout | undefined;

  /** @throws BraidError SETUP naming the file that is missing, unreadable or expired, or does not fit the others */
  constructor(folder: string, log: Log) {
    this.folder = folder;
    this.log = log;
    this.seen = lookAt(folder);
    this.pems = read(folder);
  }

  /** For a connection that is made now. */
  current(): Pems {
    this.look();
    return this.pems;
  }

  /** A server with these refuses whoever shows no certificate of the CA. */
  serverCredentials(): ServerCredentials {
    return experimental.createCertificateProviderServerCredentials(this, this, true);
  }

  /** @param host what the peer's certificate must be for */
  channel(host: string): { credentials: ChannelCredentials; options: ChannelOptions } {
    return {
      credentials: experimental.createCertificateProviderChannelCredentials(this, this, {
        checkServerIdentity: (_, certificate) => checkServerIdentity(host, certificate),
      }),
      // The name that TLS itself sends may not be an address (RFC 6066).
      options: isIP(host) === 0 ? {} : { 'grpc.ssl_target_name_override': 'localhost' },
    };
  }

  addCaCertificateListener(listener: experimental.CaCertificateUpdateListener): void {
    this.caListeners.add(listener);
    this.watch();
    process.nextTick(() => listener({ caCertificate: this.pems.ca }));
  }

  removeCaCertificateListener(listener: experimental.CaCertificateUpdateListener): void {
    this.caListeners.delete(listener);
    this.watch();
  }

  addIdentityCertificateListener(listener: experimental.IdentityCertificateUpdateListener): void {
    this.identityListeners.add(listener);
    this.watch();
    process.nextTick(() => listener({ certificate: this.pems.cert, privateKey: this.pems.key }));
  }

  removeIdentityCertificateListener(listener: experimental.IdentityCertificateUpdateListener): void {
    this.identityListeners.delete(listener);
    this.watch();
  }

  private watch(): void {
    if (this.caListeners.size + this.identityListeners.size === 0) {
      clearInterval(this.timer);
      this.timer = undefined;
    } else {
      this.timer ??= setInterval(() => this.look(), LOOK_INTERVAL_MS).unref();
    }
  }

  /** Takes the files anew when they have changed. Some may still be on their way: then the ones before stay. */
  private look(): void {
    try {
      const found = lookAt(this.folder);
      if (found === this.seen) return;
      this.seen = found;
      this.pems = read(this.folder);
    } catch (thrown) {
      this.log.warn(`${asBraidError(thrown).message}: the certificates from before stay in use`);
      return;
    }
    this.log.info(`new certificates out of ${this.folder}`);
    const { ca, cert, key } = this.pems;
    for (const listener of this.caListeners) listener({ caCertificate: ca });
    for (const listener of this.identityListeners) listener({ certificate: cert, privateKey: key });
  }
}

function read(folder: string): Pems {
  const pems = Object.fromEntries(FILES.map((name) => [name, readPem(join(folder, `${name}.pem`))])) as unknown as Pems;
  let until: Date;
  try {
    createSecureContext(pems);
    until = new Date(new X509Certificate(pems.cert).validTo);
  } catch (cause) {
    throw unusable(`${folder}: ca.pem, cert.pem and key.pem do not fit together: ${(cause as Error).message}`, cause);
  }
  if (until.getTime() < Date.now()) throw unusable(`${join(folder, 'cert.pem')} expired on ${until.toISOString()}`);
  return pems;
}

function readPem(file: string): Buffer {
  try {
    if (statSync(file).size > MAX_PEM_BYTES) throw new Error(`it has more than ${MAX_PEM_BYTES} bytes`);
    return readFileSync(file);
  } catch (cause) {
    throw unusable(`cannot read ${file}: ${(cause as Error).message}`, cause);
  }
}

/** What tells one version of the files from another. */
function lookAt(folder: string): string {
  const stats = FILES.map((name) => statSync(join(folder, `${name}.pem`), { throwIfNoEntry: false }));
  return stats.map((stat) => (stat === undefined ? 'absent' : `${stat.ino} ${stat.size} ${stat.mtimeMs}`)).join();
}

function unusable(message: string, cause?: unknown): BraidError {
  return new BraidError('SETUP', message, {
    remedy: '--tls takes a folder with ca.pem, cert.pem and key.pem; `braid certs` makes some for development.',
    ...(cause === undefined ? {} : { cause }),
  });
}
