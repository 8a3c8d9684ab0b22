/*
 * What logins cost: clients that reconnect for every transaction, queries while many clients log in, and how soon many
 * servers are connected.
 */
import type { Bench } from '../contenders';
import { generatorHasTls, type LoadRun, measureLoad, runLoad, startLoad } from '../generator';
import { withPoolers } from '../poolers';
import { addRow, inTurns, note, ratioAim, say, wanted } from '../rows';
import { LOGIN_STORM, options, RECONNECTING_CLIENTS, SERVERS, WARM_UP_SECONDS } from '../settings';

const POOL = 40;
const BUSY_CLIENTS = 40;
/** clients that log in at the same time in a storm */
const STORM_CLIENTS = 20;
/** V8 compiles the code of logins during the first ones, which are rows of their own. */
const FIRST_STORMS = 4;
/** s; longer than any storm, which ends the run */
const STORM_SECONDS_MAX = 60;
const USEC_PER_MS = 1000;
const SCRAM = { user: 'scram_user', password: 'scram-password' };

interface LoginKind {
  name: string;
  settings: Record<string, string | number>;
  run: Partial<LoadRun>;
}

function loginKinds({ identity: { cert, key } }: Bench): LoginKind[] {
  const tls = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  const kinds: LoginKind[] = [
    { name: 'plain', settings: {}, run: {} },
    { name: 'SCRAM', settings: { auth_type: 'scram-sha-256' }, run: SCRAM },
    { name: 'TLS', settings: tls, run: { tls: true } },
    { name: 'TLS and SCRAM', settings: { ...tls, auth_type: 'scram-sha-256' }, run: { ...SCRAM, tls: true } },
  ];
  return options.quick ? [kinds[0] as LoginKind, kinds.at(-1) as LoginKind] : kinds;
}

/** The auth_file has the user's verifier, as copied from PostgreSQL; servers are logged in to as postgres. */
async function scramUser({ cluster }: Bench) {
  if ((await cluster.storedSecret(SCRAM.user)) === null) await cluster.createUser(SCRAM.user, SCRAM.password);
  const secret = (await cluster.storedSecret(SCRAM.user)) as string;
  const databases = { postgres: cluster.connstr('postgres', 'user=postgres') };
  return { databases, userlist: { [SCRAM.user]: secret } };
}

/** Every transaction has a connection and a login of its own. */
export async function benchReconnecting(bench: Bench): Promise<void> {
  for (const kind of loginKinds(bench)) {
    const titleOf = (clients: number) => `reconnecting, ${kind.name}, ${clients} clients`;
    const counts = RECONNECTING_CLIENTS.filter((clients) => wanted(titleOf(clients)));
    if (counts.length === 0 || (kind.name !== 'plain' && !generatorHasTls())) continue;
    const users = kind.run.user === SCRAM.user ? await scramUser(bench) : {};
    const settings = { default_pool_size: POOL, ...kind.settings };
    await withPoolers(bench.contenders, { cluster: bench.cluster, settings, ...users }, async (poolers) => {
      // opens all servers of the pools, and lets the poolers compile their code, before the measurements
      for (const { pooler } of poolers)
        await runLoad({
          port: pooler.port,
          clients: POOL,
          seconds: 2 * WARM_UP_SECONDS,
          mode: 'reconnect',
          ...kind.run,
        });
      for (const clients of counts) {
        const title = titleOf(clients);
        say(title);
        const more = { better: 'more', aims: ratioAim(kind.name === 'plain' ? 1.05 : 1) } as const;
        const speed = addRow(`${title}: transactions/s`, '/s', 0, more);
        const p50 = addRow(`${title}: p50`, 'ms', 2);
        const p99 = addRow(`${title}: p99`, 'ms', 2);
        const cpu = addRow(`${title}: CPU per transaction`, 'us', 1, {
          aims: ratioAim(kind.name === 'plain' ? 0.95 : 1),
        });
        await inTurns(poolers, async (who) => {
          const run = { mode: 'reconnect', clients, seconds: options.seconds, ...kind.run } as const;
          const result = await measureLoad(who.pooler.pid, { ...run, port: who.pooler.port });
          note(speed, who, result.perSecond);
          note(p50, who, result.latencyUs.p50 / USEC_PER_MS);
          note(p99, who, result.latencyUs.p99 / USEC_PER_MS);
          note(cpu, who, result.cpu.total / result.transactions);
        });
      }
    });
  }
}

