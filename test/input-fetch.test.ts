import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import { BraidError } from '../core/errors.ts';
import { unpackDebianPackage } from '../input/debian.ts';
import { ensureDataset, fetchDataset } from '../input/fetch.ts';
import { formatTransfer, Progress } from '../input/progress.ts';
import { type Published, published, type Source } from '../input/sources.ts';

const content = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * i) % 251));
const never = new AbortController().signal;

test('a data set comes from the first source that works, verified, and is not fetched again', async (t) => {
  const site = await serve(t, { '/good/pixels.bin': content });
  const folder = join(temporary(t), 'set');
  const lines: string[] = [];
  const options = {
    signal: never,
    log: (line: string) => lines.push(line),
    known: known([
      { kind: 'files', url: 'http://127.0.0.1:1/' }, // nobody listens on port 1
      { kind: 'files', url: `${site.url}/absent/` },
      { kind: 'files', url: `${site.url}/good/` },
      { kind: 'files', url: `${site.url}/never-asked/` },
    ]),
  };
  await ensureDataset('set', folder, options);
  t.deepEqual(readFileSync(join(folder, 'pixels.bin')), content);
  t.deepEqual(site.asked, ['/absent/pixels.bin', '/good/pixels.bin']);
  t.true(lines.some((line) => line.includes('http://127.0.0.1:1/ does not work')));
  t.true(lines.some((line) => line.includes('the server answers 404')));
  t.false(existsSync(`${folder}.part`));
  await ensureDataset('set', folder, options);
  await fetchDataset('set', folder, options);
  t.is(site.asked.length, 2);
  t.true(lines.at(-1)!.includes('verified'));
});

test('a download that was cut off goes on where it stopped', async (t) => {
  const ranges: (string | undefined)[] = [];
  let cut = true;
  const site = await serve(t, {
    '/pixels.bin': (request, response) => {
      ranges.push(request.headers.range);
      if (cut) {
        cut = false;
        response.writeHead(200, { 'content-length': content.length });
        response.write(content.subarray(0, 100_000), () => response.destroy());
        return;
      }
      const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')![1]);
      response.writeHead(206, { 'content-range': `bytes ${from}-${content.length - 1}/${content.length}` });
      response.end(content.subarray(from));
    },
  });
  const folder = join(temporary(t), 'set');
  const options = { signal: never, log() {}, known: known([{ kind: 'files', url: `${site.url}/` }]) };
  await t.throwsAsync(fetchDataset('set', folder, options), { instanceOf: BraidError, code: 'INVALID_DATA' });
  const kept = readFileSync(join(`${folder}.part`, 'pixels.bin'));
  t.true(kept.length > 0);
  t.false(existsSync(folder));
  await fetchDataset('set', folder, options);
  t.deepEqual(ranges, [undefined, `bytes=${kept.length}-`]);
  t.deepEqual(readFileSync(join(folder, 'pixels.bin')), content);
});

test('a server without ranges, or with other ones than asked for, gives the file from its beginning', async (t) => {
  for (const answer of [
    (_: IncomingMessage, response: ServerResponse) => response.end(content),
    (request: IncomingMessage, response: ServerResponse) => {
      if (request.headers.range === undefined) return response.end(content);
      response.writeHead(206, { 'content-range': `bytes 5-9/${content.length}` });
      return response.end(content.subarray(5, 10));
    },
    (request: IncomingMessage, response: ServerResponse) => {
      if (request.headers.range !== undefined) response.writeHead(416);
      return response.end(request.headers.range === undefined ? content : '');
    },
  ]) {
    const site = await serve(t, { '/pixels.bin': answer });
    const folder = join(temporary(t), 'set');
    mkdirSync(`${folder}.part`);
    writeFileSync(join(`${folder}.part`, 'pixels.bin'), 'the beginning of something else');
    await fetchDataset('set', folder, {
      signal: never,
      log() {},
      known: known([{ kind: 'files', url: `${site.url}/` }]),
    });
    t.deepEqual(readFileSync(join(folder, 'pixels.bin')), content);
  }
});

test('a file with another hash is refused and forgotten, and the next source is tried', async (t) => {
  const site = await serve(t, { '/bad/pixels.bin': content.subarray(1), '/good/pixels.bin': content });
  const bad: Source = { kind: 'files', url: `${site.url}/bad/` };
  const folder = join(temporary(t), 'set');
  const options = { signal: never, log() {} };
  const error = await t.throwsAsync(fetchDataset('set', folder, { ...options, known: known([bad]) }), {
    instanceOf: BraidError,
    code: 'INVALID_DATA',
  });
  t.regex(
    error.message,
    /cannot fetch set:\n {2}http:.*\/bad\/: pixels.bin: found sha256 [0-9a-f]{64}, expected [0-9a-f]{64}/,
  );
  t.is(error.remedy, `Carry it over, into ${folder}.`);
  t.false(existsSync(folder));
  t.false(existsSync(`${folder}.part`));
  await fetchDataset('set', folder, { ...options, known: known([bad, { kind: 'files', url: `${site.url}/good/` }]) });
  t.deepEqual(readdirSync(folder), ['pixels.bin']);
});

