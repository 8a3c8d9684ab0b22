/*
 * metrics_port: what /metrics, /livez and /readyz answer, to whom, and that it outlives an online reboot.
 */

import assert from 'node:assert/strict';
import { chmodSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { Agent, type IncomingMessage, request } from 'node:http';
import { connect, createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import { ask, login, withPooler } from '../harness/answers';
import { type Cert, CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it, tempDir, user } from '../harness/machine';
import { becomes, get, samples } from '../harness/metrics';
import { withRebootChain } from '../harness/reboot-chain';

const TX = { pool_mode: 'transaction' };

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

/** What pgbouncer_exporter has. */
const EXPORTER = [
  ...['up', 'databases', 'users', 'pools', 'free_clients', 'used_clients', 'login_clients', 'free_servers'],
  ...['used_servers', 'cached_dns_names', 'cached_dns_zones', 'in_flight_dns_queries'],
  ...['config_max_client_connections', 'config_max_user_connections'],
  ...['queries_pooled', 'queries_duration_seconds', 'received_bytes', 'sent_bytes', 'client_wait_seconds'].map(
    (name) => `stats_${name}_total`,
  ),
  ...['sql_transactions_pooled', 'server_in_transaction_seconds'].map((name) => `stats_${name}_total`),
  ...['active', 'waiting', 'active_cancel', 'waiting_cancel'].map((name) => `pools_client_${name}_connections`),
  ...['active', 'active_cancel', 'being_canceled', 'idle', 'used', 'testing', 'login'].map(
    (name) => `pools_server_${name}_connections`,
  ),
  'pools_client_maxwait_seconds',
  ...['pool_size', 'min_pool_size', 'reserve_pool', 'max_connections', 'current_connections', 'paused', 'disabled'].map(
    (name) => `databases_${name}`,
  ),
];

describe('/metrics', () => {
  it('has the numbers of pools and databases under the names of pgbouncer_exporter, in both formats', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { ...TX, metrics_port: port } }, async (pooler) => {
      const client = await login(pooler);
      for (let i = 0; i < 7; i++) await ask(client, 'SELECT 1');
      const key = 'pgbouncer_stats_queries_pooled_total{database="postgres"}';
      await eventually('the queries', async () => {
        const { body } = await get(port, '/metrics').catch(() => ({ body: '' }));
        return body.includes(`${key} 7\n`);
      });
      for (const open of [false, true]) {
        const headers: Record<string, string> = open
          ? { Accept: 'application/openmetrics-text; version=1.0.0,*/*' }
          : {};
        const { status, type, body } = await get(port, '/metrics', { headers });
        assert.equal(status, 200);
        assert.match(type, open ? /^application\/openmetrics-text; version=1\.0\.0/ : /^text\/plain; version=0\.0\.4/);
        const found = samples(body, open);
        const names = new Set([...found.keys()].map((sample) => sample.replace(/\{.*/, '')));
        for (const name of EXPORTER) assert.ok(names.has(`pgbouncer_${name}`), name);
        assert.equal(found.get('pgbouncer_pools_client_active_connections{database="postgres",user="postgres"}'), 1);
        assert.equal(found.get('pgbouncer_pools_server_idle_connections{database="postgres",user="postgres"}'), 1);
        assert.equal(found.get('pgbouncer_up'), 1);
        assert.equal(found.get('pgbouncer_auth_query_total{source="cache"}'), 0);
        const version = [...found.keys()].find((sample) => sample.startsWith('pgbouncer_version_info'));
        assert.equal(version, 'pgbouncer_version_info{version="PgBouncer 1.26.1"}');
      }
    });
  });

  it('names that clients have made up cannot break the text', async () => {
    const port = await freePort();
    const name = 'a"b\\c\nd';
    await pg.sql(`CREATE ROLE "${name.replaceAll('"', '""')}" LOGIN`);
    const options = { cluster: pg, settings: { metrics_port: port }, userlist: { [name]: 'x' } };
    await withPooler(options, async (pooler) => {
      const client = await login(pooler, { user: name });
      await ask(client, 'SELECT 1');
      const label = 'user="a\\"b\\\\c\\nd"';
      await eventually('the pool', async () => {
        const { body } = await get(port, '/metrics').catch(() => ({ body: '' }));
        return body.includes(label);
      });
      samples((await get(port, '/metrics')).body, false);
    });
  });

  it('connections that say nothing do not keep probes out', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async () => {
      await becomes(port, '/livez', 200);
      const silent = Array.from({ length: 64 }, () => connect({ port, host: '127.0.0.1' }).on('error', () => {}));
      await Promise.all(silent.map((socket) => new Promise((settle) => socket.once('connect', settle))));
      await becomes(port, '/livez', 200);
      for (const socket of silent) socket.destroy();
    });
  });

  it('a metrics thread that has ended for want of memory is replaced', async () => {
    const port = await freePort();
    const folder = tempDir('metrics');
    const mark = join(folder, 'eat');
    // runs in every thread of the pooler: at the next report, the metrics thread uses up its memory
    const lines = [
      "const { isMainThread, workerData } = require('node:worker_threads');",
      "const { existsSync, rmSync } = require('node:fs');",
      `const mark = ${JSON.stringify(mark)};`,
      'if (!isMainThread && workerData?.layout !== undefined)',
      "  workerData.port.on('message', () => {",
      '    if (!existsSync(mark)) return;',
      '    rmSync(mark);',
      '    for (const eaten = []; ; ) eaten.push(Array(1000).fill(eaten));',
      '  });',
    ];
    writeFileSync(join(folder, 'hook.js'), lines.join('\n'));
    giveTo(user, folder);
    const env = { NODE_OPTIONS: `--max-old-space-size=100 --require ${join(folder, 'hook.js')}` };
    await withPooler({ cluster: pg, settings: { metrics_port: port }, env }, async (pooler) => {
      await becomes(port, '/livez', 200);
      const client = await login(pooler);
      await ask(client, 'SELECT 1');
      writeFileSync(mark, '');
      giveTo(user, folder);
      await eventually('the end of the thread', () =>
        get(port, '/livez').then(
          () => false,
          () => true,
        ),
      );
      await pooler.logWait(/WARNING the metrics thread no longer answers, starting another/);
      assert.equal((await becomes(port, '/livez', 200)).body, 'alive\n');
      await becomes(port, '/metrics', 200);
      await ask(client, 'SELECT 1');
    });
  });

  it('requests that are sent without waiting for the answers are not answered all at once', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async () => {
      await becomes(port, '/metrics', 200);
      const hasty = connect({ port, host: '127.0.0.1' }).on('error', () => {});
      let received = '';
      hasty.on('data', (part: Buffer) => {
        received += part.toString('latin1');
      });
      const closed = new Promise((settle) => hasty.once('close', settle));
      hasty.write('GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(1000));
      await closed;
      assert.ok(received.split('HTTP/1.1 200 OK').length <= 2, 'more than one answer');
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      for (let i = 0; i < 20; i++) {
        const { statusCode } = await new Promise<IncomingMessage>((settle, reject) => {
          const asked = request({ port, host: '127.0.0.1', path: '/metrics', agent }, (response) => {
            response.resume().once('end', () => settle(response));
          });
          asked.once('error', reject).end();
        });
        assert.equal(statusCode, 200);
      }
      agent.destroy();
    });
  });

  it('a token is needed if the config names one, and probes need none', async () => {
    const port = await freePort();
    const file = join(tempDir('token'), 'token');
    writeFileSync(file, 'secret\nmore\n', { mode: 0o644 });
    await withPooler({ cluster: pg, settings: { metrics_port: port, metrics_token_file: file } }, async () => {
      await becomes(port, '/readyz', 200);
      await becomes(port, '/livez', 200);
      for (const authorization of ['', 'Bearer', 'Bearer secre', 'Bearer secret2', 'Basic secret']) {
        const { status, body } = await get(port, '/metrics', { headers: { Authorization: authorization } });
        assert.equal(status, 401, authorization);
        assert.ok(!body.includes('pgbouncer'));
      }
      const { status } = await get(port, '/metrics', { headers: { Authorization: 'Bearer secret' } });
      assert.equal(status, 200);
    });
  });

  it('without a token, a local address answers only to names of this machine', async () => {
    const port = await freePort();
    const token = join(tempDir('metrics'), 'token');
    writeFileSync(token, 'secret', { mode: 0o644 });
    chmodSync(dirname(token), 0o755);
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
      await becomes(port, '/metrics', 200);
      const status = async (path: string, Host: string) => (await get(port, path, { headers: { Host } })).status;
      for (const name of ['evil.example', `evil.example:${port}`, '127.0.0.1.evil.example', 'localhost.evil.example']) {
        for (const path of ['/metrics', '/', '/status.json', '/page.mjs']) assert.equal(await status(path, name), 403);
        for (const path of ['/livez', '/readyz']) assert.equal(await status(path, name), 200);
      }
      for (const name of ['localhost', `LOCALHOST:${port}`, '127.0.0.1', `[::1]:${port}`, '10.0.0.1:1'])
        for (const path of ['/metrics', '/status.json']) assert.equal(await status(path, name), 200, name);
      pooler.rewrite({ settings: { metrics_port: port, metrics_token_file: token } });
      await pooler.admin('RELOAD');
      const headers = { Host: 'proxy.example', Authorization: 'Bearer secret' };
      await eventually(
        'the token',
        async () => (await get(port, '/metrics', { headers }).catch(() => null))?.status === 200,
      );
    });
  });

  it('RELOAD reads the token again, and keeps it if that fails', async () => {
    const port = await freePort();
    const file = join(tempDir('token'), 'token');
    writeFileSync(file, 'first', { mode: 0o644 });
    await withPooler({ cluster: pg, settings: { metrics_port: port, metrics_token_file: file } }, async (pooler) => {
      const bearer = (token: string) => ({ headers: { Authorization: `Bearer ${token}` } });
      await becomes(port, '/readyz', 200);
      writeFileSync(file, 'second');
      await pooler.admin('RELOAD');
      await eventually('the new token', async () => (await get(port, '/metrics', bearer('second'))).status === 200);
      assert.equal((await get(port, '/metrics', bearer('first'))).status, 401);
      unlinkSync(file);
      await pooler.admin('RELOAD');
      await pooler.logWait(/WARNING metrics: could not open metrics_token_file/);
      assert.equal((await get(port, '/metrics', bearer('second'))).status, 200);
    });
  });

  it('HTTPS with a certificate that RELOAD replaces', async () => {
    const certs = new CertFolder();
    const authorities = ['one', 'two'].map((name) => certs.authority(name));
    const subject = { cn: 'localhost', san: 'IP:127.0.0.1' };
    const [first, second] = authorities.map((ca) => ({ ca: readFileSync(ca.cert, 'utf8') }));
    const site = certs.issue(authorities[0] as Cert, 'site', subject);
    const port = await freePort();
    const settings = { metrics_port: port, metrics_tls_cert_file: site.cert, metrics_tls_key_file: site.key };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const works = (ask: object) =>
        get(port, '/livez', ask).then(
          ({ status }) => status === 200,
          () => false,
        );
      await eventually('the page by HTTPS', () => works(first as object));
      assert.equal(await works({}), false);
      assert.equal(await works(second as object), false);
      certs.issue(authorities[1] as Cert, 'site', subject);
      await pooler.admin('RELOAD');
      await eventually('the new certificate', () => works(second as object));
      writeFileSync(site.cert, 'no certificate');
      await pooler.admin('RELOAD');
      await pooler.logWait(/WARNING metrics: /);
      assert.equal(await works(second as object), true);
    });
  });

  it('files for HTTPS that cannot be used at the start are used when RELOAD finds better ones', async () => {
    const certs = new CertFolder();
    const authority = certs.authority('one');
    const site = certs.issue(authority, 'site', { cn: 'localhost', san: 'IP:127.0.0.1' });
    const good = readFileSync(site.cert);
    writeFileSync(site.cert, 'no certificate');
    const port = await freePort();
    const settings = { metrics_port: port, metrics_tls_cert_file: site.cert, metrics_tls_key_file: site.key };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      await pooler.logWait(/WARNING metrics: /);
      await assert.rejects(get(port, '/livez'));
      writeFileSync(site.cert, good);
      await pooler.admin('RELOAD');
      const ca = readFileSync(authority.cert, 'utf8');
      await eventually('an answer by HTTPS', () =>
        get(port, '/livez', { ca }).then(
          ({ status }) => status === 200,
          () => false,
        ),
      );
      assert.match((await get(port, '/metrics', { ca })).body, /^pgbouncer_up 1$/m);
    });
  });

  it('a file at metrics_addr that is no socket stays', async () => {
    const path = join(tempDir('metrics'), 'file');
    chmodSync(dirname(path), 0o777);
    writeFileSync(path, 'precious');
    chmodSync(path, 0o666);
    await withPooler({ cluster: pg, settings: { metrics_addr: path } }, async (pooler) => {
      await pooler.logWait(/metrics: (cannot listen on|listening on) unix:/);
      assert.equal(readFileSync(path, 'utf8'), 'precious');
    });
  });

  it('a Unix socket instead of a port, also if a process that was killed has left one behind', async () => {
    const path = join(tempDir('metrics'), 'socket');
    chmodSync(dirname(path), 0o777);
    for (let i = 0; i < 2; i++) {
      await withPooler({ cluster: pg, settings: { metrics_addr: path } }, async (pooler) => {
        await eventually('an answer', () =>
          get(path, '/livez').then(
            ({ status }) => status === 200,
            () => false,
          ),
        );
        if (i === 0) pooler.expectEnd();
        if (i === 0) pooler.signal('SIGKILL');
      });
    }
  });

  it('without the token that the config names, nothing is answered', async () => {
    const port = await freePort();
    const settings = { metrics_port: port, metrics_token_file: '/nowhere/token' };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      await pooler.logWait(/WARNING metrics: could not open metrics_token_file \/nowhere\/token/);
      await assert.rejects(get(port, '/livez'));
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });

  it('other requests are refused', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
      await becomes(port, '/livez', 200);
      assert.equal((await get(port, '/metrics', { method: 'POST' })).status, 405);
      assert.equal((await get(port, '/../etc/passwd')).status, 404);
      assert.equal((await get(port, '/metrics?x=1')).status, 200);
      assert.equal((await get(port, '/metrics', { method: 'HEAD' })).body, '');
      const garbage = connect({ port, host: '127.0.0.1' });
      const closed = new Promise((settle) => garbage.once('close', settle));
      garbage.on('error', () => {});
      garbage.write(Buffer.from('\x00\xff nothing\r\n\r\n', 'latin1'));
      await closed;
      await assert.rejects(get(port, '/metrics', { headers: { X: 'x'.repeat(20_000) } }));
      assert.equal((await get(port, '/livez')).status, 200);
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });
});

