/** GET /metrics for Prometheus and /healthz, on a port of their own that can do nothing else. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';
import { BraidError } from '../core/errors.ts';

/** Others' Prometheus reaches it through a proxy, or the recipe's run listens for it elsewhere later. */
const HOST = '127.0.0.1';

/**
 * @param port 0: any free one
 * @throws BraidError SETUP when it is taken
 */
export async function serveMetrics(
  registry: Registry,
  port: number,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url ?? '/', 'http://localhost');
    if (request.method !== 'GET' || (pathname !== '/metrics' && pathname !== '/healthz')) {
      response.writeHead(404).end('GET /metrics or /healthz\n');
      return;
    }
    const [type, body] =
      pathname === '/healthz' ? ['text/plain', 'ok\n'] : [registry.contentType, await registry.metrics()];
    response.writeHead(200, { 'content-type': type }).end(body);
  });
  server.listen(port, HOST);
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new BraidError('SETUP', `cannot listen on ${HOST}:${port} for metrics: ${(cause as Error).message}`, {
      remedy: 'Stop what listens there, or set metrics.port to another port (0: any free one).',
      cause,
    });
  }
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
