/*
 * Answers HTTP on a thread of its own: /metrics, /livez, /readyz and the live page, from what the loop tells it once a second. Started
 * by src/core/report/metrics.ts while metrics_port is set. It never asks the loop for anything.
 */

import { createHash, timingSafeEqual } from 'node:crypto';
import { lstatSync, unlinkSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer, Server as TlsServer } from 'node:https';
import { connect, isIP, type Socket } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import type { MetricsNews, MetricsReport, MetricsSecrets, MetricsWorkerData } from '../core/base/worker-messages';
import { MetricsState } from './metrics-state';
import { answerPage, isOfPage, type Page, readPage } from './page';
import { Scrapes } from './scrapes';
import { Status } from './status';

/** A loop that has told nothing for so long is stuck. */
const STUCK_MS = 10_000;
const RETRY_MS = 200;
/** The old process of a reboot keeps the port until it ends: so many failures are not worth a warning. */
const QUIET_TRIES = 25;
/** Connections at the same time; scrapers and probes need a few. The next one ends the oldest. */
const CONNECTIONS_MAX = 64;
const HEADER_MAX = 8192;
const HANDSHAKE_MS = 5_000;
/** A connection on which nothing happens for so long is closed. */
const IDLE_MS = 30_000;
/** Addresses at which only programs on this machine can connect. */
const LOCAL = /^(127\.[\d.]+|::1|localhost)$/;
const OPEN_METRICS = 'application/openmetrics-text; version=1.0.0; charset=utf-8';
const PROMETHEUS = 'text/plain; version=0.0.4; charset=utf-8';

/** What is answered, and to whom. */
interface Site {
  /** bearer token that a scrape has to send; '' = none */
  token: string;
  /** listens on an address of this machine only */
  readonly isLocal: boolean;
  readonly state: MetricsState;
  readonly scrapes: Scrapes;
  readonly status: Status;
  readonly page: Page;
}

let stuck = false;
let watch: NodeJS.Timeout | undefined;
/** The connections whose last answer is not sent yet. */
const answering = new WeakSet<Socket>();

/**
 * Whether a request comes before the last one of its connection is answered. Such a connection is closed: Node passes on all
 * requests of a received chunk at once, and their answers would be kept in memory together.
 */
function isTooEarly({ socket }: IncomingMessage, response: ServerResponse): boolean {
  if (socket.destroyed || answering.has(socket)) {
    socket.destroy();
    return true;
  }
  answering.add(socket);
  response.once('close', () => answering.delete(socket));
  return false;
}

/** Begins the time within which the loop has to report again. */
function beginWatch(): void {
  stuck = false;
  clearTimeout(watch);
  watch = setTimeout(() => {
    stuck = true;
  }, STUCK_MS);
}

/** Compares in a time that does not depend on where the texts differ. */
function sameSecret(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}

function answer(response: ServerResponse, status: number, text: string, type = 'text/plain; charset=utf-8'): void {
  response.writeHead(status, { 'Content-Type': type, 'Cache-Control': 'no-store' });
  response.end(text);
}

/** Whether a request has the token: as a bearer token, or as the password that a browser has asked for. */
function isAllowed({ headers: { authorization = '' } }: IncomingMessage, token: string): boolean {
  if (token === '' || sameSecret(authorization, `Bearer ${token}`)) return true;
  const [, basic] = /^Basic +([\w+/=]+)$/i.exec(authorization) ?? [];
  if (basic === undefined) return false;
  const login = Buffer.from(basic, 'base64').toString('utf8');
  return login.includes(':') && sameSecret(login.slice(login.indexOf(':') + 1), token);
}

/** The name without its port, and an IPv6 address without its brackets. */
function hostName(host: string): string {
  const [, address, name] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/.exec(host) ?? [];
  return (address ?? name ?? '').toLowerCase();
}

/**
 * Whether a request may come from the page of another site, open in a browser on this machine: the owner of a name can let
 * it lead here (DNS rebinding). With a token such a page gets nothing.
 */
function isForeign({ headers: { host = '' } }: IncomingMessage, { token, isLocal }: Site): boolean {
  if (token !== '' || !isLocal || host === '') return false;
  const name = hostName(host);
  return isIP(name) === 0 && name !== 'localhost' && !name.endsWith('.localhost');
}

function metrics(request: IncomingMessage, response: ServerResponse, { token, state, scrapes }: Site): void {
  if (!isAllowed(request, token)) {
    response.setHeader('WWW-Authenticate', 'Bearer');
    answer(response, 401, 'a bearer token is needed\n');
  } else if (state.report === null || stuck) {
    answer(response, 503, 'the pooler does not report its state\n');
  } else {
    const open = (request.headers.accept ?? '').includes('application/openmetrics-text');
    response.setHeader('Content-Type', open ? OPEN_METRICS : PROMETHEUS);
    response.setHeader('Cache-Control', 'no-store');
    scrapes.answer(response, state.report, open);
  }
}

function handle(request: IncomingMessage, response: ServerResponse, site: Site): void {
  const [path = ''] = (request.url ?? '').split('?');
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD');
    answer(response, 405, 'only GET and HEAD\n');
  } else if (path === '/livez') {
    if (stuck) answer(response, 503, 'the pooler does not report its state\n');
    else answer(response, 200, 'alive\n');
  } else if (path === '/readyz') {
    const report = stuck ? null : site.state.report;
    const why = report === null ? 'the pooler does not report its state' : report.notReady;
    answer(response, why === '' ? 200 : 503, `${why === '' ? 'ready' : why}\n`);
  } else if (isForeign(request, site)) {
    answer(response, 403, 'use the address or localhost, or set metrics_token_file\n');
  } else if (path === '/metrics') {
    metrics(request, response, site);
  } else if (!isOfPage(site.page, path)) {
    answer(response, 404, 'only /, /metrics, /livez and /readyz\n');
  } else if (!isAllowed(request, site.token)) {
    response.setHeader('WWW-Authenticate', 'Basic realm="tsbouncer: the token is the password", charset="UTF-8"');
    answer(response, 401, 'the token is needed\n');
  } else {
    answerPage(site.page, site.status, request, response, !stuck);
  }
}

