/*
 * Set-up that tests of single takeovers share: a cluster with users of each kind, a pooler, and clients of it.
 */

import assert from 'node:assert/strict';
import { PgCluster } from '../harness';
import { errorFields, type Message, type RawClient, rowValues } from './raw-client';
import { type ChainOptions, type RebootChain, withRebootChain } from './reboot-chain';

/** Options, or a function that makes them from the connect string of the cluster. */
export type Options = Omit<ChainOptions, 'cluster'> | ((connstr: string) => Omit<ChainOptions, 'cluster'>);

/** A cluster for logical replication, with users that log in by SCRAM. */
export async function startTakeoverCluster(settings: Record<string, string> = {}): Promise<PgCluster> {
  const cluster = await PgCluster.start({ settings: { wal_level: 'logical', max_wal_senders: 5, ...settings } });
  await cluster.createUser('scrammer', 'secret', 'scram');
  await cluster.createUser('asked', 'answer', 'scram');
  await cluster.setHba([
    'local all all trust',
    'host all scrammer 127.0.0.1/32 scram-sha-256',
    'host all asked 127.0.0.1/32 scram-sha-256',
    'host all all 127.0.0.1/32 trust',
    'host replication all 127.0.0.1/32 trust',
  ]);
  return cluster;
}

/** Runs `body` with a pooler that has been started. */
export async function withStarted(
  cluster: PgCluster,
  options: Options,
  body: (chain: RebootChain) => Promise<void>,
): Promise<void> {
  const given = typeof options === 'function' ? options(cluster.connstr()) : options;
  await withRebootChain({ cluster, ...given }, async (chain) => {
    await chain.start('ts');
    await body(chain);
  });
}

export async function login(chain: RebootChain, params: Record<string, string> = {}): Promise<RawClient> {
  const client = await chain.raw();
  const { user = 'postgres', database = 'postgres', ...rest } = params;
  assert.equal((await client.login({ user, database, params: rest })).at(-1)?.type, 'Z');
  return client;
}

/** The first value of an answer; throws its error. */
export function firstValue(messages: Message[]): string | null {
  const error = messages.find((msg) => msg.type === 'E');
  if (error !== undefined) throw new Error(errorFields(error).M);
  const row = messages.find((msg) => msg.type === 'D');
  return row === undefined ? null : (rowValues(row)[0] ?? null);
}

export async function ask(client: RawClient, sql: string): Promise<string | null> {
  return firstValue(await client.query(sql));
}
