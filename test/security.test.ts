/** What strangers can do: nothing. Real servers and connections, certificates of a development CA, hostile peers. */
import { randomBytes, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect as dialPlain, type Socket } from 'node:net';
import { join } from 'node:path';
import { connect as dial } from 'node:tls';
import { Client, credentials, Server, type ServiceError, status } from '@grpc/grpc-js';
import test from 'ava';
import { service as healthService } from 'grpc-health-check';
import { writeCertificates } from '../cli/certs.ts';
import { tokenOf } from '../cli/trust.ts';
import { soundVariables } from '../coordinator/bounds.ts';
import type { RunEvent } from '../coordinator/events.ts';
import { BraidError } from '../core/errors.ts';
import { silentLog } from '../core/log.ts';
import { createWorkerMetrics } from '../core/metrics.ts';
import { isSecret } from '../core/secret.ts';
import { serveStatus } from '../core/status-server.ts';
import { encodeShard } from '../input/shard.ts';
import type { VariableSpec } from '../nn/variables.ts';
import { guarded, showing } from '../proto/access.ts';
import { type ConnectOptions, connect } from '../proto/calls.ts';
import { listen } from '../proto/channel.ts';
import { implement } from '../proto/handlers.ts';
import { coordinatorService, workerService } from '../proto/load.ts';
import type { JoinRequest, Messages, PrepareRequest, PrepareResponse, WorkerService } from '../proto/messages.ts';
import { decodePart } from '../proto/part-codec.ts';
import { collect, parts } from '../proto/parts.ts';
import { Tls } from '../proto/tls.ts';
import { VERSION } from '../proto/version.ts';
import { freePort } from '../rig/free-port.ts';
import { requireSoundMembership, requireSoundPrepare } from '../worker/bounds.ts';
import { Exchange } from '../worker/exchange/exchange.ts';
import type { InputPool } from '../worker/input/pool.ts';
import { ShardReader } from '../worker/shards.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import {
  type Folder,
  patterns,
  readTensors,
  TrainProcess,
  temporaryFolder,
  trainProcess,
  writeRecipe,
} from './training.ts';

const signal = new AbortController().signal;
const call = { signal };
const stamp = { run: 'r', generation: 1, step: 0 };
const SECRET = 'the-secret-of-this-run';

interface Certificates {
  coordinator: string;
  worker: string;
}

async function certificatesIn(folder: Folder, name = 'certs', hosts: string[] = []): Promise<Certificates> {
  const { folders } = await writeCertificates(join(folder.path, name), hosts, new Date());
  return { coordinator: folders[0]!, worker: folders[1]! };
}

const tlsOf = (folder: string) => new Tls(folder, silentLog);

interface Served extends AsyncDisposable {
  address: string;
  /** Which rpcs were let in. */
  calls: string[];
  /** A call from a new connection. @returns what the worker answers, or the error */
  ask(options?: Partial<ConnectOptions>): Promise<unknown>;
}

/** A worker's service that answers everything with nothing, for those who know the secret. */
async function serve(
  address: string,
  { tls = null, secret = SECRET }: { tls?: Tls | null; secret?: string | null },
): Promise<Served> {
  const calls: string[] = [];
  const server = new Server(guarded((_, shown) => isSecret(shown, secret)));
  const answer = (rpc: string) => async () => {
    calls.push(rpc);
    return {};
  };
  const handlers = Object.fromEntries(Object.keys(workerService.methods).map((rpc) => [rpc, answer(rpc)]));
  const readState: WorkerService['readState'] = async function* (request) {
    calls.push('readState');
    yield* parts(request, Buffer.alloc(3 << 20, 'braid'));
  };
  implement(server, workerService, { ...handlers, readState } as unknown as WorkerService);
  const bound = await listen(server, address, { tls });
  return {
    address: bound,
    calls,
    async ask(options = {}) {
      const worker = connect(workerService, bound, { peer: 'the worker', secret: () => SECRET, ...options });
      try {
        await worker.ready({ signal, timeoutMs: 10_000 });
        return await worker.hashState(stamp, call);
      } catch (error) {
        return error;
      } finally {
        worker.close();
      }
    },
    async [Symbol.asyncDispose]() {
      server.forceShutdown();
    },
  };
}

