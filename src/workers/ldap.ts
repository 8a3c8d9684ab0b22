import { promises as dns } from 'node:dns';
import { writeSync } from 'node:fs';
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { parentPort, workerData } from 'node:worker_threads';
import type { Client } from 'ldapts';
import type { LdapAnswer, LdapRequest, WorkerData } from '../core/base/worker-messages';
import { tlsOptions } from './ldap-tls';

/** PgBouncer's LDAP_OPT_NETWORK_TIMEOUT. */
const CONNECT_MS_MAX = 3000;
/** A silent LDAP server must not block the queue; PgBouncer waits without limit. */
const ANSWER_MS_MAX = 30_000;
/** Most bytes that a server may send in one session; a right answer has some hundred. */
const SESSION_BYTES_MAX = 1024 * 1024;
/** Most bytes of an answer to StartTLS. */
const START_TLS_ANSWER_MAX = 4096;

/** Texts of ldap_err2string() for errors that a login can get. */
const RESULT_TEXTS: Readonly<Record<number, string>> = {
  1: 'Operations error',
  2: 'Protocol error',
  3: 'Time limit exceeded',
  4: 'Size limit exceeded',
  7: 'Authentication method not supported',
  8: 'Strong(er) authentication required',
  10: 'Referral',
  11: 'Administrative limit exceeded',
  12: 'Critical extension is unavailable',
  13: 'Confidentiality required',
  16: 'No such attribute',
  17: 'Undefined attribute type',
  18: 'Inappropriate matching',
  21: 'Invalid syntax',
  32: 'No such object',
  33: 'Alias problem',
  34: 'Invalid DN syntax',
  48: 'Inappropriate authentication',
  49: 'Invalid credentials',
  50: 'Insufficient access',
  51: 'Server is busy',
  52: 'Server is unavailable',
  53: 'Server is unwilling to perform',
  80: 'Other (e.g., implementation specific) error',
};
const NOT_REACHED = "Can't contact LDAP server";
const TLS_FAILED = 'Connect error';
const LOCAL_ERROR = 'Local error';

function errorText(err: unknown): string {
  const code = (err as { code?: unknown }).code;
  const message = String((err as Error)?.message ?? err);
  if (typeof code === 'number') return RESULT_TEXTS[code] ?? `Unknown error ${code}`;
  if (/time[d]? ?out/i.test(message)) return 'Timed out';
  return /filter|paren/i.test(message) ? 'Bad search filter' : NOT_REACHED;
}

/** Rejects a login; the texts are for the log. */
class Refused extends Error {
  constructor(readonly warnings: string[]) {
    super(warnings[0] ?? 'refused');
  }
}

/** Resolves when the socket is connected; destroys it on timeout. */
function established(socket: Socket, event: 'connect' | 'secureConnect'): Promise<void> {
  return new Promise((settle, reject) => {
    const fail = (err: Error) => {
      socket.destroy();
      reject(err);
    };
    const timer = setTimeout(() => fail(new Error('timed out')), CONNECT_MS_MAX);
    const done = (act: () => void) => {
      clearTimeout(timer);
      socket.removeListener('error', fail);
      socket.removeListener('close', closed);
      // later users add their own listeners; until then an error must not end the thread
      socket.on('error', () => {});
      act();
    };
    const closed = () => done(() => fail(new Error('closed')));
    socket.once(event, () => done(settle));
    socket.once('error', (err) => done(() => fail(err)));
    socket.once('close', closed);
  });
}

/** ExtendedRequest 1.3.6.1.4.1.1466.20037 with message id 1. */
const START_TLS = Buffer.concat([
  Buffer.from([0x30, 0x1d, 0x02, 0x01, 0x01, 0x77, 0x18, 0x80, 0x16]),
  Buffer.from('1.3.6.1.4.1.1466.20037', 'latin1'),
]);

/** Start and length of a BER element's content; null while the header is incomplete. */
function berLength(bytes: Buffer, at: number): { start: number; length: number } | null {
  if (bytes.length < at + 2) return null;
  const first = bytes[at + 1] as number;
  if (first < 0x80) return { start: at + 2, length: first };
  const size = first & 0x7f;
  if (size === 0 || size > 4) throw new Error('malformed answer');
  if (bytes.length < at + 2 + size) return null;
  return { start: at + 2 + size, length: bytes.readUIntBE(at + 2, size) };
}

