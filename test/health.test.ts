/** gRPC's health service and server reflection, asked as a probe and grpcurl would. */
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { Client, credentials, makeClientConstructor, type ServiceError, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import test from 'ava';
import { service as healthService } from 'grpc-health-check';
import { BraidError } from '../core/errors.ts';
import { serveHealth } from '../proto/health.ts';

const Health = makeClientConstructor(healthService as never, 'Health');
const reflectionProto = createRequire(import.meta.url)
  .resolve('@grpc/reflection')
  .replace(/src\/index\.js$/, 'proto/grpc/reflection/v1/reflection.proto');
const reflection = loadSync(reflectionProto, { oneofs: true })['grpc.reflection.v1.ServerReflection'];

/** @returns the status, or the error's code */
function check(client: Client, service: string): Promise<string> {
  return new Promise((resolve) => {
    (client as never as { check: CallableFunction }).check(
      { service },
      (error: ServiceError, answer: { status: string }) => resolve(error ? status[error.code]! : answer.status),
    );
  });
}

test('liveness serves at once, readiness while the process does its work, and whoever watches is told', async (t) => {
  let ready = false;
  const health = await serveHealth({ host: '127.0.0.1', port: 0, ready: () => ready });
  const client = new Health(health.address, credentials.createInsecure());
  t.is(await check(client, ''), 'SERVING');
  t.is(await check(client, 'liveness'), 'SERVING');
  t.is(await check(client, 'readiness'), 'NOT_SERVING');
  t.is(await check(client, 'other'), 'NOT_FOUND');
  const stream = client['watch']!({ service: 'readiness' });
  stream.on('error', () => {});
  const told = stream[Symbol.asyncIterator]();
  t.is((await told.next()).value.status, 'NOT_SERVING');
  ready = true;
  t.is((await told.next()).value.status, 'SERVING');
  t.is(await check(client, 'readiness'), 'SERVING');
  ready = false;
  t.is((await told.next()).value.status, 'NOT_SERVING');
  stream.cancel();
  health.close();
  t.is(await check(client, 'liveness'), 'UNAVAILABLE');
  client.close();
});

test('the health port says what services there are, and serves none but health', async (t) => {
  const health = await serveHealth({ host: '127.0.0.1', port: 0, ready: () => true });
  const Reflection = makeClientConstructor(reflection as never, 'ServerReflection');
  const asking = new Reflection(health.address, credentials.createInsecure());
  const call = asking['ServerReflectionInfo']!();
  call.write({ listServices: '' });
  const [{ listServicesResponse }] = await once(call, 'data');
  const names = listServicesResponse.service.map(({ name }: { name: string }) => name);
  t.deepEqual(names.sort(), ['braid.v1.Coordinator', 'braid.v1.Worker', 'grpc.health.v1.Health']);
  call.write({ fileContainingSymbol: 'braid.v1.Worker' });
  const [{ fileDescriptorResponse }] = await once(call, 'data');
  t.true(fileDescriptorResponse.fileDescriptorProto.some((file: Buffer) => file.includes('ReduceResponse')));
  call.end();
  asking.close();

  const client = new Client(health.address, credentials.createInsecure());
  const nothing = (bytes: Buffer) => bytes;
  const error = await new Promise<ServiceError | null>((resolve) =>
    client.makeUnaryRequest('/braid.v1.Worker/Stop', nothing, nothing, Buffer.alloc(0), resolve),
  );
  t.is(error?.code, status.UNIMPLEMENTED);
  client.close();
  health.close();
});

test('a taken health port is refused, naming it', async (t) => {
  const health = await serveHealth({ host: '127.0.0.1', port: 0, ready: () => true });
  const port = Number(health.address.split(':')[1]);
  const error = await t.throwsAsync(serveHealth({ host: '127.0.0.1', port, ready: () => true }), {
    instanceOf: BraidError,
  });
  t.is(error.code, 'SETUP');
  t.true(error.message.includes(`127.0.0.1:${port}`));
  health.close();
});
