/**
 * braid certs: a certificate authority for development, and a certificate for the coordinator and one for the workers.
 *
 * Called again, it keeps the authority and renews the two: running processes take them for their next connections.
 */
import 'reflect-metadata'; // what @peculiar/x509 stands on
import { createPrivateKey, KeyObject, randomBytes, webcrypto } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { hostname } from 'node:os';
import { join } from 'node:path';
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type JsonGeneralNames,
  KeyUsageFlags,
  KeyUsagesExtension,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509';
import { BraidError } from '../core/errors.ts';
import { parse } from './options.ts';

const USAGE = 'braid certs [--out <folder>] [--host <name or address> ...]';

const OPTIONS = {
  out: { type: 'string', default: 'certs' },
  /** Where the parts run, as others reach them; this machine is always among them. */
  host: { type: 'string', multiple: true, default: [] as string[] },
} as const;

const PARTS = ['coordinator', 'worker'] as const;

const DAY_MS = 86_400_000;
const AUTHORITY_DAYS = 365;
const CERTIFICATE_DAYS = 30; // short: they are for trying things out
/** Machines whose clocks are behind take them, too. */
const CLOCK_SKEW_MS = 300_000;
const SERIAL_BYTES = 16;
const ECDSA = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

interface Authority {
  certificate: X509Certificate;
  key: webcrypto.CryptoKey;
}

export async function certs(argv: string[]): Promise<number> {
  const { values } = parse('certs', argv, OPTIONS, USAGE);
  const { folders, hosts } = await writeCertificates(values.out, values.host, new Date());
  process.stdout.write(
    `${folders.map((folder) => `wrote  ${folder}/{ca,cert,key}.pem\n`).join('')}` +
      `for    ${hosts.join(', ')}\n` +
      `until  ${new Date(Date.now() + CERTIFICATE_DAYS * DAY_MS).toISOString().slice(0, 10)}\n\n` +
      `For development: whoever reads ${join(values.out, 'authority')} can make certificates of their own.\n` +
      `  npx braid coordinator <recipe.yaml> --tls ${folders[0]}\n` +
      `  npx braid worker --coordinator <host:port> --tls ${folders[1]}\n`,
  );
  return 0;
}

/** @returns the folders for --tls, the coordinator's first, and the hosts that the certificates are for */
export async function writeCertificates(
  out: string,
  others: string[],
  now: Date,
): Promise<{ folders: string[]; hosts: string[] }> {
  const hosts = [...new Set(['localhost', '127.0.0.1', '::1', hostname(), ...others])];
  const authority = await authorityIn(join(out, 'authority'), now);
  const folders = PARTS.map((part) => join(out, part));
  for (const [i, part] of PARTS.entries()) {
    const { certificate, key } = await issue(authority, part, hosts, now);
    writePems(folders[i]!, { ca: authority.certificate.toString('pem'), cert: certificate, key });
  }
  return { folders, hosts };
}

/** The one that is there, or a new one. */
async function authorityIn(folder: string, now: Date): Promise<Authority> {
  const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
  if (existsSync(cert) && existsSync(key)) {
    try {
      const certificate = new X509Certificate(readFileSync(cert, 'utf8'));
      if (certificate.notAfter.getTime() > now.getTime() + CERTIFICATE_DAYS * DAY_MS) {
        return { certificate, key: createPrivateKey(readFileSync(key)).toCryptoKey(ECDSA, false, ['sign']) };
      }
    } catch (cause) {
      throw new BraidError('SETUP', `certs: ${folder} holds no certificate authority: ${(cause as Error).message}`, {
        remedy: `Remove ${folder}: a new one is made then.`,
        cause,
      });
    }
  }
  const keys = await newKeys();
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: 'CN=Braid development CA',
    ...validity(now, AUTHORITY_DAYS),
    signingAlgorithm: ECDSA,
    keys,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  writePems(folder, { cert: certificate.toString('pem'), key: pemOf(keys.privateKey) });
  return { certificate, key: keys.privateKey };
}

/** For both ends of a connection: every part listens and dials. */
async function issue(authority: Authority, part: string, hosts: string[], now: Date) {
  const keys = await newKeys();
  const names: JsonGeneralNames = hosts.map((host) => ({ type: isIP(host) === 0 ? 'dns' : 'ip', value: host }));
  const certificate = await X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: `CN=Braid ${part}`,
    issuer: authority.certificate.subject,
    ...validity(now, CERTIFICATE_DAYS),
    signingAlgorithm: ECDSA,
    publicKey: keys.publicKey,
    signingKey: authority.key,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
      new SubjectAlternativeNameExtension(names),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
      await AuthorityKeyIdentifierExtension.create(authority.certificate.publicKey),
    ],
  });
  return { certificate: certificate.toString('pem'), key: pemOf(keys.privateKey) };
}

/** Each whole at any moment; for their owner alone. */
function writePems(folder: string, pems: Record<string, string>): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const [name, pem] of Object.entries(pems)) {
    const file = join(folder, `${name}.pem`);
    writeFileSync(`${file}.aside`, pem.endsWith('\n') ? pem : `${pem}\n`, { mode: 0o600 });
    renameSync(`${file}.aside`, file);
  }
}

function validity(now: Date, days: number) {
  return {
    notBefore: new Date(now.getTime() - CLOCK_SKEW_MS),
    notAfter: new Date(now.getTime() + days * DAY_MS),
  };
}

/** Positive, as X.509 wants it: the first bit is zero. */
function serialNumber(): string {
  const bytes = randomBytes(SERIAL_BYTES);
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return bytes.toString('hex');
}

function newKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(ECDSA, true, ['sign', 'verify']);
}

function pemOf(key: webcrypto.CryptoKey): string {
  return KeyObject.from(key).export({ type: 'pkcs8', format: 'pem' }) as string;
}