/** The result code of a complete ExtendedResponse to message 1; null while it is incomplete. */
function startTlsResult(bytes: Buffer): number | null {
  if (bytes.length > START_TLS_ANSWER_MAX) throw new Error('answer too long');
  const message = berLength(bytes, 0);
  if (message === null || bytes.length < message.start + message.length) return null;
  // received together with the answer, so not encrypted: may have been injected
  if (bytes.length > message.start + message.length) throw new Error('data after the answer to StartTLS');
  const isAnswer = bytes[0] === 0x30 && bytes.subarray(message.start, message.start + 3).equals(Buffer.from([2, 1, 1]));
  const at = message.start + 3;
  const response = berLength(bytes, at);
  if (!isAnswer || bytes[at] !== 0x78 || response === null) throw new Error('malformed answer');
  const code = bytes.subarray(response.start, response.start + 3);
  if (code[0] !== 0x0a || code[1] !== 1) throw new Error('malformed answer');
  return code[2] as number;
}

function askStartTls(socket: Socket): Promise<number> {
  return new Promise((settle, reject) => {
    let bytes: Buffer = Buffer.alloc(0);
    const end = (act: () => void) => {
      clearTimeout(timer);
      socket.removeListener('data', onData);
      socket.removeListener('close', onClose);
      act();
    };
    const timer = setTimeout(() => end(() => reject(new Error('timed out'))), CONNECT_MS_MAX);
    const onClose = () => end(() => reject(new Error('closed')));
    const onData = (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
      try {
        const result = startTlsResult(bytes);
        if (result !== null) {
          socket.pause();
          end(() => settle(result));
        }
      } catch (err) {
        end(() => reject(err));
      }
    };
    socket.on('data', onData);
    socket.once('close', onClose);
    socket.write(START_TLS);
  });
}

async function startTls(request: LdapRequest, tcp: Socket, host: string): Promise<Socket> {
  const refused = (text: string) => {
    tcp.destroy();
    const where = `server: ${request.server}, port: ${request.port}`;
    return new Refused([`could not start LDAP TLS session: ${text}, ${where}`]);
  };
  // the connection uses TLS already
  if (request.scheme === 'ldaps') throw refused(LOCAL_ERROR);
  let result: number;
  try {
    result = await askStartTls(tcp);
  } catch (err) {
    throw refused(errorText(err));
  }
  if (result !== 0) throw refused(RESULT_TEXTS[result] ?? `Unknown error ${result}`);
  try {
    const secured = connectTls({ ...tlsOptions(host), socket: tcp });
    await established(secured, 'secureConnect');
    return secured;
  } catch {
    throw refused(TLS_FAILED);
  }
}

interface LdapServer {
  host: string;
  port: number;
}

/** ou=x,dc=foo,dc=bar -> foo.bar, as ldap_dn2domain(). */
function domainOf(dn: string): string {
  const parts: string[] = [];
  for (const rdn of dn.split(/(?<!\\),/)) {
    const match = /^\s*dc\s*=\s*(.*?)\s*$/i.exec(rdn);
    if (match !== null) parts.push(match[1] as string);
    else parts.length = 0;
  }
  return parts.join('.');
}

async function ldapServersOf(request: LdapRequest): Promise<LdapServer[]> {
  if (request.server !== '') {
    const hosts = request.server.split(' ').filter((host) => host !== '');
    return hosts.map((host) => ({ host: host.replace(/^\[(.*)\]$/, '$1'), port: request.port }));
  }
  const domain = domainOf(request.baseDn ?? '');
  if (domain === '') throw new Refused(['could not extract domain name from ldapbasedn']);
  try {
    const records = await dns.resolveSrv(`_ldap._tcp.${domain}`);
    records.sort((a, b) => a.priority - b.priority || b.weight - a.weight);
    return records.map((record) => ({ host: record.name, port: record.port }));
  } catch {
    throw new Refused([`LDAP authentication could not find DNS SRV records for "${domain}"`]);
  }
}

/** Connects to the first server that answers. Throws the error of NOT_REACHED if none does. */
async function openSocket(request: LdapRequest): Promise<Socket> {
  let lastError: unknown = new Error(NOT_REACHED);
  for (const { host, port } of await ldapServersOf(request)) {
    const secure = request.scheme === 'ldaps';
    let socket: Socket;
    try {
      socket = secure ? connectTls({ ...tlsOptions(host), port }) : connectTcp({ host, port });
      await established(socket, secure ? 'secureConnect' : 'connect');
    } catch (err) {
      lastError = err;
      continue;
    }
    if (request.tls) socket = await startTls(request, socket, host);
    return socket;
  }
  if (request.tls) {
    const where = `server: ${request.server}, port: ${request.port}`;
    throw new Refused([`could not start LDAP TLS session: ${NOT_REACHED}, ${where}`]);
  }
  throw lastError;
}

