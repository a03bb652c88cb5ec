/** The gradient exchange under mutual TLS: certificates of a development CA, real sockets. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect as dialTls } from 'node:tls';
import test from 'ava';
import { writeCertificates } from '../cli/certs.ts';
import { BraidError } from '../core/errors.ts';
import type { Pems } from '../proto/tls.ts';
import { hello } from '../worker/exchange/handshake.ts';
import { CHUNK_ELEMENTS } from '../worker/exchange/slices.ts';
import { all, expectedSum, gradientOf, never, SECRET, sameBits, say, world } from './exchange-world.ts';
import { temporaryFolder } from './training.ts';

/** Of a worker; called again with the same name it renews them. */
async function certificates(path: string, name = 'certs'): Promise<Pems> {
  const { folders } = await writeCertificates(join(path, name), [], new Date());
  const read = (file: string) => readFileSync(join(folders[1]!, `${file}.pem`));
  return { ca: read('ca'), cert: read('cert'), key: read('key') };
}

for (const topology of ['mesh', 'ring'] as const) {
  for (const transport of ['unix', 'tcp'] as const) {
    test(`with TLS a ${topology} over ${transport} ends with the same sum, and says who has died`, async (t) => {
      await using folder = temporaryFolder();
      const pems = await certificates(folder.path);
      await using w = await world(3, { transport, tls: () => () => pems });
      const length = 4 * CHUNK_ELEMENTS + 5;
      await w.connect(() => all(length, 3, topology));
      const gradients = [0, 1, 2].map((rank) => gradientOf(rank, length));
      const expected = expectedSum(gradients, topology, 'f32');
      for (const step of [0, 1, 2]) {
        await w.reduce(gradients, step);
        t.true(w.exchanges.every((x) => sameBits(x.reduced, expected)));
      }
      const reducing = [0, 1].map((rank) => t.throwsAsync(w.exchanges[rank]!.reduce(3, 0, never)));
      w.exchanges[2]!.abort(new BraidError('CANCELLED', 'killed'));
      for (const error of await Promise.all(reducing)) t.is((error as BraidError).code, 'WORKER_LOST');
    });
  }
}

test('without TLS, with the certificate of a stranger, or believing a stranger, nobody gets in', async (t) => {
  await using folder = temporaryFolder();
  const ours = await certificates(folder.path);
  const theirs = await certificates(folder.path, 'strangers');
  await using honest = await world(1, { tls: () => () => ours });
  const [address] = honest.exchanges.map((x) => x.address) as [string];
  for (const pems of [theirs, { ...theirs, ca: ours.ca }, { ...ours, ca: theirs.ca }, null]) {
    await using stranger = await world(1, pems === null ? {} : { tls: () => () => pems });
    const [x] = stranger.exchanges;
    const addresses = [address, x!.address];
    const meeting = x!.connect(honest.plan(1, all(10, 2), { addresses }), never);
    const error = (await t.throwsAsync(meeting)) as BraidError;
    t.true(['UNAUTHORIZED', 'WORKER_LOST'].includes(error.code), error.message);
    t.regex(error.message, /rank 0/);
  }
  const greeting = hello({ run: 'test', secret: SECRET, generation: 1, rank: 1, to: 0, memory: null });
  t.notRegex((await say(address, greeting)).toString('latin1'), /BRDX/); // an alert at most
});

test('who shows no certificate, or speaks an older TLS, is sent away', async (t) => {
  await using folder = temporaryFolder();
  const pems = await certificates(folder.path);
  await using w = await world(1, { tls: () => () => pems });
  const path = w.exchanges[0]!.address.slice('unix:'.length);
  for (const [options, expected] of [
    [{ ca: pems.ca }, /CERTIFICATE_REQUIRED/],
    [{ ...pems, maxVersion: 'TLSv1.2' }, /PROTOCOL_VERSION/],
  ] as const) {
    const socket = dialTls({ path, ...options });
    const error = await new Promise<NodeJS.ErrnoException>((resolve) => socket.on('error', resolve));
    t.regex(error.code ?? '', expected);
  }
});

test('renewed certificates are taken for new connections, and open ones stay', async (t) => {
  await using folder = temporaryFolder();
  let pems = await certificates(folder.path);
  await using w = await world(2, { tls: () => () => pems });
  const segments = all(1_000, 2);
  await w.connect(() => segments);
  const shown = async () => {
    const socket = dialTls({ path: w.exchanges[0]!.address.slice('unix:'.length), ...pems });
    await new Promise((resolve) => socket.on('secureConnect', resolve));
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  };
  const before = await shown();
  t.is(await shown(), before);
  pems = await certificates(folder.path);
  t.not(await shown(), before);
  const gradients = [0, 1].map((rank) => gradientOf(rank, 1_000));
  await w.reduce(gradients);
  await w.connect(() => segments, { generation: 2 });
  await w.reduce(gradients);
  t.true(w.exchanges.every((x) => sameBits(x.reduced, expectedSum(gradients, 'mesh', 'f32'))));
});

test('a listener closes though somebody is in the middle of a handshake', async (t) => {
  await using folder = temporaryFolder();
  const pems = await certificates(folder.path);
  const w = await world(1, { tls: () => () => pems });
  const silent = say(w.exchanges[0]!.address, Buffer.from([22, 3, 1])); // the beginning of a TLS record
  await new Promise((resolve) => setImmediate(resolve));
  await w[Symbol.asyncDispose]();
  t.is((await silent).length, 0);
});
