/*
 * The cost of large numbers: an auth_file of 100,000 users, logins of many new users, TLS clients, prepared statements
 * of one client, and results that are read slowly. Each measurement has its own pooler.
 */

import { appendFileSync } from 'node:fs';
import { connect as connectTls } from 'node:tls';
import type { PgCluster } from '../../test/harness';
import type { Cert } from '../../test/harness/certs';
import { cstring, int16, message, RawClient, SSL_REQUEST } from '../../test/harness/raw-client';
import { type Bench, type Contender, isSince } from '../contenders';
import { cpuUsec, rssKb } from '../cpu';
import { startAuthOnlyServer } from '../fake-server';
import { login, startPooler } from '../poolers';
import { addRow, figureAim, note, ratioAim, remark, say } from '../rows';
import { KB, options, REST_MS } from '../settings';

const AT_ONCE = 50;
/** ms; PgBouncer needs minutes for 100,000 users */
const UP_MS_MAX = 60_000;
/** PgBouncer's first release with auth_dbname. */
const AUTH_DBNAME_SINCE: [number, number] = [1, 19];

const sleep = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

interface Where {
  cluster: PgCluster;
  contender: Contender;
}

/** The same names in every run, unordered. */
function userNames(count: number, seed: number): string[] {
  const names: string[] = [];
  let state = seed;
  for (let n = 0; n < count; n++) {
    state = (state * 48271) % 0x7fffffff;
    names.push(`u${state.toString(36)}_${n}`);
  }
  return names;
}

async function inGroups(count: number, one: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let index = next++; index < count; index = next++) await one(index);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function mustLogIn(client: RawClient, user: string, database: string, password = ''): Promise<void> {
  const last = (await client.login({ user, database, password })).at(-1);
  if (last?.type !== 'Z') throw new Error(`${user} could not log in: ${last?.body.toString('latin1')}`);
}

interface UsersFigures {
  /** ms from the start of the process until it is up */
  up: number;
  /** ms from RELOAD until the last new user can log in */
  reload: number;
  /** ms that a client with small queries waited at most meanwhile */
  wait: number;
}

/**
 * Loads an auth_file of that many users, and then some more by RELOAD while other clients work.
 * @returns null if the pooler is not up after a minute
 */
async function usersInFile({ cluster, contender }: Where, count: number, more: number): Promise<UsersFigures | null> {
  const names = userNames(count, 1);
  const userlist = Object.fromEntries(['postgres', ...names].map((name) => [name, 'secret']));
  // PostgreSQL knows none of them
  const databases = { postgres: cluster.connstr('postgres', 'user=postgres') };
  const settings = { auth_type: 'plain' };
  const start = performance.now();
  const how = { cluster, contender, databases, userlist, settings, upMs: UP_MS_MAX };
  const pooler = await startPooler(how).catch(() => null);
  if (pooler === null) return null;
  const up = performance.now() - start;

  const client = await RawClient.connect({ port: pooler.port });
  await mustLogIn(client, 'postgres', 'postgres', 'secret');
  const console = await pooler.console();
  let over = false;
  let wait = 0;
  const asking = async (): Promise<void> => {
    while (!over) {
      const asked = performance.now();
      await client.query('SELECT 1');
      wait = Math.max(wait, performance.now() - asked);
    }
  };
  const loop = asking();
  const added = userNames(more, 2).map((name) => `x${name}`);
  appendFileSync(`${pooler.dir}/userlist.txt`, added.map((name) => `"${name}" "secret"\n`).join(''));
  await sleep(500);
  wait = 0;
  const told = performance.now();
  await console.query('RELOAD');
  for (const name of [added[0] as string, added.at(-1) as string]) {
    const newcomer = await RawClient.connect({ port: pooler.port });
    await mustLogIn(newcomer, name, 'postgres', 'secret');
    await newcomer.destroy();
  }
  const reload = performance.now() - told;
  await sleep(500);
  over = true;
  await loop;
  await console.end();
  await client.destroy();
  await pooler.stop();
  return { up, reload, wait };
}