/** As a probe asks: in clear text, without a token. */
async function health(address: string, service: string): Promise<string> {
  const client = new Client(address, credentials.createInsecure());
  const { path, requestSerialize, responseDeserialize } = healthService['Check']!;
  try {
    return await new Promise((resolve, reject) =>
      client.makeUnaryRequest(path, requestSerialize, responseDeserialize, { service }, (error, answer) =>
        error ? reject(error) : resolve((answer as unknown as { status: string }).status),
      ),
    );
  } finally {
    client.close();
  }
}

// ---------------------------------------------------------------- certificates

test('with TLS on both sides calls and bulk go through, by address, by name and over a unix socket', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  for (const [listening, dialed] of [
    ['127.0.0.1:0', (address: string) => address],
    ['127.0.0.1:0', (address: string) => address.replace('127.0.0.1', 'localhost')],
    [`unix:${folder.path}/socket`, (address: string) => address],
  ] as const) {
    await using served = await serve(listening, { tls: tlsOf(certs.worker) });
    const options = { peer: 'the worker', tls: tlsOf(certs.coordinator), secret: () => SECRET };
    const worker = connect(workerService, dialed(served.address), options);
    await worker.ready({ signal, timeoutMs: 10_000 });
    const state = await collect(worker.readState(stamp, call), { maxBytes: 3 << 20, expect: stamp });
    t.is(state.length, 3 << 20);
    t.is(Buffer.from(state.subarray(0, 10)).toString(), 'braidbraid');
    worker.close();
  }
});

test("without a certificate, with a stranger's, or for another host, no call gets through, and the error says why", async (t) => {
  await using folder = temporaryFolder();
  const ours = await certificatesIn(folder);
  const theirs = await certificatesIn(folder, 'strangers');
  // Knows whom to trust, but is not of them.
  cpSync(theirs.coordinator, join(folder.path, 'mixed'), { recursive: true });
  cpSync(join(ours.worker, 'ca.pem'), join(folder.path, 'mixed', 'ca.pem'));
  await using served = await serve('127.0.0.1:0', { tls: tlsOf(ours.worker) });
  await using plain = await serve('127.0.0.1:0', {});
  await using elsewhere = await serve('127.0.0.2:0', { tls: tlsOf(ours.worker) });
  const attempts: [Served, Tls | null, RegExp][] = [
    [served, null, /closes every connection at once: it probably expects TLS/],
    [served, tlsOf(theirs.coordinator), /its certificate is not of this process's ca\.pem/],
    [served, tlsOf(join(folder.path, 'mixed')), /it probably does not believe this process's certificate/],
    [plain, tlsOf(ours.coordinator), /does not speak TLS/],
    [elsewhere, tlsOf(ours.coordinator), /for another host: IP: 127\.0\.0\.2 is not in the cert's list/],
  ];
  for (const [{ ask, calls }, tls, message] of attempts) {
    const error = await ask({ tls });
    t.true(error instanceof BraidError);
    t.is((error as BraidError).code, 'UNAUTHORIZED');
    t.regex((error as BraidError).message, message);
    t.not((error as BraidError).remedy, '');
    t.deepEqual(calls, []);
  }
});

test('a client that shows no certificate is sent away by TLS itself', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  await using served = await serve('127.0.0.1:0', { tls: tlsOf(certs.worker) });
  const socket = dial({ ...addressOf(served), ca: readFileSync(join(certs.worker, 'ca.pem')), ALPNProtocols: ['h2'] });
  const error = await new Promise<NodeJS.ErrnoException>((resolve) => socket.on('error', resolve));
  t.is(error.code, 'ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED');
});

test('renewed certificates are taken for new connections, and open ones stay', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  await using served = await serve('127.0.0.1:0', { tls: tlsOf(certs.worker) });
  const tls = tlsOf(certs.coordinator);
  const open = connect(workerService, served.address, { peer: 'the worker', tls, secret: () => SECRET });
  await open.hashState(stamp, call);
  const before = await serialAt(served, certs);

  // Half of a renewal: what does not fit together is not taken.
  const key = readFileSync(join(certs.worker, 'key.pem'));
  await certificatesIn(folder);
  const renewed = new X509Certificate(readFileSync(join(certs.worker, 'cert.pem'))).serialNumber;
  t.not(renewed, before);
  writeFileSync(join(certs.worker, 'key.pem'), key);
  await seconds(1.5);
  t.is(await serialAt(served, certs), before);

  await certificatesIn(folder); // whole again
  const whole = new X509Certificate(readFileSync(join(certs.worker, 'cert.pem'))).serialNumber;
  while ((await serialAt(served, certs)) !== whole) await seconds(0.1);
  await open.hashState(stamp, call);
  t.deepEqual(served.calls, ['hashState', 'hashState']);

  // Another CA altogether: both sides follow.
  rmSync(join(folder.path, 'certs', 'authority'), { recursive: true });
  await certificatesIn(folder);
  const { serialNumber } = new X509Certificate(readFileSync(join(certs.worker, 'cert.pem')));
  while ((await serialAt(served, certs).catch(() => '')) !== serialNumber) await seconds(0.1);
  t.false((await served.ask({ tls })) instanceof Error);
  open.close();
});

test('a --tls folder that cannot be used is refused naming the file', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  const other = await certificatesIn(folder, 'other');
  const spoilt: [(at: string) => void, RegExp][] = [
    [(at) => rmSync(join(at, 'ca.pem')), /cannot read .*ca\.pem/],
    [(at) => writeFileSync(join(at, 'cert.pem'), 'no certificate'), /do not fit together/],
    [(at) => cpSync(join(other.worker, 'key.pem'), join(at, 'key.pem')), /do not fit together: .*key values mismatch/],
    [(at) => writeFileSync(join(at, 'ca.pem'), Buffer.alloc(2 << 20)), /more than 1048576 bytes/],
  ];
  for (const [i, [spoil, message]] of spoilt.entries()) {
    const at = join(folder.path, `spoilt-${i}`);
    cpSync(certs.worker, at, { recursive: true });
    spoil(at);
    const error = t.throws(() => tlsOf(at), { instanceOf: BraidError });
    t.is(error.code, 'SETUP');
    t.regex(error.message, message);
  }
  const { folders } = await writeCertificates(join(folder.path, 'old'), [], new Date('2020-01-01'));
  t.regex(t.throws(() => tlsOf(folders[0]!))!.message, /cert\.pem expired on 2020-01-31/);
});