describe('metrics_port', () => {
  it('is off by default, and SET turns it on, moves it and turns it off', async () => {
    const [first, second] = [await freePort(), await freePort()];
    await withPooler({ cluster: pg }, async (pooler) => {
      await assert.rejects(get(first, '/livez'));
      await pooler.admin(`SET metrics_port = ${first}`);
      await becomes(first, '/livez', 200);
      await pooler.admin(`SET metrics_port = ${second}`);
      await becomes(second, '/livez', 200);
      await eventually('the first port to close', () =>
        get(first, '/livez').then(
          () => false,
          () => true,
        ),
      );
      await pooler.admin('SET metrics_port = 0');
      await eventually('the port to close', () =>
        get(second, '/livez').then(
          () => false,
          () => true,
        ),
      );
    });
  });

  it('a port in use is a warning, and taken when it is free', async () => {
    const port = await freePort();
    const other = createServer().listen(port, '127.0.0.1');
    await new Promise((settle) => other.once('listening', settle));
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
      await pooler.logWait(/WARNING metrics: cannot listen on 127\.0\.0\.1:\d+: .*EADDRINUSE/);
      await new Promise((settle) => other.close(settle));
      await becomes(port, '/livez', 200);
    });
  });

  it('/readyz is 503 while the pooler is paused or shuts down', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { ...TX, metrics_port: port } }, async (pooler) => {
      await becomes(port, '/readyz', 200);
      const client = await login(pooler);
      await ask(client, 'BEGIN');
      const paused = pooler.admin('PAUSE');
      assert.equal((await becomes(port, '/readyz', 503)).body, 'paused\n');
      assert.equal((await get(port, '/livez')).status, 200);
      await ask(client, 'COMMIT');
      await paused;
      await pooler.admin('RESUME');
      await becomes(port, '/readyz', 200);
      process.kill(pooler.pid, 'SIGTERM');
      assert.equal((await becomes(port, '/readyz', 503)).body, 'shutting down\n');
      await client.end();
      await pooler.expectEnd();
    });
  });

  it('the new process of an online reboot takes the port, and goes on counting', async () => {
    const port = await freePort();
    await withRebootChain({ cluster: pg, settings: { metrics_port: port } }, async (chain) => {
      await chain.start('ts');
      await becomes(port, '/readyz', 200);
      for (let i = 0; i < 3; i++) await chain.sql('SELECT 1');
      // removes the pool
      const admin = { user: 'admin', password: 'admin', database: 'pgbouncer' };
      for (const what of ['KILL', 'RESUME']) await chain.sql(`${what} postgres`, admin);
      for (let i = 0; i < 2; i++) await chain.sql('SELECT 1');
      await chain.reboot('ts');
      await chain.now.log.wait(/metrics: listening on 127\.0\.0\.1:/);
      assert.doesNotMatch(chain.now.log.text, /cannot listen/);
      await becomes(port, '/readyz', 200);
      const { body } = await get(port, '/metrics');
      const queries = samples(body, false).get(`pgbouncer_stats_queries_pooled_total{database="postgres"}`) ?? 0;
      assert.ok(queries >= 5, `${queries} queries`);
    });
  });
});
