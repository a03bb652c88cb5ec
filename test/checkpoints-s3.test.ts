/**
 * Checkpoints in S3-compatible storage, against a server that checks parts, their order, their least size and their ETags
 * (fauxqs). Between it and the client is a proxy, for what goes wrong on the way.
 */
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { startFauxqs } from 'fauxqs';
import { readCheckpoint, readManifest, sizeProblem, writeCheckpoint } from '../coordinator/checkpoints.ts';
import { FolderStore } from '../coordinator/checkpoints-folder.ts';
import { type CheckpointStore, openStore, type Place } from '../coordinator/checkpoints-store.ts';
import { CheckpointWriter } from '../coordinator/checkpoints-writer.ts';
import type { RunEvent } from '../coordinator/events.ts';
import { BraidError, type ErrorCode } from '../core/errors.ts';
import { checkRecipe } from '../core/recipe.ts';
import { factsOf, flatOf, KEEP_ALL, stateOf } from './checkpoints.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import { temporaryFolder } from './training.ts';

const SECRET = 'a-secret-that-nobody-else-says';
const KEY = 'AKIA0123456789TEST';
const BUCKET = 'braid-test';
const PART_BYTES = 8 << 20; // as in coordinator/checkpoints-s3.ts

for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
Object.assign(process.env, {
  AWS_ACCESS_KEY_ID: KEY,
  AWS_SECRET_ACCESS_KEY: SECRET,
  AWS_EC2_METADATA_DISABLED: 'true',
});

const server = await startFauxqs({ port: 0, logger: false });
server.createBucket(BUCKET);
test.after.always(() => server.stop());

/** @returns whether the request goes no further */
type Fault = (request: IncomingMessage, response: ServerResponse) => boolean | Promise<boolean>;

interface Proxy extends AsyncDisposable {
  place: Extract<Place, { kind: 's3' }>;
  /** Of every request that came: "PUT /braid-test/p/step-00000001/manifest.json". */
  requests: string[];
}

let prefixes = 0;

