/** Serves the page and what it reads, on loopback: nobody else can look, and nothing can be changed. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { asBraidError, BraidError } from '../../core/errors.ts';
import type { Dashboard } from '../dashboards/dashboard.ts';
import { readingOf } from './reading.ts';
import type { Source } from './source.ts';

const HOST = '127.0.0.1';
const UPLOT = new URL('../../node_modules/uplot/dist/', import.meta.url);

const file = (name: string) => new URL(`./page/${name}`, import.meta.url);
const FILES: Record<string, { at: URL; type: string }> = {
  '/': { at: file('index.html'), type: 'text/html' },
  '/page.css': { at: file('page.css'), type: 'text/css' },
  '/page.js': { at: file('page.js'), type: 'text/javascript' },
  '/chart.js': { at: file('chart.js'), type: 'text/javascript' },
  '/format.js': { at: file('format.js'), type: 'text/javascript' },
  '/uplot.js': { at: new URL('uPlot.esm.js', UPLOT), type: 'text/javascript' },
  '/uplot.css': { at: new URL('uPlot.min.css', UPLOT), type: 'text/css' },
};

/** Nothing from elsewhere, whatever a name or an event may hold. */
const HEADERS = {
  'content-security-policy':
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
};

export interface PreviewOptions {
  dashboards: Dashboard[];
  source: Source;
  /** 0: any free one. */
  port: number;
}

/** @throws BraidError SETUP when the port is taken */
export async function servePreview(options: PreviewOptions): Promise<{ url: string; close(): Promise<void> }> {
  const server = createServer((request, response) => {
    answer(request, response, options).catch((thrown) => {
      say(response, 502, JSON.stringify({ error: asBraidError(thrown).message }), 'application/json');
    });
  });
  server.listen(options.port, HOST);
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new BraidError('SETUP', `cannot listen on ${HOST}:${options.port}: ${(cause as Error).message}`, {
      remedy: 'Stop what listens there, or choose another port: --port (0: any free one).',
      cause,
    });
  }
  return {
    url: `http://${HOST}:${(server.address() as AddressInfo).port}`,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, { dashboards, source }: PreviewOptions) {
  const { pathname: path } = new URL(request.url ?? '/', `http://${HOST}`);
  const json = (body: unknown) => say(response, 200, JSON.stringify(body), 'application/json');
  const dashboard = dashboards.find(({ name }) => path === `/api/dashboards/${name}`);
  const page = FILES[path];
  // Another name that leads here is some other site's page, which is not to read what this one may.
  if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/.test(request.headers.host ?? '')) say(response, 403, 'only as localhost\n');
  else if (request.method !== 'GET') say(response, 405, 'only GET\n');
  else if (path === '/api/dashboards') json(dashboards.map(({ name, title }) => ({ name, title })));
  else if (dashboard !== undefined)
    json({ source: source.name, ...readingOf(dashboard, await source.look(dashboard)) });
  else if (page !== undefined) say(response, 200, await readFile(page.at), page.type);
  else say(response, 404, 'nothing here\n');
}

function say(response: ServerResponse, status: number, body: string | Buffer, type = 'text/plain'): void {
  response.writeHead(status, { ...HEADERS, 'content-type': `${type}; charset=utf-8` }).end(body);
}
