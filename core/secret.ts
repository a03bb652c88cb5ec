/** Secrets that calls show. */
import { createHash, timingSafeEqual } from 'node:crypto';

/** Takes as long for any secret that is wrong. Nothing equals null: a secret that is not known yet lets nobody in. */
export function isSecret(shown: string, secret: string | null): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(shown), digest(secret ?? '')) && secret !== null && secret !== '';
}
