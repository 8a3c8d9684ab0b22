/*
 * A pooler under load, for pictures of the live page and of `top`: several databases and users with pgbench, one pool with
 * more clients than servers, one idle pool, and a few warnings.
 */

import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import { PgCluster } from '../harness/cluster';
import { startProgram, tempDir, user } from '../harness/machine';
import { pgbench } from '../harness/needs';
import { RebootChain } from '../harness/reboot-chain';

interface Work {
  database: string;
  user: string;
  clients: number;
  /** transactions a second, and how long one takes in seconds */
  rate: number;
  seconds: number;
}

const WORK: readonly Work[] = [
  { database: 'shop', user: 'shop_web', clients: 24, rate: 420, seconds: 0.012 },
  { database: 'shop', user: 'shop_jobs', clients: 4, rate: 30, seconds: 0.04 },
  { database: 'billing', user: 'billing_api', clients: 8, rate: 90, seconds: 0.02 },
  { database: 'reports', user: 'analyst', clients: 14, rate: 9, seconds: 0.9 },
  { database: 'sessions', user: 'sessions', clients: 6, rate: 300, seconds: 0.001 },
];

const SIZES: Record<string, number> = { shop: 8, billing: 10, reports: 5, sessions: 12, archive: 4 };

export interface Load {
  cluster: PgCluster;
  chain: RebootChain;
  metricsPort: number;
  stop(): Promise<void>;
}

function startBench(folder: string, port: number, seconds: number, work: Work): ChildProcess {
  const script = join(folder, `${work.user}.sql`);
  const us = Math.round(work.seconds * 1e6);
  const text = `\\set us random(${Math.round(us / 2)}, ${Math.round(us * 1.5)})\nBEGIN;\nSELECT pg_sleep(:us / 1000000.0);\nSELECT 1;\nCOMMIT;\n`;
  writeFileSync(script, text);
  giveTo(user, folder);
  giveTo(user, script);
  const args = ['-n', '-f', script, '-h', '127.0.0.1', '-p', String(port), '-U', work.user, '-c', String(work.clients)];
  args.push('-R', String(work.rate), '-T', String(seconds), work.database);
  return startProgram(pgbench as string, args, { stdio: 'ignore' });
}

/** Starts everything. @param seconds how long the load lasts at most */
export async function startLoad(seconds: number): Promise<Load> {
  const cluster = await PgCluster.start();
  const databases = Object.keys(SIZES);
  for (const name of databases) await cluster.sql(`CREATE DATABASE ${name}`);
  const users = [...WORK.map((work) => work.user), 'archivist'];
  for (const name of users) await cluster.sql(`CREATE ROLE ${name} LOGIN`);
  const metricsPort = await freePort();
  const chain = await RebootChain.make({
    cluster,
    databases: Object.fromEntries(
      Object.entries(SIZES).map(([name, size]) => [name, `${cluster.connstr(name)} pool_size=${size}`]),
    ),
    settings: { pool_mode: 'transaction', metrics_port: metricsPort, max_client_conn: 500, auth_type: 'trust' },
    userlist: Object.fromEntries(users.map((name) => [name, 'x'])),
  });
  await chain.start('ts');
  const folder = tempDir('load');
  const benches = WORK.map((work) => startBench(folder, chain.port, seconds, work));
  return {
    cluster,
    chain,
    metricsPort,
    stop: async () => {
      for (const bench of benches) bench.kill('SIGTERM');
      await chain.stop();
      await cluster.stop();
    },
  };
}