/** The files of the page; without them, the rest works. */
function pageOf(tell: (news: MetricsNews) => void): Page {
  try {
    return readPage();
  } catch (err) {
    tell({ failed: true, text: `metrics: there is no live page: ${(err as Error).message}` });
    return { files: new Map(), assets: '' };
  }
}

/**
 * A Unix socket that nothing listens on any more is removed: a process that was killed has left it behind. Another kind of
 * file refuses connections too, and stays.
 */
function dropStaleSocket(path: string): void {
  const probe = connect(path);
  probe.on('connect', () => probe.destroy());
  probe.on('error', (refused: NodeJS.ErrnoException) => {
    try {
      if (refused.code === 'ECONNREFUSED' && lstatSync(path).isSocket()) unlinkSync(path);
    } catch {
      // it is gone, or belongs to another user: listening fails as before
    }
  });
}

/** If new connections were refused instead, a few silent or slow ones could keep out the probes, and the pooler be killed. */
function limitConnections(server: Server | TlsServer): void {
  const open = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    const [oldest] = open;
    if (open.size > CONNECTIONS_MAX) oldest?.destroy();
  });
}

/** @throws if the certificate or the key is not valid */
function makeServer({ tls }: MetricsSecrets, site: Site): Server | TlsServer {
  const limits = {
    headersTimeout: 5_000,
    requestTimeout: 10_000,
    // how often Node looks for connections that exceed these limits
    connectionsCheckingInterval: 1_000,
    keepAliveTimeout: 20_000,
    maxHeaderSize: HEADER_MAX,
  };
  const handler = (request: IncomingMessage, response: ServerResponse) => {
    if (!isTooEarly(request, response)) handle(request, response, site);
  };
  const server =
    tls === null
      ? createServer(limits, handler)
      : createTlsServer({ ...limits, ...tls, handshakeTimeout: HANDSHAKE_MS }, handler);
  limitConnections(server);
  // a client that does not read its answer
  server.setTimeout(IDLE_MS, (socket) => socket.destroy());
  server.on('clientError', (_err, socket) => socket.destroy());
  return server;
}

/** Uses other files for the next requests and connections. */
function renewSecrets({ token, tls }: MetricsSecrets, server: Server | TlsServer, site: Site): void {
  site.token = token;
  if (tls !== null && server instanceof TlsServer) server.setSecureContext(tls);
}

function listenOn(server: Server | TlsServer, { host, listenPort }: MetricsWorkerData): void {
  if (host.startsWith('/')) server.listen({ path: host, readableAll: true, writableAll: true });
  else server.listen({ port: listenPort, ...(host === '' ? {} : { host }) });
}

/** Listens, again and again until that is possible. */
function keepListening(server: Server | TlsServer, data: MetricsWorkerData, tell: (news: MetricsNews) => void): void {
  const { host, listenPort } = data;
  const isPath = host.startsWith('/');
  const where = isPath ? `unix:${host}` : `${host === '' ? '*' : host}:${listenPort}`;
  let failures = 0;
  let warned = false;
  server.on('error', (err: NodeJS.ErrnoException) => {
    const inUse = err.code === 'EADDRINUSE';
    failures++;
    if (!warned && (!inUse || failures > QUIET_TRIES)) {
      warned = true;
      tell({ failed: true, text: `metrics: cannot listen on ${where}: ${err.message}` });
    }
    if (inUse && isPath) dropStaleSocket(host);
    setTimeout(() => listenOn(server, data), RETRY_MS);
  });
  server.on('listening', () => tell({ failed: false, text: `metrics: listening on ${where}` }));
  listenOn(server, data);
}

function serve(data: MetricsWorkerData): void {
  const { port, layout } = data;
  const tell = (news: MetricsNews) => port.postMessage(news);
  const complain = (err: Error) => tell({ failed: true, text: `metrics: ${err.message}` });
  process.on('uncaughtException', complain);
  const state = new MetricsState(layout);
  const status = new Status(state);
  const scrapes = new Scrapes(state);
  const isLocal = LOCAL.test(data.host);
  const site: Site = { token: data.secrets.token, isLocal, state, scrapes, status, page: pageOf(tell) };
  let server: Server | TlsServer | null = null;
  const use = (secrets: MetricsSecrets) => {
    if (server !== null) {
      renewSecrets(secrets, server, site);
      return;
    }
    site.token = secrets.token;
    server = makeServer(secrets, site);
    keepListening(server, data, tell);
  };
  beginWatch();
  port.on('message', (news: MetricsReport | MetricsSecrets) => {
    if ('token' in news) {
      use(news);
      return;
    }
    beginWatch();
    // the loop starts another thread if it hears nothing
    tell({ failed: false, text: '' });
    state.hear(news);
    scrapes.forget();
    status.add(news);
  });
  try {
    use(data.secrets);
  } catch (err) {
    // until RELOAD finds better files
    complain(err as Error);
  }
}

if (parentPort !== null) serve(workerData as MetricsWorkerData);
