/**
 * What others may know of a process, over HTTP, on a port of its own that can do nothing else:
 *
 *     GET /metrics   what it tells Prometheus
 *     GET /healthz   200 while it serves
 *     GET /readyz    200 while it does what it is there for, 503 before and after
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';
import { BraidError } from './errors.ts';

/** Some lines: no scraper or probe needs more. */
const MAX_HEADER_BYTES = 4096;
/** For a whole request; who is slower is let go. */
const REQUEST_TIMEOUT_MS = 5_000;
const MAX_CONNECTIONS = 64;

export interface StatusOptions {
  registry: Registry;
  ready(): boolean;
  /** Whoever reaches it can read all of it. */
  host: string;
  /** 0: any free one. */
  port: number;
}

/** @throws BraidError SETUP when nothing can listen there */
export async function serveStatus(options: StatusOptions): Promise<{ address: string; close(): Promise<void> }> {
  const { host, port } = options;
  const limits = { maxHeaderSize: MAX_HEADER_BYTES, headersTimeout: REQUEST_TIMEOUT_MS };
  const server = createServer(
    { ...limits, requestTimeout: REQUEST_TIMEOUT_MS, connectionsCheckingInterval: REQUEST_TIMEOUT_MS },
    (request, response) => answer(request, response, options).catch(() => response.destroy()),
  );
  server.maxConnections = MAX_CONNECTIONS;
  server.listen(port, host);
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new BraidError('SETUP', `cannot listen on ${host}:${port} for metrics: ${(cause as Error).message}`, {
      remedy: 'Stop what listens there, or choose another port (0: any free one): metrics.port, or --metrics-port.',
      cause,
    });
  }
  const bound = (server.address() as AddressInfo).port;
  return {
    address: `${host.includes(':') ? `[${host}]` : host}:${bound}`,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, options: StatusOptions): Promise<void> {
  const { registry, ready } = options;
  const say = (status: number, text: string) => response.writeHead(status, { 'content-type': 'text/plain' }).end(text);
  const [path] = (request.url ?? '').split('?');
  if (path !== '/metrics' && path !== '/healthz' && path !== '/readyz') {
    say(404, 'here are /metrics, /healthz and /readyz\n');
  } else if (request.method !== 'GET') {
    response.setHeader('allow', 'GET');
    say(405, 'only GET\n');
  } else if (path === '/healthz') {
    say(200, 'ok\n');
  } else if (path === '/readyz') {
    if (ready()) say(200, 'ready\n');
    else say(503, 'not ready\n');
  } else {
    response.writeHead(200, { 'content-type': registry.contentType }).end(await registry.metrics());
  }
}
