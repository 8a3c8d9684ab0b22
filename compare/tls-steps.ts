/*
 * Steps of TLS clients: how they begin, which certificate they present, and their errors.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import { withTimeout } from '../test/harness';
import { type Login, RawClient, SSL_REQUEST, startupPacket } from '../test/harness/raw-client';
import type { Item } from './decode';
import type { Side, Step } from './side';
import { loggedIn, step, untilClosed, who } from './steps';

/** TLS options of a client. It accepts any server certificate, because the pooler's checks are compared. */
interface TlsClientOptions {
  /** name of a certificate of the test bed */
  cert?: string;
  /** without asking by an SSLRequest first */
  direct?: boolean;
  alpn?: string[];
  tls?: ConnectionOptions;
}

function tlsOptionsText({ cert, direct, alpn, tls }: TlsClientOptions): string {
  const certText = cert === undefined ? '' : ` with the certificate ${cert}`;
  const directText = direct === true ? ' directly' : '';
  const rest = { ...(alpn === undefined ? {} : { alpn }), ...tls };
  const restText = Object.keys(rest).length === 0 ? '' : ` ${JSON.stringify(rest)}`;
  return `${certText}${directText}${restText}`;
}

/** Why a connection ended: the TLS alert, if it has arrived before a reset. */
function lossText(err: Error | null): string {
  const alert = /alert [a-z ]+[a-z]/.exec(err?.message ?? '')?.[0].replace(/^alert alert/, 'alert');
  return `TLS: ${alert ?? 'lost'}`;
}

async function shaken(socket: TLSSocket): Promise<void> {
  const done = new Promise<void>((settle, reject) => {
    socket.once('secureConnect', settle);
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('closed')));
  });
  await withTimeout(done, 'a TLS handshake');
}

function options(side: Side, { cert, alpn, tls }: TlsClientOptions): ConnectionOptions {
  const file = (ending: string) => readFileSync(join(side.testBed.words.certs ?? '', `${cert}.${ending}`));
  return {
    rejectUnauthorized: false,
    ...(cert === undefined ? {} : { cert: file('crt'), key: file('key') }),
    ...(alpn === undefined ? {} : { ALPNProtocols: alpn }),
    ...tls,
  };
}

/** Connects over TLS and logs in; an answer other than S, or an early end, becomes an item. */
async function encrypted(side: Side, name: string, tlsOptions: TlsClientOptions, login: Login): Promise<Item[]> {
  const plain = await side.open(name);
  if (tlsOptions.direct !== true) {
    const answer = await plain.request(SSL_REQUEST);
    if (answer !== 'S') return [`answer ${answer}`];
  }
  const socket = tlsConnect({ ...options(side, tlsOptions), socket: plain.socket });
  // created at once, because the end may directly follow the handshake
  const client = RawClient.over(socket);
  side.clients.set(name, client);
  try {
    await shaken(socket);
  } catch (err) {
    socket.destroy();
    plain.socket.destroy();
    return [lossText(err as Error)];
  }
  const alpn = socket.alpnProtocol || 'none';
  const about = `TLS: ${socket.getProtocol()} ${socket.getCipher().standardName} ALPN ${alpn}`;
  const items = await loggedIn(client, login).catch((err: Error): Item[] => [err.message]);
  // in TLS 1.3 the certificate is verified after the client has completed the handshake
  if (client.error !== null) return [lossText(client.error)];
  return [about, ...items];
}

/** Logs in over TLS; the connection stays. */
export function loginTls(name: string, tlsOptions: TlsClientOptions = {}, login: Login = {}): Step {
  return step(`${name}: TLS${tlsOptionsText(tlsOptions)}, login ${who(login)}`, (side) =>
    encrypted(side, name, tlsOptions, login),
  );
}

/** Logs in over TLS and disconnects, for tables of logins. */
export function tryTls(tlsOptions: TlsClientOptions = {}, login: Login = {}): Step {
  return step(`TLS${tlsOptionsText(tlsOptions)}, login ${who(login)}`, async (side) => {
    const items = await encrypted(side, 'try', tlsOptions, login);
    const client = side.client('try');
    if (client.socket.destroyed || client.error !== null) await client.destroy();
    else await client.end();
    return items;
  });
}

/** Sends an SSLRequest with those bytes directly behind it. */
export function injected(text: string, bytes: Buffer): Step {
  return step(`SSLRequest and ${text} in one piece`, async (side) => {
    const client = await side.open('raw');
    await client.send(startupPacket(SSL_REQUEST, Buffer.alloc(0)), bytes);
    const items = await untilClosed(client);
    await client.destroy();
    return items;
  });
}

/** Sends those bytes instead of a TLS handshake. The answer is a TLS alert, or nothing. */
export function afterYes(text: string, bytes: Buffer): Step {
  return step(`SSLRequest, S, then ${text}`, async (side) => {
    const client = await side.open('raw');
    const answer = await client.request(SSL_REQUEST);
    await client.send(bytes);
    const record = await client.bytes(5);
    await client.destroy();
    return [`answer ${answer}`, record === null ? 'closed' : `TLS record ${record[0]}`];
  });
}

/** Sends those bytes inside TLS and reads to the end. */
export function insideTls(text: string, ...bytes: Buffer[]): Step {
  return step(`inside TLS: ${text}`, async (side) => {
    const plain = await side.open('raw');
    await plain.request(SSL_REQUEST);
    const socket = tlsConnect({ rejectUnauthorized: false, socket: plain.socket });
    const client = RawClient.over(socket);
    side.clients.set('raw', client);
    await shaken(socket);
    await client.send(...bytes);
    const items = await untilClosed(client);
    await client.destroy();
    return client.error === null ? items : [...items, lossText(client.error)];
  });
}