/** A place of its own behind a proxy. */
async function proxied(fault: Fault = () => false): Promise<Proxy> {
  const requests: string[] = [];
  const proxy = createServer(async (incoming, response) => {
    requests.push(`${incoming.method} ${incoming.url!.replace(/\?x-id=\w+$/, '')}`);
    if (await fault(incoming, response)) return;
    const { method, url: path, headers } = incoming;
    const onwards = request({ host: '127.0.0.1', port: server.port, method, path, headers }, (answer) => {
      response.writeHead(answer.statusCode!, answer.headers);
      answer.pipe(response);
    });
    onwards.on('error', () => response.destroy());
    incoming.pipe(onwards);
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const endpoint = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  return {
    place: { kind: 's3', url: `s3://${BUCKET}/runs/${prefixes++}`, endpoint, region: null, pathStyle: null },
    requests,
    async [Symbol.asyncDispose]() {
      proxy.closeAllConnections();
      proxy.close();
    },
  };
}

const namesIn = async (store: CheckpointStore) => (await store.list()).map(({ name }) => name);

function refuse(response: ServerResponse, status: number, code: string): true {
  response.writeHead(status, { 'content-type': 'application/xml' });
  response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>said the server</Message></Error>`);
  return true;
}

// ---------------------------------------------------------------- both kinds of store are alike

const kinds: Record<string, () => Promise<AsyncDisposable & { store: CheckpointStore }>> = {
  'a folder': async () => {
    const folder = temporaryFolder();
    return Object.assign(folder, { store: new FolderStore(join(folder.path, 'checkpoints')) });
  },
  S3: async () => {
    const proxy = await proxied();
    return Object.assign(proxy, { store: await openStore(proxy.place) });
  },
};

for (const [kind, open] of Object.entries(kinds)) {
  test(`${kind}: what is written is listed with its sizes, read back, replaced and removed`, async (t) => {
    await using opened = await open();
    const { store } = opened;
    t.deepEqual(await store.list(), []);
    for (const step of [2, 1, 3]) {
      await store.write(`step-0000000${step}`, [
        ['model.safetensors', Buffer.from('model')],
        ['manifest.json', Buffer.from(`manifest ${step}`)],
      ]);
    }
    const listed = await store.list();
    t.deepEqual(
      listed.map(({ step }) => step),
      [1, 2, 3],
    );
    t.like(listed[0], { name: 'step-00000001', path: `${store.where}/step-00000001` });
    t.deepEqual(listed[0]!.files, { 'model.safetensors': 5, 'manifest.json': 10 });
    t.true(Math.abs(listed[0]!.writtenAt.getTime() - Date.now()) < 60_000);
    t.is(Buffer.from(await store.read('step-00000002', 'manifest.json', 100)).toString(), 'manifest 2');

    await store.write('step-00000002', [['manifest.json', Buffer.from('again')]]);
    t.deepEqual((await store.list())[1]!.files, { 'manifest.json': 5 });
    await store.remove('step-00000002');
    await store.remove('step-00000002');
    t.deepEqual(await namesIn(store), ['step-00000001', 'step-00000003']);
  });

  test(`${kind}: what is missing or longer than expected is refused by name`, async (t) => {
    await using opened = await open();
    const { store } = opened;
    await store.write('step-00000001', [['manifest.json', Buffer.alloc(100)]]);
    const read = (name: string, file: string) => store.read(name, file, 99);
    const long = await t.throwsAsync(read('step-00000001', 'manifest.json'), { instanceOf: BraidError });
    t.is(
      long.message,
      `${store.where}/step-00000001/manifest.json is damaged: 100 bytes, not more than 99 are expected`,
    );
    const missing = await t.throwsAsync(read('step-00000001', 'model.safetensors'), { instanceOf: BraidError });
    t.is(missing.code, 'INVALID_CHECKPOINT');
    t.regex(missing.message, /^cannot read .*step-00000001\/model\.safetensors: /);
  });

  test(`${kind}: a checkpoint is read back bit for bit, and the newest are kept`, async (t) => {
    await using opened = await open();
    const { store } = opened;
    for (const step of [1, 2, 3, 4]) {
      await writeCheckpoint(store, factsOf(step), stateOf(step), { keep: 1, keepEverySteps: 2 });
    }
    t.deepEqual(await namesIn(store), ['step-00000002', 'step-00000004']);
    const { weights, momenta, averages } = await readCheckpoint(store, 'step-00000004');
    t.deepEqual({ weights, momenta, averages }, stateOf(4));
  });
}

// ---------------------------------------------------------------- S3 alone

test('the manifest is uploaded last and deleted first', async (t) => {
  await using proxy = await proxied();
  const store = await openStore(proxy.place);
  await writeCheckpoint(store, factsOf(1), stateOf(1), KEEP_ALL);
  await store.remove('step-00000001');
  const files = (method: string) =>
    proxy.requests.filter((each) => each.startsWith(method)).map((each) => each.split('/').at(-1));
  t.deepEqual(files('PUT'), ['model.safetensors', 'optimizer.safetensors', 'manifest.json']);
  t.is(files('DELETE')[0], 'manifest.json');
  t.is(files('DELETE').length, 3);
});

test('a large file goes in parts, and comes back bit for bit', async (t) => {
  await using proxy = await proxied();
  const store = await openStore(proxy.place);
  const elements = (2.5 * PART_BYTES) / 4;
  const { bytes } = await writeCheckpoint(store, factsOf(1), stateOf(1, elements), KEEP_ALL);
  t.true(bytes > 2 * 2.5 * PART_BYTES);
  const parts = proxy.requests.filter((each) => /^PUT .*model\.safetensors\?partNumber=\d/.test(each));
  t.is(parts.length, 3);
  const { weights } = await readCheckpoint(store, 'step-00000001');
  t.true(weights.get('branch.0.fc.weight')!.data.every((value) => value === 1));
  t.is(weights.get('branch.0.fc.weight')!.data.length, elements);
  const [stored] = await store.list();
  t.is(sizeProblem(stored!, await readManifest(store, stored!.name)), null);
});

test('an upload that ends too early is no checkpoint, and the next one clears it up', async (t) => {
  let broken = true;
  await using proxy = await proxied(({ method, url }, response) => {
    if (!broken || method !== 'PUT' || !url!.includes('optimizer')) return false;
    return refuse(response, 403, 'AccessDenied');
  });
  const store = await openStore(proxy.place);
  const error = await t.throwsAsync(writeCheckpoint(store, factsOf(1), stateOf(1), KEEP_ALL), {
    instanceOf: BraidError,
  });
  t.is(error.code, 'SETUP');
  t.regex(
    error.message,
    /^cannot write the checkpoint s3:\/\/.*\/step-00000001\/optimizer\.safetensors: AccessDenied: said/,
  );
  t.regex(error.remedy, /keys in the environment/);
  t.deepEqual(await store.list(), []);

  // As after kill -9: a file without a manifest.
  broken = false;
  await store.write('step-00000001', [['model.safetensors', Buffer.from('half')]]);
  t.deepEqual(await store.list(), []);
  await writeCheckpoint(store, factsOf(2), stateOf(2), KEEP_ALL);
  t.deepEqual(await namesIn(store), ['step-00000002']);
  proxy.requests.length = 0;
  await store.remove('step-00000001');
  t.is(proxy.requests.length, 1, 'nothing but a listing: the half is gone');
});

test('an upload outlives a server that is away for a moment', async (t) => {
  let left = 3;
  await using proxy = await proxied(({ method }, response) => {
    if (method !== 'PUT' || left-- <= 0) return false;
    return refuse(response, 503, 'InternalError');
  });
  const seen: string[] = [];
  const writer = new CheckpointWriter({
    place: proxy.place,
    keeping: KEEP_ALL,
    newest: null,
    hard: new AbortController().signal,
    now: () => 0,
    onWritten: ({ path }) => seen.push(path),
    onFailed: ({ message }) => seen.push(message),
  });
  writer.write(factsOf(1), flatOf(1), 0);
  await writer.close();
  t.deepEqual(seen, [`${proxy.place.url}/step-00000001`]);
});

const answers: [number, string, ErrorCode, RegExp][] = [
  [403, 'InvalidAccessKeyId', 'SETUP', /keys in the environment/],
  [403, 'SignatureDoesNotMatch', 'SETUP', /keys in the environment/],
  [404, 'NoSuchBucket', 'SETUP', /Make the bucket/],
  [501, 'NotImplemented', 'SETUP', /Check checkpoint\.store, checkpoint\.s3, AWS_REGION and the network/],
];
for (const [status, code, expected, remedy] of answers) {
  test(`a store that answers ${code} is refused with what to do`, async (t) => {
    await using proxy = await proxied((_, response) => refuse(response, status, code));
    const error = await t.throwsAsync((await openStore(proxy.place, 1)).list(), { instanceOf: BraidError });
    t.is(error.code, expected);
    t.regex(error.message, new RegExp(`^cannot list ${proxy.place.url}: ${code}: said the server`));
    t.regex(error.remedy, remedy);
  });
}

test('a store that cannot be reached is refused by its name', async (t) => {
  const proxy = await proxied();
  await proxy[Symbol.asyncDispose]();
  const error = await t.throwsAsync((await openStore(proxy.place, 1)).list(), { instanceOf: BraidError });
  t.regex(error.message, /^cannot list s3:\/\/braid-test\/runs\/\d+: .*ECONNREFUSED/);
});

test('keys are in no error, no manifest and no recipe', async (t) => {
  await using proxy = await proxied((incoming, response) =>
    incoming.method === 'PUT' ? refuse(response, 403, 'SignatureDoesNotMatch') : false,
  );
  const store = await openStore(proxy.place);
  const error = await t.throwsAsync(writeCheckpoint(store, factsOf(1), stateOf(1), KEEP_ALL));
  const { inspect } = await import('node:util');
  for (const secret of [SECRET, KEY]) t.false(inspect(error, { depth: 20 }).includes(secret));
  for (const s3 of [{ accessKeyId: KEY }, { endpoint: `http://${KEY}:${SECRET}@host` }]) {
    t.throws(() => smallRecipe({ checkpoint: { store: 's3://a-bucket/prefix', s3 } }), {
      message: /checkpoint\.s3\.\w+: /,
    });
  }
});

