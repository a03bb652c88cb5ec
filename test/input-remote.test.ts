/** Data sets on HTTP servers and in S3: the same samples as from disk, by ranges, and whatever goes wrong on the way. */
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { basename, join } from 'node:path';
import { PutObjectCommand } from '@aws-sdk/client-s3';
import test from 'ava';
import { startFauxqs } from 'fauxqs';
import { openDataset } from '../input/dataset.ts';
import { s3Client } from '../input/s3-client.ts';
import { unrolled } from '../input/store.ts';
import { contents, dataOf, expected, FORMATS, index, sources } from './formats.ts';
import { temporaryFolder } from './training.ts';

const BUCKET = 'braid-test';
for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
const s3 = await startFauxqs({ port: 0, logger: false });
s3.createBucket(BUCKET);
test.after.always(() => s3.stop());
Object.assign(process.env, {
  AWS_ACCESS_KEY_ID: 'AKIA0123456789TEST',
  AWS_SECRET_ACCESS_KEY: 'a-secret',
  AWS_EC2_METADATA_DISABLED: 'true',
  AWS_ENDPOINT_URL_S3: `http://127.0.0.1:${s3.port}`,
});
const client = s3Client({ endpoint: null, region: null, pathStyle: null }, 1);
test.after.always(() => client.destroy());

async function put(key: string, bytes: Uint8Array): Promise<void> {
  await client.send(new PutObjectCommand({ Bucket: BUCKET, Key: key, Body: bytes }));
}

/** @returns whether it has answered */
type Fault = (request: IncomingMessage, response: ServerResponse) => boolean | undefined;

/** Serves the fixtures by ranges. */
async function httpServer(fault: Fault = () => false) {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(`${request.method} ${request.headers.range ?? ''}`);
    if (fault(request, response)) return;
    const bytes = readFileSync(join(FORMATS, decodeURIComponent(request.url!)));
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
    const part = from === undefined ? bytes : bytes.subarray(Number(from), Number(to) + 1);
    response.writeHead(from === undefined ? 200 : 206, { 'content-length': part.length });
    response.end(request.method === 'HEAD' ? undefined : part);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
    },
  };
}

for (const [name, { source, firstLabel }] of Object.entries(sources)) {
  test(`${name}: the same samples from HTTP and from S3, of which no more is read than is wanted`, async (t) => {
    await using folder = temporaryFolder();
    await using http = await httpServer();
    const file = join(folder.path, 'http.braid');
    await index(`${http.url}/${source}`, file, firstLabel);
    const remote = await openDataset(dataOf(file), 'train');
    http.requests.length = 0;
    t.deepEqual(await contents(remote), expected);
    const ranges = http.requests.map((request) => /^GET bytes=(\d+)-(\d+)$/.exec(request)!);
    const bytes = ranges.reduce((sum, [, from, to]) => sum + Number(to) - Number(from) + 1, 0);
    if (remote.where(0).includes('parquet-snappy')) t.true(ranges.length <= expected.length, 'pages are shared');
    else t.true(bytes < 1.3 * expected.reduce((sum, sample) => sum + sample.bytes, 0));
    remote.close();

    const files = unrolled(source);
    for (const each of files) await put(`sets/${each}`, readFileSync(join(FORMATS, each)));
    const wanted = `s3://${BUCKET}/sets/${name}`;
    const { path } = await index(wanted, join(folder.path, 's3.braid'), firstLabel);
    const stored = await openDataset(dataOf(path), 'train');
    t.deepEqual(await contents(stored), expected);
    t.true(stored.where(0).startsWith(`${wanted}/${basename(files[0]!)}, byte`));
    stored.close();
  });
}

test('an index that lies beside its files is opened from there, too', async (t) => {
  await using folder = temporaryFolder();
  for (const each of unrolled(sources.tar!.source)) folder.write(each, readFileSync(join(FORMATS, each)));
  const root = join(folder.path, 'tar');
  const { path } = await index(root, null);
  for (const file of [path, ...unrolled(sources.tar!.source).map((each) => join(folder.path, each))]) {
    await put(`moved/${basename(file)}`, readFileSync(file));
  }
  // S3 has tags, and a folder has none: what was indexed on disk is known by its sizes.
  const dataset = await openDataset(dataOf(`s3://${BUCKET}/moved`), 'train');
  t.deepEqual(await contents(dataset), expected);
  dataset.close();
  const missing = dataOf(`s3://${BUCKET}/nowhere`);
  await t.throwsAsync(openDataset(missing, 'train'), { message: /nowhere\/index\.braid: found no such object/ });
});

test('a file that has changed on its server is refused before anything is read', async (t) => {
  await using folder = temporaryFolder();
  let etag = '"1"';
  await using http = await httpServer((_, response) => void response.setHeader('etag', etag));
  const file = join(folder.path, 'x.braid');
  await index(`${http.url}/${sources.tar!.source}`, file);
  (await openDataset(dataOf(file), 'train')).close();
  etag = '"2"';
  await t.throwsAsync(openDataset(dataOf(file), 'train'), {
    message: /shard-000000\.tar: found tag "2", expected tag "1"/,
  });
  await put('changing/shard-000000.tar', readFileSync(join(FORMATS, 'tar/shard-000000.tar')));
  const { path } = await index(`s3://${BUCKET}/changing`, join(folder.path, 'z.braid'));
  const changed = readFileSync(join(FORMATS, 'tar/shard-000000.tar'));
  changed[600]! ^= 1;
  await put('changing/shard-000000.tar', changed);
  await t.throwsAsync(openDataset(dataOf(path), 'train'), {
    message: /changing\/shard-000000\.tar: found tag "\w+", expected tag "\w+", as in the index/,
  });
});

test('what passes is tried again; what stays is told by its address', async (t) => {
  await using folder = temporaryFolder();
  let failures = 0;
  const busy: Fault = (request, response) => {
    if (request.method !== 'GET' || failures++ % 2 === 1) return false;
    if (failures % 4 === 1) response.writeHead(503).end();
    else response.destroy();
    return true;
  };
  await using flaky = await httpServer(busy);
  const { samples } = await index(`${flaky.url}/${sources.tar!.source}`, join(folder.path, 'x.braid'));
  t.is(samples, expected.length);
  t.true(failures > 2);

  const cases: [Fault, RegExp][] = [
    [(_, response) => !!response.writeHead(404).end(), /shard-000000\.tar: found status 404, expected/],
    [
      ({ method }, response) => method === 'GET' && !!response.writeHead(200).end('all of it'),
      /shard-000000\.tar: found an answer with the whole file, where a range was asked for/,
    ],
  ];
  for (const [fault, message] of cases) {
    await using server = await httpServer(fault);
    await t.throwsAsync(index(`${server.url}/tar/shard-000000.tar`, join(folder.path, 'y.braid')), { message });
  }
  await t.throwsAsync(index(`${flaky.url}/tar`, join(folder.path, 'y.braid')), { message: /does not say which files/ });
  await t.throwsAsync(index(`s3://${BUCKET}/none`, join(folder.path, 'y.braid')), { message: /found no files/ });
  await t.throwsAsync(index('s3://no-such-bucket/x', join(folder.path, 'y.braid')), { message: /found NoSuchBucket/ });
  await t.throwsAsync(index(`s3://${BUCKET}/sets/tar`, null), { message: /is no folder of this machine/ });
});
