/** How the processes of a run come to trust one another: the options for it, and what they name. docs/security.md */
import { readFileSync } from 'node:fs';
import { BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { Tls } from '../proto/tls.ts';
import type { Options } from './options.ts';

/** Long enough that nobody guesses it, short enough for a header; without spaces. */
const TOKEN = /^[\x21-\x7e]{16,1024}$/;

/** `--tls <folder>`: ca.pem, cert.pem and key.pem. Nobody connects without a certificate of that CA. */
export const TLS = { tls: { type: 'string' } } as const satisfies Options;
/** `--token-file <file>`: what a worker must know to join; default: BRAID_TOKEN. */
export const TOKEN_FILE = { 'token-file': { type: 'string' } } as const satisfies Options;

/** @throws BraidError SETUP naming what is wrong with the folder */
export function tlsOf({ tls }: { tls?: string | undefined }, log: Log): Tls | null {
  return tls === undefined ? null : new Tls(tls, log);
}

/** @throws BraidError SETUP when a token is named and cannot be used */
export function tokenOf({ 'token-file': file }: { 'token-file'?: string | undefined }): string | null {
  const token = file === undefined ? process.env['BRAID_TOKEN'] : read(file);
  if (token === undefined || TOKEN.test(token)) return token ?? null;
  throw new BraidError('SETUP', `${file ?? 'BRAID_TOKEN'} holds no token: 16 to 1024 letters, digits and signs`, {
    remedy: 'For example: openssl rand -hex 32 > token',
  });
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (cause) {
    throw new BraidError('SETUP', `cannot read the token: ${(cause as Error).message}`, {
      remedy: 'Name a file that holds it with --token-file.',
      cause,
    });
  }
}
