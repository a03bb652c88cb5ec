import { readFileSync } from 'node:fs';

/** Braid's version, from package.json: coordinator and workers must agree on it. */
export const VERSION: string = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version;
