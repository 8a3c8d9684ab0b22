/*
 * The counters of /metrics beside those of pgbouncer_exporter: each is caused once or twice, and counted so often.
 */

import assert from 'node:assert/strict';
import { freePort } from '../../tools/postgres';
import { ask, login, refusal, withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { samplesBecome } from '../harness/metrics';
import { prepare, use } from '../harness/prepared-packets';
import { SSL_REQUEST } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

const certs = new CertFolder();
const site = certs.issue(certs.authority('ca'), 'site', { cn: 'localhost', san: 'DNS:localhost' });

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
  for (const role of ['asked', 'other']) await pg.sql(`CREATE ROLE ${role} LOGIN`);
});
after(() => pg.stop());

/** Scrapes until the counters have these values. */
async function counted(port: number, expected: Record<string, number>): Promise<void> {
  let found = new Map<string, number>();
  const wrong = () => Object.entries(expected).filter(([name, value]) => found.get(`tsbouncer_${name}`) !== value);
  try {
    await samplesBecome(port, 'the counters', (all) => {
      found = all;
      return wrong().length === 0;
    });
  } catch {
    const values = wrong().map(([name, value]) => `${name} is ${found.get(`tsbouncer_${name}`)}, not ${value}`);
    assert.fail(values.join('; '));
  }
}

describe('/metrics counts', () => {
  it('clients refused by each limit, and servers evicted for each', async () => {
    const port = await freePort();
    const options = {
      cluster: pg,
      databases: {
        postgres: pg.connstr('postgres'),
        few: pg.connstr('postgres', 'max_db_client_connections=1'),
        narrow: pg.connstr('postgres', 'max_db_connections=1'),
      },
      users: { other: 'max_user_client_connections=1 max_user_connections=1' },
      userlist: { other: '' },
      settings: { pool_mode: 'transaction', max_client_conn: 3, max_client_conn_per_host: 2, metrics_port: port },
    };
    await withPooler(options, async (pooler) => {
      const clients = [await login(pooler, { database: 'few' })];
      assert.match(await refusal(pooler, { database: 'few' }), /max_db_client_connections/);
      clients.push(await login(pooler, { user: 'other' }));
      assert.match(await refusal(pooler), /max_client_conn_per_host/);
      await pooler.admin('SET max_client_conn_per_host = 100');
      assert.match(await refusal(pooler, { user: 'other' }), /max_user_client_connections/);
      clients.push(await login(pooler));
      assert.match(await refusal(pooler), /max_client_conn\b/);
      for (const client of clients) await client.end();
      await pooler.admin('SET max_client_conn = 100');
      // the server of one user has to make room for that of the next
      for (const user of ['postgres', 'other']) {
        const client = await login(pooler, { user, database: 'narrow' });
        await ask(client, 'SELECT 1');
        await client.end();
      }
      await counted(port, {
        'refused_clients_total{limit="max_client_conn"}': 1,
        'refused_clients_total{limit="max_client_conn_per_host"}': 1,
        'refused_clients_total{limit="max_db_client_connections"}': 1,
        'refused_clients_total{limit="max_user_client_connections"}': 1,
        'evictions_total{reason="max_db_connections"}': 1,
        'evictions_total{reason="max_user_connections"}': 1,
      });
    });
  });

  it('auth_query, TLS handshakes, and log lines that were left out', async () => {
    const port = await freePort();
    const settings = {
      auth_type: 'plain',
      auth_user: 'postgres',
      auth_query: "SELECT $1, 'secret' WHERE $1 = 'asked'",
      client_tls_sslmode: 'allow',
      client_tls_key_file: site.key,
      client_tls_cert_file: site.cert,
      log_repeat_limit: 1,
      metrics_port: port,
    };
    const databases = {
      postgres: pg.connstr('postgres'),
      bad: pg.connstr('postgres', "auth_query='SELECT nonsense($1)'"),
    };
    await withPooler({ cluster: pg, settings, databases, userlist: { postgres: '' } }, async (pooler) => {
      await pooler.sql('SELECT 1', { user: 'asked', password: 'secret', ssl: { rejectUnauthorized: false } });
      for (let i = 0; i < 3; i++)
        assert.equal(await refusal(pooler, { user: 'nobody', password: 'x' }), 'no such user');
      assert.equal(await refusal(pooler, { user: 'nobody', database: 'bad' }), 'bouncer config error');
      const raw = await pooler.raw();
      assert.equal(await raw.request(SSL_REQUEST), 'S');
      // a record of a handshake with a message that no client sends
      raw.socket.write(Buffer.from([22, 3, 1, 0, 4, 99, 0, 0, 0]));
      await counted(port, {
        'auth_query_results_total{result="found"}': 1,
        'auth_query_results_total{result="missing"}': 3,
        'auth_query_results_total{result="failed"}': 1,
        'tls_handshakes_total{side="client",result="done"}': 1,
        'tls_handshakes_total{side="client",result="failed"}': 1,
        'tls_handshakes_total{side="server",result="failed"}': 0,
      });
      raw.socket.destroy();
      await samplesBecome(port, 'lines', (all) => (all.get('tsbouncer_log_lines_suppressed_total') ?? 0) > 0);
    });
  });

  it('prepared statements that the server had, and turns of the loop', async () => {
    const port = await freePort();
    const settings = { pool_mode: 'transaction', max_prepared_statements: 100, metrics_port: port };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const [one, two] = [await login(pooler), await login(pooler)];
      await prepare(one, 'a', 'SELECT 1');
      for (let i = 0; i < 3; i++) await use(one, 'a');
      await prepare(two, 'b', 'SELECT 1');
      await use(two, 'b');
      await counted(port, {
        'prepared_statements_total{result="miss"}': 1,
        'prepared_statements_total{result="hit"}': 5,
      });
      const found = await samplesBecome(port, 'turns', (all) => {
        const longest = all.get('tsbouncer_loop_longest_turn_seconds') ?? 0;
        return longest > 0 && longest < 60;
      });
      for (const what of ['turns', 'cpu_seconds']) {
        assert.ok((found.get(`tsbouncer_loop_${what}_total{thread="main"}`) ?? 0) > 0, what);
      }
      assert.ok((found.get('process_resident_memory_bytes') ?? 0) > 1e6);
    });
  });

  it('online reboots, over all processes', async () => {
    const port = await freePort();
    await withRebootChain({ cluster: pg, settings: { metrics_port: port } }, async (chain) => {
      await chain.start('ts');
      await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: 'take-complete' });
      await chain.reboot('ts');
      await chain.reboot('ts');
      await counted(port, {
        'online_reboots_total{result="done"}': 2,
        'online_reboots_total{result="failed"}': 1,
      });
    });
  });
});