/** Ends the connection of a server that sends too much: the library keeps a message until it is complete, and all entries. */
function limitBytes(socket: Socket): void {
  let received = 0;
  socket.on('data', (chunk: Buffer) => {
    received += chunk.length;
    if (received > SESSION_BYTES_MAX) socket.destroy(new Error('answer too long'));
  });
}

/** Runs `use` with an LDAP client on a single connection, which is closed afterwards and never replaced. */
async function withClient<T>(request: LdapRequest, use: (client: Client) => Promise<T>): Promise<T> {
  // loaded here, so that a pooler without LDAP never loads the library
  const { Client: LdapClient } = require('ldapts') as typeof import('ldapts');
  const socket = await openSocket(request);
  limitBytes(socket);
  let used = false;
  const once = () => {
    if (used) throw new Error('connection lost');
    used = true;
    return socket;
  };
  const client = new LdapClient({
    url: 'ldap://unused',
    timeout: ANSWER_MS_MAX,
    connectTimeout: CONNECT_MS_MAX,
    strictDN: false,
    createConnection: once as never,
  });
  try {
    return await use(client);
  } finally {
    await client.unbind().catch(() => {});
    socket.destroy();
  }
}

function filterOf(request: LdapRequest): string {
  if (request.searchFilter === null) return `(${request.searchAttribute ?? 'uid'}=${request.user})`;
  const filter = request.searchFilter.split('$username').join(request.user);
  return filter.startsWith('(') ? filter : `(${filter})`;
}

/** The DN of the single entry that matches the user. */
async function searchUser(request: LdapRequest): Promise<string> {
  const { user, server } = request;
  if (/[*()\\/]/.test(user)) throw new Refused(['invalid character in user name for LDAP authentication']);
  const filter = filterOf(request);
  const bindFailed = (err: unknown) =>
    new Refused([
      `could not perform initial LDAP bind for ldapbinddn "${request.bindDn}" on server "${server}": ${errorText(err)}`,
    ]);
  const asked = withClient(request, async (client) => {
    try {
      await client.bind(request.bindDn, request.bindPasswd);
    } catch (err) {
      throw bindFailed(err);
    }
    try {
      const attributes = [request.searchFilter === null ? (request.searchAttribute ?? 'uid') : '1.1'];
      return await client.search(request.baseDn ?? '', { scope: request.scope, filter, attributes });
    } catch (err) {
      throw new Refused([`could not search LDAP for filter "${filter}" on server "${server}": ${errorText(err)}`]);
    }
  });
  const { searchEntries } = await asked.catch((err) => {
    throw err instanceof Refused ? err : bindFailed(err);
  });
  const [entry, ...others] = searchEntries;
  const where = `LDAP search for filter "${filter}" on server "${server}" returned`;
  if (entry === undefined) throw new Refused([`LDAP user "${user}" does not exist`, `${where} no entries.`]);
  if (others.length > 0) {
    throw new Refused([`LDAP user "${user}" is not unique`, `${where} ${searchEntries.length} entries.`]);
  }
  return entry.dn;
}

async function login(request: LdapRequest): Promise<void> {
  // a bind without a password is anonymous: it succeeds for every user and proves nothing
  if (request.password === '') throw new Refused([]);
  const dn = request.baseDn === null ? request.directDn : await searchUser(request);
  // every DN contains `=`; the library would take a word such as EXTERNAL for a SASL mechanism
  const named = (text: string) =>
    new Refused([`LDAP login failed for user ${dn} on server ${request.server}: ${text}`]);
  if (/^[A-Z0-9-]*$/.test(dn)) throw named('Invalid DN syntax');
  await withClient(request, (client) => client.bind(dn, request.password)).catch((err) => {
    throw err instanceof Refused ? err : named(errorText(err));
  });
}

async function answer(request: LdapRequest): Promise<LdapAnswer> {
  try {
    await login(request);
    return { id: request.id, allowed: true, warnings: [] };
  } catch (err) {
    const warnings = err instanceof Refused ? err.warnings : [`LDAP login failed: ${(err as Error)?.message ?? err}`];
    return { id: request.id, allowed: false, warnings };
  }
}

function serve({ port, wakeFd }: WorkerData): void {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  port.on('message', (request: LdapRequest) => {
    void answer(request).then((result) => {
      port.postMessage(result);
      writeSync(wakeFd, one);
    });
  });
  // an unhandled error of one login must not end the thread for other logins
  process.on('uncaughtException', () => {});
}

if (parentPort !== null) serve(workerData as WorkerData);