test('a store is named as s3://bucket/prefix, and only so', (t) => {
  const recipe = smallRecipe();
  const withStore = (store: string) => checkRecipe({ ...recipe, checkpoint: { ...recipe.checkpoint, store } });
  t.is(withStore('s3://a-bucket/some/prefix').checkpoint.store, 's3://a-bucket/some/prefix');
  for (const store of [
    's3://a-bucket',
    's3://a-bucket/',
    's3://a-bucket/p/',
    's3://key:secret@a-bucket/p',
    'gs://a/b',
    '/p',
  ]) {
    t.throws(() => withStore(store), { message: /checkpoint\.store: .*expected s3:\/\/bucket\/prefix/ });
  }
});

// ---------------------------------------------------------------- a run

test('training goes on while a checkpoint is on its way; the next one waits for it', async (t) => {
  const fourSteps = Promise.withResolvers<void>();
  await using proxy = await proxied(async ({ method }) => {
    if (method === 'PUT') await fourSteps.promise;
    return false;
  });
  const { url: store, endpoint } = proxy.place;
  const onEvent = (event: RunEvent) => {
    if (event.kind === 'step' && event.progress.step === 3) fourSteps.resolve();
  };
  const recipe = smallRecipe({ checkpoint: { everySteps: 2, store, s3: { endpoint } } });
  const { running, events } = startCluster({ recipe, run: { onEvent } });
  const { paths } = await running;
  t.is(paths.checkpoint, `${store}/step-00000006`);
  const order = events.flatMap((event): (string | number)[] => {
    if (event.kind === 'step') return [event.progress.step];
    return event.kind === 'checkpoint' ? [`checkpoint ${event.step}`] : [];
  });
  t.true(order.indexOf('checkpoint 2') > order.indexOf(3), `${order}`);
  t.true(order.indexOf('checkpoint 2') < order.indexOf('checkpoint 4'), `${order}`);
  t.deepEqual(order.at(-1), 'checkpoint 6');
});

test('a run goes on from S3 on a machine that never saw it, and ends bit for bit as it would have', async (t) => {
  await using proxy = await proxied();
  const { url, endpoint } = proxy.place;
  const at = (prefix: string) => ({ checkpoint: { store: `${url}/${prefix}`, s3: { endpoint } } });
  await startCluster({ recipe: smallRecipe(at('whole')) }).running;
  await startCluster({ recipe: smallRecipe({ ...at('parts'), training: { maxSteps: 4 } }) }).running;

  const fresh = await t.throwsAsync(startCluster({ recipe: smallRecipe(at('parts')) }).running, {
    instanceOf: BraidError,
  });
  t.is(fresh.message, `${url}/parts holds another run: it has step-00000004`);

  const second = startCluster({ recipe: smallRecipe(at('parts')), run: { resume: true } });
  await second.running;
  t.false(second.calls.includes('0 commit 3'));
  const last = async (prefix: string) => {
    const { weights, momenta, averages } = await readCheckpoint(
      await openStore({ ...proxy.place, url: `${url}/${prefix}` }),
      'step-00000006',
    );
    return { weights, momenta, averages };
  };
  t.deepEqual(await last('parts'), await last('whole'));
});
