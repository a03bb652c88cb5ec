/**
 * A headless Chromium that npm brings, with every library it needs beyond libc: the same on all machines, and nothing to be
 * installed. It is unpacked once, into this project's cache.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import puppeteer, { type Browser } from 'puppeteer-core';

const CACHE = new URL('../.cache/', import.meta.url).pathname;
const UNPACKED = join(CACHE, 'chromium');
const PACKAGE = new URL('../node_modules/@sparticuz/chromium/', import.meta.url);

/** No sandbox: its own needs a setuid helper or user namespaces. It shows this project's own page alone. */
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-dev-shm-usage',
  '--font-render-hinting=none',
];

const FONTS = `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>${UNPACKED}/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>${UNPACKED}/fonts/cache</cachedir>
</fontconfig>
`;

export async function openChromium(): Promise<Browser> {
  if (!existsSync(UNPACKED)) await unpack();
  return await puppeteer.launch({
    executablePath: join(UNPACKED, 'chromium'),
    args: FLAGS,
    headless: 'shell',
    env: {
      ...process.env,
      HOME: UNPACKED,
      LANG: 'en_US.UTF-8', // with POSIX's, its own language is one that Intl refuses
      FONTCONFIG_PATH: join(UNPACKED, 'fonts'),
      LD_LIBRARY_PATH: join(UNPACKED, 'al2023/lib'),
    },
  });
}

/** The package unpacks into the folder for temporary files, whichever that is: here one beside the place. */
async function unpack(): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const aside = await mkdtemp(join(CACHE, 'aside-'));
  const script = `
    import { inflate } from '${new URL('build/index.js', PACKAGE)}';
    for (const name of ['chromium.br', 'fonts.tar.br', 'al2023.tar.br']) await inflate('${new URL('bin/', PACKAGE).pathname}' + name);
  `;
  try {
    await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script], {
      env: { ...process.env, TMPDIR: aside },
    });
    await writeFile(join(aside, 'fonts/fonts.conf'), FONTS);
    if (!existsSync(UNPACKED)) await rename(aside, UNPACKED);
  } finally {
    await rm(aside, { recursive: true, force: true });
  }
}