test('fetch mends a file that was damaged since, and leaves the whole ones', async (t) => {
  const site = await serve(t, { '/pixels.bin': content, '/labels.bin.gz': gzipSync(content, { level: 1 }) });
  const both = known([{ kind: 'files', url: `${site.url}/` }], ['pixels.bin', 'labels.bin.gz']);
  const folder = join(temporary(t), 'set');
  const options = { signal: never, log() {}, known: both };
  await fetchDataset('set', folder, options);
  // verified by what it inflates to: another compression of the same content is as good
  writeFileSync(join(folder, 'labels.bin.gz'), gzipSync(content, { level: 9 }));
  writeFileSync(join(folder, 'pixels.bin'), content.subarray(0, 10));
  await fetchDataset('set', folder, options);
  t.deepEqual(site.asked, ['/pixels.bin', '/labels.bin.gz', '/pixels.bin']);
  t.deepEqual(readFileSync(join(folder, 'pixels.bin')), content);
});

test('an archive is verified, and its files taken out', async (t) => {
  const archive = gzipSync(tarOf('inside/pixels.bin', content));
  const site = await serve(t, { '/set.tar.gz': archive });
  const source = (sha256: string): Source => ({
    kind: 'archive',
    url: `${site.url}/set.tar.gz`,
    sha256,
    folder: 'inside',
  });
  const folder = join(temporary(t), 'set');
  const options = { signal: never, log() {} };
  await t.throwsAsync(fetchDataset('set', folder, { ...options, known: known([source('0'.repeat(64))]) }), {
    message: /found sha256 .* expected 0{64}/,
  });
  await fetchDataset('set', folder, { ...options, known: known([source(sha256Of(archive))]) });
  t.deepEqual(readFileSync(join(folder, 'pixels.bin')), content);
  t.deepEqual(readdirSync(join(folder, '..')), ['set']);
});

test('an abort stops the download and keeps what arrived', async (t) => {
  const controller = new AbortController();
  const site = await serve(t, {
    '/pixels.bin': (_, response) => {
      response.writeHead(200, { 'content-length': content.length });
      response.write(content.subarray(0, 1000));
      controller.abort();
    },
  });
  const folder = join(temporary(t), 'set');
  await t.throwsAsync(
    fetchDataset('set', folder, {
      signal: controller.signal,
      log() {},
      known: known([{ kind: 'files', url: `${site.url}/` }]),
    }),
    { instanceOf: BraidError, code: 'CANCELLED' },
  );
  t.false(existsSync(folder));
});

test('two fetches at once fetch once', async (t) => {
  const site = await serve(t, { '/pixels.bin': content });
  const folder = join(temporary(t), 'set');
  const options = { signal: never, log() {}, known: known([{ kind: 'files', url: `${site.url}/` }]) };
  await Promise.all([ensureDataset('set', folder, options), ensureDataset('set', folder, options)]);
  t.deepEqual(site.asked, ['/pixels.bin']);
  t.deepEqual(readdirSync(join(folder, '..')), ['set']);
});

test('a lock that a dead process left holds nobody up', async (t) => {
  const site = await serve(t, { '/pixels.bin': content });
  const folder = join(temporary(t), 'set');
  writeFileSync(`${folder}.lock`, '4194999'); // above the kernel's largest process id
  await fetchDataset('set', folder, {
    signal: never,
    log() {},
    known: known([{ kind: 'files', url: `${site.url}/` }]),
  });
  t.deepEqual(readdirSync(join(folder, '..')), ['set']);
});

test('an unknown name is refused with the nearest known one', async (t) => {
  const error = await t.throwsAsync(ensureDataset('fashon-mnist', 'data', { signal: never, log() {} }), {
    instanceOf: BraidError,
  });
  t.is(error.code, 'INVALID_RECIPE');
  t.is(error.message, 'unknown data set fashon-mnist, did you mean fashion-mnist?');
  t.is(error.remedy, 'Known are fashion-mnist, cifar10, cifar100.');
  await t.throwsAsync(ensureDataset('toString', 'data', { signal: never, log() {} }), {
    message: 'unknown data set toString',
  });
});