// ---------------------------------------------------------------- secrets

test('a call without the secret, or with a wrong one, does no work', async (t) => {
  await using served = await serve('127.0.0.1:0', {});
  for (const secret of [null, 'guessed', `${SECRET} `, SECRET.slice(1)]) {
    const error = (await served.ask({ secret: () => secret })) as BraidError;
    t.is(error.code, 'UNAUTHORIZED');
    t.regex(error.message, /HashState takes the run's secret, and this call shows (none|a wrong one)/);
  }
  t.deepEqual(served.calls, []);
  t.false((await served.ask()) instanceof Error);
  t.deepEqual(served.calls, ['hashState']);
});

test('a worker that has joined nothing yet obeys nobody', async (t) => {
  await using served = await serve('127.0.0.1:0', { secret: null });
  for (const secret of [null, '', 'null', SECRET]) {
    t.is(((await served.ask({ secret: () => secret })) as BraidError).code, 'UNAUTHORIZED');
  }
  t.deepEqual(served.calls, []);
});

// ---------------------------------------------------------------- whole runs

function recipeIn(folder: Folder, training: object = {}): string {
  return writeRecipe(folder, {
    name: 'patterns',
    ...patterns(folder, 250, 90),
    method: { name: 'ffl' },
    training: { epochs: 2, batch: 64, milestones: [1], ...training },
    evaluation: { batch: 32 },
    cluster: { replicas: 2, threads: 1 },
    metrics: { logEverySteps: 1 },
  });
}

test.serial('braid train --tls: coordinator, workers and their exchange train as they do without', async (t) => {
  await using folder = temporaryFolder();
  const { coordinator } = await certificatesIn(folder);
  const recipe = recipeIn(folder);
  const [plain, secured] = [
    await trainProcess([recipe, '--runs', join(folder.path, 'plain')]),
    await trainProcess([recipe, '--runs', join(folder.path, 'secured'), '--tls', coordinator]),
  ];
  t.is(plain.code, 0, plain.output);
  t.is(secured.code, 0, secured.output);
  const [a, b] = [plain, secured].map(({ run }) =>
    readTensors(join(run, 'checkpoints/step-00000008/model.safetensors')),
  );
  t.deepEqual(b, a);
});

test.serial('over TCP with certificates and a token, only workers that have both get in, and train', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  const strangers = await certificatesIn(folder, 'strangers');
  const token = folder.write('token', 'correct horse battery staple'.replaceAll(' ', '-'));
  const healthPort = await freePort();
  const wrong = folder.write('wrong', 'incorrect-horse-battery-staple');
  const start = (command: string, argv: string[]) => {
    const started = new TrainProcess(argv, { command });
    t.teardown(() => started.child.kill('SIGKILL'));
    return started;
  };
  const coordinator = start('coordinator', [
    ...[recipeIn(folder, { epochs: 5000 }), '--runs', join(folder.path, 'runs'), '--listen', '127.0.0.1:0'],
    ...['--tls', certs.coordinator, '--token-file', token, '--set', `metrics.healthPort=${healthPort}`],
  ]);
  await coordinator.printed(/coordinator on \S+,/);
  t.is(await health(`127.0.0.1:${healthPort}`, 'liveness'), 'SERVING'); // a probe has neither certificate nor token
  t.is(await health(`127.0.0.1:${healthPort}`, 'readiness'), 'NOT_SERVING');
  const address = /coordinator on (\S+),/.exec(coordinator.output)![1]!;
  const metrics = /metrics on http:\/\/(\S+)\/metrics/.exec(coordinator.output)![1]!;
  t.is((await fetch(`http://${metrics}/readyz`)).status, 503);
  const worker = (...argv: string[]) => start('worker', ['--coordinator', address, '--threads', '1', ...argv]);

  const refused: [string[], RegExp][] = [
    [['--token-file', token], /closes every connection at once: it probably expects TLS/],
    [['--token-file', token, '--tls', strangers.worker], /its certificate is not of this process's ca\.pem/],
    [['--tls', certs.worker], /Join takes the coordinator's token, and this call shows none/],
    [['--tls', certs.worker, '--token-file', wrong], /this call shows a wrong one/],
  ];
  const attempts = refused.map(([argv]) => worker(...argv));
  for (const [i, [, message]] of refused.entries()) {
    const { code, output } = await attempts[i]!.ended();
    t.is(code, 1, output);
    t.regex(output, message);
    t.regex(output, /Remedy: /);
  }
  t.notRegex(coordinator.output, /joined/);

  const right = ['--tls', certs.worker, '--token-file', token];
  const workers = [worker(...right, '--metrics-port', '0', '--health-port', '0'), worker(...right)];
  await coordinator.printed(/step \d+\//);
  const own = /metrics on http:\/\/(\S+)\/metrics/.exec(workers[0]!.output)![1]!;
  t.is((await fetch(`http://${own}/healthz`)).status, 200);
  t.is((await fetch(`http://${own}/readyz`)).status, 200);
  t.is((await fetch(`http://${metrics}/readyz`)).status, 200);
  const ownHealth = /health on (\S+)/.exec(workers[0]!.output)![1]!;
  t.is(await health(ownHealth, 'readiness'), 'SERVING');
  t.is(await health(`127.0.0.1:${healthPort}`, 'readiness'), 'SERVING');
  const scraped = await (await fetch(`http://${own}/metrics`)).text();
  t.regex(scraped, /braid_worker_state\{state="training"\} 1/);
  t.regex(scraped, /braid_worker_generation 1/);
  coordinator.child.kill('SIGINT');
  const { code, output } = await coordinator.ended();
  t.is(code, 130, output);
  t.regex(output, /stopped after step \d+/);
  for (const each of workers) t.is((await each.ended()).code, 0, each.output);
});

test.serial(
  'what others could reach in clear text is not opened, unless that is asked for, and then it is said',
  async (t) => {
    await using folder = temporaryFolder();
    const recipe = recipeIn(folder);
    const runs = join(folder.path, 'runs');
    const open = (command: string, argv: string[]) => new TrainProcess(argv, { command });
    const coordinator = await open('coordinator', [recipe, '--runs', runs, '--listen', '0.0.0.0:0']).ended();
    const worker = await open('worker', ['--coordinator', '127.0.0.1:1', '--listen', '0.0.0.0:0']).ended();
    for (const { code, output } of [coordinator, worker]) {
      t.is(code, 1, output);
      t.regex(output, /0\.0\.0\.0:0 can be reached from other machines, and nothing is encrypted/);
      t.regex(output, /Remedy: Give --tls <folder>/);
    }
    t.false(existsSync(runs));
    const insecure = open('coordinator', [recipe, '--runs', runs, '--listen', '0.0.0.0:0', '--insecure']);
    await insecure.printed(/open to other machines: nothing is encrypted, and whoever reaches it can join/);
    insecure.child.kill('SIGKILL');
    await insecure.ended();
  },
);

test('a token that cannot be one is refused, and so is a file that is not there', (t) => {
  for (const text of ['', 'short', 'with spaces in between them', 'a\u0000'.repeat(20)]) {
    const error = t.throws(() => inEnvironment(text, () => tokenOf({})), { instanceOf: BraidError });
    t.regex(error.message, /BRAID_TOKEN holds no token/);
  }
  t.is(
    inEnvironment('0123456789abcdef', () => tokenOf({})),
    '0123456789abcdef',
  );
  t.regex(t.throws(() => tokenOf({ 'token-file': '/nowhere' }))!.message, /cannot read the token: .*\/nowhere/);
});

// ---------------------------------------------------------------- hostile peers

test("nothing of a stranger's message is decoded", async (t) => {
  const server = new Server(guarded(() => false));
  const methods = Object.fromEntries(
    Object.entries(workerService.methods).map(([rpc, method]) => [
      rpc,
      { ...method, requestDeserialize: () => t.fail(`${rpc} is decoded`) },
    ]),
  );
  const handlers = Object.fromEntries(Object.keys(methods).map((rpc) => [rpc, () => t.fail(rpc)]));
  implement(
    server,
    { ...workerService, methods } as unknown as typeof workerService,
    handlers as unknown as WorkerService,
  );
  const address = await listen(server, '127.0.0.1:0');
  const worker = connect(workerService, address, { peer: 'the worker' });
  // Each of these takes a hundred times its bytes once it is decoded.
  const groups = Array.from({ length: 500_000 }, () => ({
    segment: '',
    ranks: [],
    topology: 'TOPOLOGY_MESH' as const,
  }));
  const prepare = { ...PREPARE, groups };
  const state = parts(stamp, Buffer.alloc(8 << 20));
  for (const asked of [worker.prepare(prepare, call), worker.writeState(state, call), worker.compute(COMPUTE, call)]) {
    t.is((await t.throwsAsync(asked, { instanceOf: BraidError })).code, 'UNAUTHORIZED');
  }
  worker.close();
  server.forceShutdown();
});

test('a message of more than 4 MiB is refused', async (t) => {
  await using served = await serve('127.0.0.1:0', {});
  const client = new Client(served.address, credentials.createInsecure());
  const { path, responseDeserialize } = workerService.methods.prepare;
  const error = await new Promise<ServiceError | null>((resolve) => {
    const options = showing(SECRET);
    client.makeUnaryRequest(
      path,
      (bytes: Buffer) => bytes,
      responseDeserialize,
      Buffer.alloc(5 << 20),
      options,
      resolve,
    );
  });
  t.is(error?.code, status.RESOURCE_EXHAUSTED);
  t.deepEqual(served.calls, []);
  client.close();
});

test('a Join that no worker would send is refused, and nobody has joined', async (t) => {
  await using alone = await coordinatorAlone();
  const coordinator = connect(coordinatorService, alone.address, { peer: 'the coordinator' });
  const hostile: [Partial<JoinRequest>, RegExp][] = [
    [{ version: '0.0.0' }, /is Braid 0\.0\.0, the coordinator is/],
    [{ version: 'x'.repeat(1000) }, /unsound version/],
    [{ host: 'h'.repeat(256) }, /unsound host/],
    [{ host: 'a\u001b[2Jb' }, /unsound host: has control characters/],
    [{ device: 'GPU\n12:00:00 info all is well' }, /unsound device/],
    [{ address: 'unix:/var/run/docker.sock' }, /unsound address: is a path on the machine of the coordinator/],
    [{ address: 'xds:///somewhere' }, /unsound address/],
    [{ address: 'dns://8.8.8.8/host:1' }, /unsound address/],
    [{ address: 'host:0' }, /unsound address/],
    [{ address: 'host:65536' }, /unsound address/],
    [{ exchangeAddress: 'host' }, /unsound exchangeAddress/],
    [{ exchangeAddress: `${'h'.repeat(254)}:1` }, /unsound exchangeAddress/],
    [{ generation: 2 ** 52 }, /unsound generation/],
  ];
  for (const [changes, message] of hostile) {
    const asked = firstOf(coordinator.join({ ...JOIN, ...changes }, call));
    t.regex((await t.throwsAsync(asked, { instanceOf: BraidError })).message, message);
  }
  t.false(alone.events.some(({ kind }) => kind === 'joined'));
  coordinator.close();
});

test('a flood of Joins takes the seats there are, and no more', async (t) => {
  await using alone = await coordinatorAlone();
  const coordinator = connect(coordinatorService, alone.address, { peer: 'the coordinator' });
  const over = new AbortController();
  const flood = Array.from({ length: 300 }, () =>
    firstOf(coordinator.join({ ...JOIN, address: '127.0.0.1:9' }, { signal: over.signal })),
  );
  const answers = await Promise.allSettled(flood);
  t.is(answers.filter((answer) => answer.status === 'fulfilled').length, 2);
  for (const answer of answers) {
    if (answer.status === 'rejected') t.regex(answer.reason.message, /has all of its 2 workers/);
  }
  over.abort();
  coordinator.close();
});

test('a program that a worker cannot have built is refused before memory is taken for it', (t) => {
  const variable: VariableSpec = {
    name: 'trunk.0.bn.bias',
    shape: [2],
    kind: 'vector',
    trainable: true,
    segment: 'trunk',
    initialiser: { kind: 'constant', value: 0 },
    offset: 0,
    size: 2,
    momentumOffset: 16,
  };
  const response = (variables: unknown[], changes: Partial<PrepareResponse> = {}): PrepareResponse => ({
    variables: JSON.stringify(variables),
    stateLength: 32,
    rounds: [{ gradientLength: 2, segments: ['all'], losses: ['total'] }],
    classifiers: ['fused'],
    outputLengths: [],
    ...changes,
  });
  t.deepEqual(soundVariables(response([variable])), [variable]);
  const huge = 2 ** 40;
  const hostile: [PrepareResponse, RegExp][] = [
    [response([], { variables: '{' }), /not JSON/],
    [response([null]), /unsound variables\.0/],
    [response([{ ...variable, shape: [huge, huge], size: huge * huge }]), /unsound variables/],
    [response([{ ...variable, size: 3 }]), /\[2\] has 3 elements/],
    [response([{ ...variable, shape: [-2], size: -2 }]), /unsound variables/],
    [response([{ ...variable, offset: 1 }]), /lies at 1 of its state, not at 0/],
    [response([{ ...variable, momentumOffset: 0 }]), /lies at 0 of its state, not at 16/],
    [
      response([{ ...variable, shape: [2 ** 30], size: 2 ** 30, momentumOffset: 2 ** 30 }], { stateLength: 2 ** 31 }),
      /unsound stateLength/,
    ],
    [response([variable], { stateLength: 33 }), /do not add up to its state of 33/],
    [response([variable], { outputLengths: [2 ** 40] }), /unsound outputLengths/],
    [response([variable], { rounds: [{ gradientLength: 33, segments: [], losses: [] }] }), /a gradient of 33/],
    [response([variable], { rounds: [] }), /unsound rounds/],
    [response([variable], { held: { step: 1, round: 0, lossScale: 0, goodUpdates: 0 } }), /unsound held\.lossScale/],
    [response([variable], { classifiers: Array.from({ length: 65 }, () => 'x') }), /unsound classifiers/],
    [response([variable], { classifiers: ['x"} 1\nbraid_step'] }), /unsound classifiers/],
    [response(Array.from({ length: 20_001 }, () => variable)), /unsound variables/],
  ];
  for (const [program, message] of hostile) {
    const error = t.throws(() => soundVariables(program), { instanceOf: BraidError });
    t.is(error.code, 'PROTOCOL');
    t.regex(error.message, message);
  }
});

test('a Prepare or an answer to Join that no coordinator would send is refused', (t) => {
  t.notThrows(() => requireSoundPrepare(PREPARE));
  const hostile: [Partial<PrepareRequest>, RegExp][] = [
    [{ recipe: ' '.repeat((1 << 20) + 1) }, /unsound recipe/],
    [{ recipe: '{' }, /unsound recipe: is not JSON/],
    [{ rank: 2 }, /unsound rank: is nobody/],
    [{ height: 0 }, /unsound height/],
    [{ width: 1 << 20 }, /unsound width/],
    [{ channels: 5 }, /unsound channels/],
    [{ classes: 2 ** 31 }, /unsound classes/],
    [{ shardSizes: [] }, /unsound shardSizes/],
    [{ shardSizes: [0] }, /unsound shardSizes/],
    [{ height: 1 << 14, width: 1 << 14, shardSizes: [6] }, /unsound shardSizes: are of more than 4294967296 bytes/],
    [{ recordBytes: 2 ** 40 }, /unsound recordBytes/],
    [{ trainIndex: '../x' }, /unsound trainIndex/],
    [{ exchangeAddresses: ['a:1', 'http://b'] }, /unsound exchangeAddresses\.1/],
    [{ groups: [{ segment: 'all', ranks: [4096], topology: 'TOPOLOGY_MESH' }] }, /unsound groups\.0\.ranks\.0/],
  ];
  for (const [changes, message] of hostile) {
    const error = t.throws(() => requireSoundPrepare({ ...PREPARE, ...changes }), { instanceOf: BraidError });
    t.is(error.code, 'PROTOCOL');
    t.regex(error.message, message);
  }
  for (const secret of ['', 'short', `${SECRET}\n`]) {
    t.throws(() => requireSoundMembership({ run: 'r', member: 0, secret, over: false }), { message: /unsound secret/ });
  }
  t.throws(() => requireSoundMembership({ run: '../r', member: 0, secret: SECRET, over: false }), {
    message: /unsound run/,
  });
});

test('a shard of more samples than a batch has is refused before memory is taken for their images', async (t) => {
  const samples = 20_000; // of no bytes each: 240 kB on the wire, 60 MB of images
  const numbers = Int32Array.from({ length: samples }, (_, i) => i);
  const image = { height: 32, width: 32, channels: 3 };
  const records = Array.from(numbers, () => new Uint8Array(0));
  const shard = encodeShard({
    step: 0,
    epoch: 0,
    encoding: 'image-file',
    image,
    sampleIds: numbers,
    labels: numbers,
    records,
  });
  const reader = new ShardReader({
    ...{ run: 'r', generation: 1, firstStep: 0, image, maxBytes: 1 << 20, maxSamples: 64, samples: null },
    pool: { prepare: () => t.fail() } as unknown as InputPool,
    pull: () => parts(stamp, shard),
    onRead: () => {},
  });
  await t.throwsAsync(reader.take(0), { message: /has 20000 samples, at most 64 are expected/ });
});

test('a number of more than ten bytes is no number of a Part', (t) => {
  const endless = Buffer.concat([Buffer.of(4 * 8), Buffer.alloc(1 << 20, 0x80), Buffer.of(0)]);
  t.throws(() => decodePart(endless), { message: /more than 10 bytes/ });
});

test('garbage on a port ends nothing', async (t) => {
  await using folder = temporaryFolder();
  const certs = await certificatesIn(folder);
  await using plain = await serve('127.0.0.1:0', {});
  await using secured = await serve('127.0.0.1:0', { tls: tlsOf(certs.worker) });
  const exchange = await Exchange.listen('127.0.0.1:0');
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1');
  for (const address of [plain.address, secured.address, exchange.address]) {
    for (let i = 0; i < 60; i++) {
      const garbage = randomBytes(1 + 100 * i);
      const socket = dialPlain(addressOf({ address })).on('error', () => {});
      socket.end(i % 2 === 0 ? garbage : Buffer.concat([preface, garbage]));
      await Promise.race([once(socket, 'close'), seconds(0.1)]);
      socket.destroy();
    }
  }
  t.false((await plain.ask()) instanceof Error);
  t.false((await secured.ask({ tls: tlsOf(certs.coordinator) })) instanceof Error);
  await exchange.close();
});

test('connections to the exchange that say nothing are bounded in number', async (t) => {
  await using folder = temporaryFolder();
  const exchange = await Exchange.listen(`unix:${folder.path}/exchange`);
  let closed = 0;
  const sockets: Socket[] = [];
  for (let i = 0; i < 1100; i++) {
    const socket = dialPlain(`${folder.path}/exchange`).on('close', () => closed++);
    sockets.push(socket);
    await once(socket, 'connect');
  }
  while (closed < 1100 - 1024) await seconds(0.02);
  await seconds(0.2);
  t.is(closed, 1100 - 1024);
  for (const socket of sockets) socket.destroy();
  await exchange.close();
});

// ---------------------------------------------------------------- metrics and health

test('the status server answers GET of three paths, and nothing else', async (t) => {
  let ready = false;
  const { registry, step } = createWorkerMetrics();
  step.set(7);
  const server = await serveStatus({ registry, ready: () => ready, host: '127.0.0.1', port: 0 });
  const raw = async (request: string) => {
    const [host, port] = server.address.split(':') as [string, string];
    const socket = dialPlain(Number(port), host);
    socket.end(request);
    let answer = '';
    for await (const chunk of socket) answer += chunk;
    return answer;
  };
  const get = (path: string, method = 'GET') => fetch(`http://${server.address}${path}`, { method });
  t.is((await get('/healthz')).status, 200);
  t.is((await get('/readyz')).status, 503);
  ready = true;
  t.is((await get('/readyz')).status, 200);
  const metrics = await (await get('/metrics?x=1')).text();
  for (const line of ['braid_worker_step 7', 'braid_worker_bytes_total{link="gradients",direction="sent"} 0']) {
    t.true(metrics.includes(line), metrics);
  }
  for (const path of ['/', '/metrics/', '/healthz/..', '/%2e%2e/etc/passwd']) t.is((await get(path)).status, 404);
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'HEAD', 'PATCH']) {
    const answer = await get('/metrics', method);
    t.is(answer.status, 405, method);
    t.is(answer.headers.get('allow'), 'GET');
  }
  t.regex(await raw('GET // HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n'), /^HTTP\/1\.1 404/);
  t.regex(await raw(`GET /healthz HTTP/1.1\r\nhost: x\r\nx: ${'y'.repeat(5000)}\r\n\r\n`), /^HTTP\/1\.1 431/);
  t.regex(await raw('no HTTP at all\r\n\r\n'), /^HTTP\/1\.1 400/);
  t.is(await raw('CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n'), '');
  t.is((await get('/healthz')).status, 200);
  await server.close();
});

const COMPUTE = { ...stamp, distillWeight: 0, shardWeight: 1, round: 0, lossScale: 1 };
const JOIN: JoinRequest = {
  ...{ version: VERSION, address: '127.0.0.1:1', exchangeAddress: '127.0.0.1:2', host: 'here', pid: 1 },
  ...{ threads: 1, device: 'CPU', generation: 0 },
};
const PREPARE: PrepareRequest = {
  ...{ run: 'r', generation: 1, recipe: '{}', rank: 0, replica: 0, shardSizes: [64, 61], recordBytes: 3072 },
  ...{ trainIndex: '', testIndex: '' },
  ...{ height: 32, width: 32, channels: 3, classes: 10, exchangeAddresses: ['a:1', 'unix:/b'] },
  groups: [{ segment: 'all', ranks: [0, 1], topology: 'TOPOLOGY_MESH' }],
};

/** What a stream begins with; it stays open. */
async function firstOf<T>(messages: Messages<T>): Promise<T> {
  const { value } = await (messages as AsyncIterable<T>)[Symbol.asyncIterator]().next();
  return value;
}

/** A real one, whose workers never come. */
async function coordinatorAlone() {
  const over = new AbortController();
  const listening = Promise.withResolvers<string>();
  const onEvent = (event: RunEvent) => event.kind === 'listening' && listening.resolve(event.address);
  const { events, running } = startCluster({ recipe: smallRecipe(), workers: 0, run: { hard: over.signal, onEvent } });
  return {
    address: await listening.promise,
    events,
    async [Symbol.asyncDispose]() {
      over.abort(new BraidError('CANCELLED', 'the test is over'));
      await running.catch(() => {});
    },
  };
}

function inEnvironment<T>(token: string, use: () => T): T {
  process.env['BRAID_TOKEN'] = token;
  try {
    return use();
  } finally {
    delete process.env['BRAID_TOKEN'];
  }
}

function addressOf({ address }: { address: string }): { host: string; port: number } {
  const [host, port] = address.split(':') as [string, string];
  return { host, port: Number(port) };
}

/** Of the certificate that a new connection is shown. */
async function serialAt(served: Served, { coordinator }: Certificates): Promise<string> {
  const [ca, cert, key] = ['ca', 'cert', 'key'].map((name) => readFileSync(join(coordinator, `${name}.pem`)));
  const socket = dial({ ...addressOf(served), ca: ca!, cert: cert!, key: key!, ALPNProtocols: ['h2'] });
  try {
    return await new Promise((resolve, reject) => {
      socket.on('secureConnect', () => resolve(socket.getPeerX509Certificate()!.serialNumber));
      socket.on('error', reject);
    });
  } finally {
    socket.destroy();
  }
}

function seconds(n: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1000 * n));
}
