/** A kubelet's gRPC probe: node probe.ts <host:port> <service>; ends with 0 where it answers SERVING. */
import { credentials, makeClientConstructor } from '@grpc/grpc-js';
import { service } from 'grpc-health-check';

const [address = '', name = ''] = process.argv.slice(2);
const TIMEOUT_MS = 5_000;
const Client = makeClientConstructor(service, 'Health');
const client = new Client(address, credentials.createInsecure());
// biome-ignore lint/suspicious/noExplicitAny: made from a definition
(client as any).check(
  { service: name },
  { deadline: Date.now() + TIMEOUT_MS },
  (_: unknown, answer?: { status: string }) => {
    client.close();
    process.exitCode = answer?.status === 'SERVING' ? 0 : 1;
  },
);