/**
 * CPU of a login, usec, for the first and for the last of many users and databases that the pooler did not know before.
 */
async function usersFoundAtLogin({ cluster, contender }: Where, count: number): Promise<[number, number]> {
  const doorman = await startAuthOnlyServer();
  const pooler = await startPooler({
    cluster,
    contender,
    databases: {
      asking: cluster.connstr('postgres'),
      '*': `host=127.0.0.1 port=${doorman.port} auth_dbname=asking auth_user=postgres`,
    },
    settings: { auth_type: 'plain', auth_query: "SELECT $1::text, 'secret'" },
  });
  const names = userNames(count, 3);
  const part = Math.floor(count / 10);
  const perLogin = async (from: number, to: number): Promise<number> => {
    const before = cpuUsec(pooler.pid);
    await inGroups(to - from, async (at) => {
      const name = names[from + at] as string;
      const client = await RawClient.connect({ port: pooler.port });
      await mustLogIn(client, name, `db_${name}`, 'secret');
      await client.destroy();
    });
    return (cpuUsec(pooler.pid) - before) / (to - from);
  };
  await perLogin(0, part);
  const first = await perLogin(part, 2 * part);
  await perLogin(2 * part, count - part);
  const last = await perLogin(count - part, count);
  await pooler.stop();
  doorman.server.close();
  return [first, last];
}

interface MemoryFigures {
  /** MB of resident memory before, with all clients, and some seconds after they have disconnected */
  before: number;
  with: number;
  after: number;
}

async function tlsClient(port: number): Promise<RawClient> {
  const plain = await RawClient.connect({ port });
  if ((await plain.request(SSL_REQUEST)) !== 'S') throw new Error('the pooler refuses TLS');
  plain.socket.removeAllListeners('data');
  const socket = connectTls({ socket: plain.socket, rejectUnauthorized: false });
  await new Promise<void>((settle, reject) => {
    socket.once('secureConnect', settle);
    socket.once('error', reject);
  });
  return RawClient.over(socket);
}

async function idleTlsClients({ cluster, contender }: Where, count: number, cert: Cert): Promise<MemoryFigures> {
  const settings = {
    client_tls_sslmode: 'require',
    client_tls_cert_file: cert.cert,
    client_tls_key_file: cert.key,
  };
  const pooler = await startPooler({ cluster, contender, settings });
  const clients: RawClient[] = [];
  const before = rssKb(pooler.pid) / KB;
  await inGroups(count, async () => {
    const client = await tlsClient(pooler.port);
    await mustLogIn(client, 'postgres', 'postgres');
    clients.push(client);
  });
  await sleep(REST_MS);
  const most = rssKb(pooler.pid) / KB;
  await Promise.all(clients.map((client) => client.destroy()));
  await sleep(REST_MS);
  const figures = { before, with: most, after: rssKb(pooler.pid) / KB };
  await pooler.stop();
  return figures;
}

const PARSES_AT_ONCE = 100;

/** One client prepares that many different statements, idles, and disconnects. */
async function statementsOfOneClient({ cluster, contender }: Where, count: number): Promise<MemoryFigures> {
  const pooler = await startPooler({
    cluster,
    contender,
    settings: { max_prepared_statements: 100 },
  });
  const [client] = (await login(pooler.port, ['postgres'])) as [RawClient];
  const before = rssKb(pooler.pid) / KB;
  for (let at = 0; at < count; at += PARSES_AT_ONCE) {
    const parses = Array.from({ length: Math.min(PARSES_AT_ONCE, count - at) }, (_, n) =>
      message('P', cstring(`s${at + n}`), cstring(`SELECT ${at + n}`), int16(0)),
    );
    await client.send(...parses, message('S'));
    const answer = await client.until('Z');
    if (answer.some((msg) => msg.type === 'E')) throw new Error('a statement could not be prepared');
  }
  await sleep(REST_MS);
  const most = rssKb(pooler.pid) / KB;
  await client.destroy();
  await sleep(REST_MS);
  const figures = { before, with: most, after: rssKb(pooler.pid) / KB };
  await pooler.stop();
  return figures;
}

