/*
 * Set-up that tests of name resolution share: a PostgreSQL server with two addresses, and a name server with a pooler
 * that uses it.
 */

import { giveTo } from '../../tools/unprivileged';
import { ask, login, show, withPooler } from './answers';
import type { Bouncer, BouncerOptions } from './bouncer';
import { PgCluster } from './cluster';
import { after, before } from './limits';
import { dropDir, tempDir, user } from './machine';
import { NameServer } from './name-server';
import type { RawClient } from './raw-client';

export const ONE = '127.0.0.1';
export const TWO = '127.0.0.2';
/** For name servers that answer, so that a busy machine causes no timeout. */
export const PATIENT = 'options timeout:10 attempts:1';
/** For name servers that do not answer. */
export const FAST = 'options timeout:1 attempts:1';
export const LOOKUP_FAILED = /WARNING DNS lookup failed: one\.test: result=0/;

let pg: PgCluster;
let dir = '';

/** Starts a PostgreSQL server on ONE and TWO before the tests of a file, and stops it after them. */
export function withNameCluster(): void {
  before(async () => {
    dir = tempDir('names');
    giveTo(user, dir);
    pg = await PgCluster.start({
      settings: { listen_addresses: `${ONE},${TWO}` },
      hba: ['local all all trust', 'host all all 127.0.0.0/8 trust'],
    });
  });
  after(async () => {
    await pg.stop();
    dropDir(dir);
  });
}

/** The server of withNameCluster(); may be called only inside tests. */
export function nameCluster(): PgCluster {
  return pg;
}

/** A folder that the pooler may read; may be called only inside tests. */
export function nameFolder(): string {
  return dir;
}

interface Case {
  hosts: string[];
  /** besides those of the hosts */
  databases: Record<string, string>;
  conf: string[];
  settings: Record<string, string | number>;
  env: Record<string, string>;
}

/** Runs `body` with a name server and a pooler that uses it; each database is named after its host. */
export async function withNames(
  { hosts = ['one.test'], databases: more = {}, conf = [PATIENT], settings = {}, env = {} }: Partial<Case>,
  body: (pooler: Bouncer, names: NameServer) => Promise<void>,
): Promise<void> {
  const names = await NameServer.start();
  const path = names.conf(dir, ...conf);
  const databases = { ...Object.fromEntries(hosts.map((host) => [host, dbLine(host)])), ...more };
  const common = { pool_mode: 'transaction', verbose: 1, server_login_retry: 0.1, resolv_conf: path };
  // prevents a search in the domain of this machine
  const options: BouncerOptions = {
    databases,
    settings: { ...common, ...settings },
    env: { LOCALDOMAIN: conf.some((line) => line.startsWith('search')) ? undefined : '', RES_OPTIONS: '', ...env },
  };
  try {
    await withPooler(options, (pooler) => body(pooler, names));
  } finally {
    await names.stop();
  }
}

/** The connect string of a database on that host. */
export function dbLine(host: string): string {
  return `host=${host} port=${pg.port} dbname=postgres user=postgres`;
}

/** A client in a transaction, with a server of its own. */
export async function begun(pooler: Bouncer, database = 'one.test'): Promise<RawClient> {
  const client = await login(pooler, { database });
  await ask(client, 'BEGIN');
  return client;
}

/** The address of the server that the client uses. */
export function where(client: RawClient): Promise<string | null> {
  return ask(client, 'SELECT host(inet_server_addr())');
}

export async function hostsRow(pooler: Bouncer, hostname: string): Promise<Record<string, unknown> | undefined> {
  return (await show(pooler, 'DNS_HOSTS', { hostname }))[0];
}