/** @returns ms: the p99 of small queries while that many clients log in, or without logins for a whole period */
async function p99Beside(port: number, storm: Partial<LoadRun> | null): Promise<number> {
  const seconds = storm === null ? options.seconds : STORM_SECONDS_MAX;
  const load = startLoad({ port, clients: BUSY_CLIENTS, seconds });
  if (storm !== null) {
    await load.begun;
    const logins = { mode: 'reconnect', count: LOGIN_STORM, noQuery: true } as const;
    await runLoad({ port, clients: STORM_CLIENTS, seconds, ...logins, ...storm });
    load.stop();
  }
  return (await load.result).latencyUs.p99 / USEC_PER_MS;
}

/** Running queries while a thousand clients log in, plain and with TLS, against the same queries without. */
export async function benchLoginStorm(bench: Bench): Promise<void> {
  const { cert, key } = bench.identity;
  const settings = {
    default_pool_size: BUSY_CLIENTS,
    client_tls_sslmode: 'allow',
    client_tls_cert_file: cert,
    client_tls_key_file: key,
  };
  const title = `p99 of ${BUSY_CLIENTS} clients`;
  const storm = `${title} during ${LOGIN_STORM} logins`;
  if (!wanted(storm)) return;
  say(storm);
  const kinds = generatorHasTls() ? [false, true] : [false];
  const quiet = addRow(`${title} without logins`, 'ms', 2);
  const rows = kinds.map((tls) => ({
    tls,
    first: addRow(`${title} during the first ${LOGIN_STORM} logins${tls ? ' with TLS' : ''}`, 'ms', 2),
    during: addRow(`${storm}${tls ? ' with TLS' : ''}`, 'ms', 2),
    ratio: addRow(`${storm}${tls ? ' with TLS' : ''}: own ratio`, '', 2),
  }));
  await withPoolers(bench.contenders, { cluster: bench.cluster, settings }, async (poolers) => {
    for (const who of poolers) {
      for (const { tls, first } of rows) {
        note(first, who, await p99Beside(who.pooler.port, { tls }));
        for (let i = 1; i < FIRST_STORMS; i++) await p99Beside(who.pooler.port, { tls });
      }
    }
    await inTurns(poolers, async (who) => {
      const { port } = who.pooler;
      const alone = await p99Beside(port, null);
      note(quiet, who, alone);
      for (const { tls, during, ratio } of rows) {
        const p99 = await p99Beside(port, { tls });
        note(during, who, p99);
        note(ratio, who, p99 / alone);
      }
    });
  });
}

/** From the first request of as many clients as the pool has servers, until each has its own server. */
export async function benchServersUp({ cluster, contenders }: Bench): Promise<void> {
  const name = `until ${SERVERS} servers are up`;
  if (!wanted(name)) return;
  say(name);
  const row = addRow(name, 'ms', 0);
  await inTurns(contenders, async (contender) => {
    const settings = { default_pool_size: SERVERS };
    await withPoolers([contender], { cluster, settings }, async (poolers) => {
      for (const { pooler } of poolers) {
        // the transactions stay open, so that each client keeps its server
        const run = { mode: 'once', query: 'BEGIN' } as const;
        const result = await runLoad({ port: pooler.port, clients: SERVERS, seconds: options.seconds, ...run });
        note(row, contender, result.onceSeconds * 1000);
      }
    });
  });
}