test('every published file is pinned by a hash, its own or its archive’s', (t) => {
  for (const { files, sources } of Object.values(published)) {
    const archives = sources.every((source) => source.kind === 'archive' && /^[0-9a-f]{64}$/.test(source.sha256));
    for (const file of files) t.true(archives || ('sha256' in file && /^[0-9a-f]{64}$/.test(file.sha256)), file.name);
  }
});

// PATH is the process's: serial, so that no other test sees it changed
test.serial(
  'a Debian package is unpacked without root, with package lists of its own where the machine has none',
  async (t) => {
    const bin = temporary(t);
    const staging = temporary(t);
    tool(bin, 'apt-get', [
      `echo "$@" >> "${bin}/calls"`,
      'case "$*" in',
      `  *update*) touch "${bin}/lists" ;;`,
      `  *--print-uris*) [ -e "${bin}/lists" ] || { echo "E: Unable to locate package set" >&2; exit 100; }; echo "'http://mirror/set.deb' set_1_all.deb 7" ;;`,
      '  *download*) printf package > set_1_all.deb ;;',
      'esac',
    ]);
    tool(bin, 'dpkg-deb', ['mkdir -p "$3/usr/share/set"', 'cp "$2" "$3/usr/share/set/pixels.bin"']);
    withPath(t, `${bin}${delimiter}${process.env.PATH}`);
    const root = await unpackDebianPackage('set', staging, { signal: never, progress() {} });
    t.is(readFileSync(join(root, 'usr/share/set/pixels.bin'), 'utf8'), 'package');
    const calls = readFileSync(join(bin, 'calls'), 'utf8').trim().split('\n');
    t.is(calls.length, 4);
    t.true(calls.slice(1).every((call) => call.includes(`Dir::State::Lists=${staging}/apt/lists`)));
    t.false(existsSync(join(staging, 'apt')));
  },
);

test.serial('without apt-get, or without the package, the error says so', async (t) => {
  const bin = temporary(t);
  const options = { signal: never, progress() {} };
  withPath(t, bin);
  await t.throwsAsync(unpackDebianPackage('set', temporary(t), options), { message: 'this machine has no apt-get' });
  tool(bin, 'apt-get', ['echo "E: Unable to locate package set" >&2', 'exit 100']);
  await t.throwsAsync(unpackDebianPackage('set', temporary(t), options), {
    message: /apt-get: E: Unable to locate package set/,
  });
});

test('progress tells bytes, rate and time left, and at most one line in two seconds', (t) => {
  const lines: string[] = [];
  let now = 0;
  const progress = new Progress(
    'set.bin',
    (line) => lines.push(line),
    () => now,
  );
  for (now = 0; now <= 4000; now += 500) progress.at(1e6 + 1000 * now, 10e6);
  t.deepEqual(lines, ['set.bin  3.0 of 10.0 MB  1.0 MB/s  7 s left', 'set.bin  5.0 of 10.0 MB  1.0 MB/s  5 s left']);
  t.is(formatTransfer('set.bin', 2e6, null, 0), 'set.bin  2.0 MB  0.0 MB/s');
});

function known(sources: Source[], names = ['pixels.bin']): Record<string, Published> {
  const files = names.map((name) => ({ name, sha256: sha256Of(content) }));
  return { set: { title: 'a set', licence: 'none', files, sources, manual: 'Carry it over' } };
}

function sha256Of(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function temporary(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'braid-fetch-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

type Answer = Uint8Array | ((request: IncomingMessage, response: ServerResponse) => unknown);

/** A server on a free port of this machine; anything it does not know is a 404. */
async function serve(t: ExecutionContext, answers: Record<string, Answer>): Promise<{ url: string; asked: string[] }> {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(request.url!);
    const answer = answers[request.url!];
    if (typeof answer === 'function') return void answer(request, response);
    response.writeHead(answer === undefined ? 404 : 200).end(answer);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

function tool(bin: string, name: string, script: string[]): void {
  const file = join(bin, name);
  writeFileSync(file, ['#!/bin/sh', 'set -e', ...script, ''].join('\n'));
  chmodSync(file, 0o755);
}

function withPath(t: ExecutionContext, path: string): void {
  const before = process.env.PATH;
  process.env.PATH = path;
  t.teardown(() => {
    process.env.PATH = before;
  });
}

function tarOf(name: string, bytes: Uint8Array): Buffer {
  const header = Buffer.alloc(512);
  header.write(name, 0);
  header.write(`${bytes.length.toString(8).padStart(11, '0')}\0`, 124);
  header.write('0', 156);
  header.fill(' ', 148, 156);
  const sum = header.reduce((a, b) => a + b, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return Buffer.concat([header, bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512), Buffer.alloc(1024)]);
}