/** A result of about a megabyte, and how long a slow client waits after each row. */
const ROWS = 20;
const ROW_BYTES = 50_000;
const PAUSE_MS = 10;
const ANSWER_MS_MAX = 120_000;

async function readSlowly(client: RawClient): Promise<void> {
  await client.sendMessage('Q', cstring(`SELECT repeat('x', ${ROW_BYTES}) FROM generate_series(1, ${ROWS})`));
  for (;;) {
    const msg = await client.next(ANSWER_MS_MAX);
    if (msg === null || msg.type === 'E') throw new Error('a slow client lost its connection');
    if (msg.type === 'Z') return;
    client.pause();
    await sleep(PAUSE_MS);
    client.resume();
  }
}

/** @returns s until all clients have read their results */
async function slowReaders(where: Where, clients: number, servers: number): Promise<number> {
  const { cluster, contender } = where;
  const pooler = await startPooler({
    cluster,
    contender,
    settings: { default_pool_size: servers },
  });
  const readers = await login(pooler.port, new Array<string>(clients).fill('postgres'));
  const start = performance.now();
  await Promise.all(readers.map(readSlowly));
  const seconds = (performance.now() - start) / 1000;
  await Promise.all(readers.map((client) => client.destroy()));
  await pooler.stop();
  return seconds;
}

function addMemory(title: string, names: Record<keyof MemoryFigures, string>) {
  const rowOf = (word: string) => addRow(`${title}, ${word}`, 'MB', 1);
  const [before, most, after] = [rowOf(names.before), rowOf(names.with), rowOf(names.after)];
  return (who: Contender, figures: MemoryFigures) => {
    note(before, who, figures.before);
    note(most, who, figures.with);
    note(after, who, figures.after);
  };
}

/** Large numbers, for which PgBouncer needs minutes: only on request, once per pooler. */
export async function benchScale({ cluster, contenders, identity }: Bench): Promise<void> {
  if (!options.only.some((word) => 'scale'.includes(word))) return;
  const [users, more, logins, tls, statements] = options.quick
    ? [10_000, 100, 2000, 200, 10_000]
    : [100_000, 1000, 20_000, 1000, 100_000];
  const up = addRow(`scale: auth_file of ${users} users, start`, 'ms', 0, { aims: figureAim(1000) });
  const reload = addRow(`scale: RELOAD with ${more} new users, the last is let in`, 'ms', 0, { aims: figureAim(1000) });
  const wait = addRow('scale: longest wait of another client meanwhile', 'ms', 0);
  const first = addRow(`scale: CPU per login of a new user and database, early of ${logins}`, 'us', 0);
  const last = addRow('scale: the same, at the end', 'us', 0);
  const tlsMemory = addMemory(`scale: ${tls} TLS clients`, { before: 'before', with: 'idle', after: 'gone' });
  const named = { before: 'before', with: 'at rest', after: 'when it has left' };
  const statementMemory = addMemory(`scale: one client with ${statements} prepared statements`, named);
  const [readers, servers] = options.quick ? [200, 20] : [2000, 200];
  const slowName = `scale: ${readers} slow clients read 1 MB each from ${servers} servers`;
  const slow = addRow(slowName, 's', 1, { aims: ratioAim(1) });
  for (const who of contenders) {
    const where = { cluster, contender: who };
    say(`scale: ${who.name}`);
    const figures = await usersInFile(where, users, more);
    if (figures !== null) {
      note(up, who, figures.up);
      note(reload, who, figures.reload);
      note(wait, who, figures.wait);
    } else remark(`${who.version} was not up after a minute with ${users} users`);
    if (isSince(who, AUTH_DBNAME_SINCE)) {
      const [early, late] = await usersFoundAtLogin(where, logins);
      note(first, who, early);
      note(last, who, late);
    } else remark(`${who.version} has no auth_dbname (it came with 1.19): no ratio there`);
    tlsMemory(who, await idleTlsClients(where, tls, identity));
    statementMemory(who, await statementsOfOneClient(where, statements));
    note(slow, who, await slowReaders(where, readers, servers));
  }
}
