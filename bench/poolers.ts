/*
 * The measured poolers, all with one PostgreSQL server: pool of 20, transaction mode, trust, by default without TLS,
 * connection logging off. Also a server that only accepts logins, for thousands of pools.
 */

import { createServer, type Server } from 'node:net';
import { Bouncer, type PgCluster } from '../test/harness';
import { RawClient } from '../test/harness/raw-client';

// without the constant checks of the pooler's records, which tests enable, because they would be measured too
process.env.TSBOUNCER_CHECK = '0';

/** Number of simultaneous logins of this process. */
const LOGINS_AT_ONCE = 50;

/** [pgbouncer] of every pooler that is measured. */
export const BENCH_SETTINGS = {
  pool_mode: 'transaction',
  default_pool_size: 20,
  max_client_conn: 10_000,
  server_tls_sslmode: 'disable',
  log_connections: 0,
  log_disconnections: 0,
  log_stats: 0,
};

interface PoolerOptions {
  cluster: PgCluster;
  original: boolean;
  /** more databases, all on a server on that port of 127.0.0.1 */
  databases?: { count: number; port: number };
  /** on top of BENCH_SETTINGS */
  settings?: Record<string, string | number>;
}

/** Starts one. */
export function startPooler({ cluster, original, databases, settings }: PoolerOptions): Promise<Bouncer> {
  const section: Record<string, string> = { postgres: cluster.connstr() };
  for (let n = 0; n < (databases?.count ?? 0); n++) {
    section[`p${n}`] = `host=127.0.0.1 port=${databases?.port} dbname=p${n}`;
  }
  return Bouncer.start({
    cluster,
    original,
    databases: section,
    settings: { ...BENCH_SETTINGS, ...settings },
  });
}

/** Logs clients in, some at once. @returns them, connected */
export async function login(port: number, databases: string[]): Promise<RawClient[]> {
  const clients: RawClient[] = [];
  const left = [...databases];
  const worker = async (): Promise<void> => {
    for (let database = left.pop(); database !== undefined; database = left.pop()) {
      const client = await RawClient.connect({ port });
      const answer = await client.login({ database });
      const last = answer.at(-1);
      if (last?.type !== 'Z') throw new Error(`a login on ${database} failed: ${last?.body.toString('latin1')}`);
      clients.push(client);
    }
  };
  await Promise.all(Array.from({ length: LOGINS_AT_ONCE }, worker));
  return clients;
}

/** A server that accepts every login and then closes the connection, so that pools exist without servers. */
export function startAuthOnlyServer(): Promise<{ port: number; server: Server }> {
  const parameters = { server_version: '15.0', client_encoding: 'UTF8', DateStyle: 'ISO', TimeZone: 'UTC' };
  const packet = (letter: string, body: Buffer) => {
    const head = Buffer.alloc(5);
    head.write(letter);
    head.writeInt32BE(body.length + 4, 1);
    return Buffer.concat([head, body]);
  };
  const welcome = Buffer.concat([
    packet('R', Buffer.alloc(4)),
    ...Object.entries(parameters).map(([name, value]) => packet('S', Buffer.from(`${name}\0${value}\0`))),
    packet('S', Buffer.from('standard_conforming_strings\0on\0')),
    packet('K', Buffer.alloc(8, 1)),
    packet('Z', Buffer.from('I')),
  ]);
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.once('data', () => socket.end(welcome));
    socket.resume();
  });
  return new Promise((settle) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      settle({ port: typeof address === 'object' && address !== null ? address.port : 0, server });
    });
  });
}
