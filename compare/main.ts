/*
 * `npm run compare`: the same scripted sessions against the C original and against tsbouncer. docs/compare.md tells users
 * what it shows; this file reads the command line, sets the stage, and says at the end whether all is as meant.
 *
 *     npm run compare [-- [-v] [family or part of a scenario's name …]]
 */
import { spawnSync } from 'node:child_process';
import { createServer, type Socket } from 'node:net';
import { freePort, installed, originalBin, PgCluster } from '../test/harness';
import { claimsFor } from './claim';
import { meantDifferences } from './differences';
import { runAll, type Tally } from './run';
import { families } from './scenarios';
import type { Program, Scenario, World } from './side';

/** Users whom PostgreSQL asks for a password, and how; everybody else is trusted. */
const SERVER_USERS = [
  { name: 's_plain', method: 'password', secret: 'scram' },
  { name: 's_md5', method: 'md5', secret: 'md5' },
  { name: 's_scram', method: 'scram-sha-256', secret: 'scram' },
  { name: 's_reject', method: 'reject', secret: 'scram' },
] as const;
/** Users whom PostgreSQL trusts: the pooler alone looks at their passwords. */
const TRUSTED_USERS = ['c_plain', 'c_md5', 'c_scram', 'c_empty', 'alice', 'bob'];

/** Of 127.0.0.1; a port from the kernel's range might come alive in the middle of a run. */
const DEAD_PORT = 1;

async function startCluster(): Promise<PgCluster> {
  const asked = SERVER_USERS.map(({ name, method }) => `host all ${name} 127.0.0.1/32 ${method}`);
  const cluster = await PgCluster.start({
    hba: ['local all all trust', ...asked, 'host all all 127.0.0.1/32 trust'],
    settings: { max_connections: 300 },
  });
  for (const { name, secret } of SERVER_USERS) await cluster.createUser(name, 'secret', secret);
  for (const name of TRUSTED_USERS) await cluster.createUser(name, 'secret');
  await cluster.sql('CREATE DATABASE second');
  await cluster.sql("CREATE TABLE numbers AS SELECT n, 'text ' || n AS t FROM generate_series(1, 5) n");
  await cluster.sql('GRANT ALL ON numbers TO PUBLIC');
  // for auth_query, in a form that does not change from run to run
  await cluster.sql("CREATE TABLE secrets AS SELECT 'bob' AS name, 'from-query' AS secret");
  await cluster.sql('GRANT SELECT ON secrets TO PUBLIC');
  return cluster;
}

/** A port that takes connections and says nothing. */
async function startMute(): Promise<{ port: number; stop: () => void }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => sockets.delete(socket));
    socket.resume();
  });
  const port = await freePort();
  await new Promise<void>((settle) => server.listen(port, '127.0.0.1', settle));
  const stop = () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  return { port, stop };
}

function programs(bin: string): [Program, Program] {
  const { node, mainJs } = installed();
  return [
    { label: 'original', original: true, program: 'pgbouncer', command: [bin] },
    { label: 'tsbouncer', original: false, program: 'tsbouncer', command: [node, mainJs] },
  ];
}

function versionOf(bin: string): string {
  const output = spawnSync(bin, ['-V'], { encoding: 'utf8' }).stdout;
  const version = /PgBouncer (\d+(?:\.\d+)*)/.exec(output)?.[1];
  if (version === undefined) throw new Error(`${bin} -V does not name its version: ${output}`);
  return version;
}

/** The scenarios asked for: whole families, or those whose names have one of the words in them. */
function chosen(words: string[]): Scenario[] {
  const all = Object.entries(families).flatMap(([family, scenarios]) =>
    scenarios.map((scenario) => ({ ...scenario, name: `${family}: ${scenario.name}` })),
  );
  return words.length === 0 ? all : all.filter(({ name }) => words.some((word) => name.includes(word)));
}

function summary(tally: Tally, label: string, listed: number, seconds: number): string {
  const skipped = tally.skipped === 0 ? '' : `, ${tally.skipped} scenarios that need a newer original left out`;
  const entries = `${tally.meant} lines differ as meant (${listed} entries of the list)`;
  const counts = `${tally.scenarios} scenarios, ${tally.steps} steps`;
  return `${counts}: ${entries}, ${tally.unexpected.length} steps unexpectedly${skipped}; against ${label}, ${seconds} s`;
}

async function main(): Promise<number> {
  const args = process.argv.slice(2);
  const verbose = args.includes('-v');
  const words = args.filter((arg) => arg !== '-v');
  const bin = originalBin();
  if (bin === null) {
    console.error('the C original is not installed: apt-get install pgbouncer, or name it in PGBOUNCER_BIN');
    return 2;
  }
  const scenarios = chosen(words);
  if (scenarios.length === 0) {
    console.error(`no scenario has that in its name; the families are ${Object.keys(families).join(', ')}`);
    return 2;
  }
  const startMs = Date.now();
  const originalVersion = versionOf(bin);
  const cluster = await startCluster();
  const mute = await startMute();
  try {
    const world: World = { cluster, deadPort: DEAD_PORT, mutePort: mute.port, originalVersion };
    const claims = claimsFor(meantDifferences, originalVersion);
    const tally = await runAll(scenarios, programs(bin), world, claims, verbose);
    // a list that outlives its reasons would hide the next fault
    const stale = words.length > 0 ? [] : claims.filter(({ count }) => count === 0);
    for (const { entry } of stale) console.log(`\nlisted, but no such difference was found: ${entry.reason}`);
    const seconds = Math.round((Date.now() - startMs) / 1000);
    const used = claims.filter(({ count }) => count > 0).length;
    console.log(`\n${summary(tally, `PgBouncer ${originalVersion}`, used, seconds)}`);
    return tally.unexpected.length + stale.length > 0 ? 1 : 0;
  } finally {
    mute.stop();
    await cluster.stop();
  }
}

main().then(
  (code) => process.exit(code),
  (err) => {
    console.error(err);
    process.exit(1);
  },
);
