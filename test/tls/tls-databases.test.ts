/*
 * The server_tls_* keys of a connect string: each database has its own mode, CA and certificate towards its servers.
 */

import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { Bouncer } from '../harness/bouncer';
import { type Cert, CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { installed, it, run, user } from '../harness/machine';
import { withRebootChain } from '../harness/reboot-chain';

const certs = new CertFolder();
const ca = certs.authority('ca');
const otherCa = certs.authority('otherca');
const site = certs.issue(ca, 'site', { cn: 'pg.example', san: 'DNS:localhost,IP:127.0.0.1' });
const app = certs.issue(ca, 'app', { cn: 'app' });
const spare = certs.issue(otherCa, 'spare', { cn: 'app' });

const REFUSED = { server_login_retry: 1, query_wait_timeout: 2 };
const IN_USE = 'SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()';

let pg: PgCluster;
before(async () => {
  const ssl = { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key, ssl_ca_file: ca.cert };
  pg = await PgCluster.start({ settings: ssl });
  await pg.sql('CREATE ROLE app LOGIN');
  await pg.setHba(['local all all trust', 'hostssl all app all cert', 'host all all all trust']);
});
after(() => pg.stop());

const at = (extra: string) => pg.connstr('postgres', extra);
const withCert = (cert: Cert) => `user=app server_tls_cert_file=${cert.cert} server_tls_key_file=${cert.key}`;

/** How the connection to that database is encrypted, or the error's text if it fails. */
async function tls(pooler: Pick<Bouncer, 'sql'>, database: string): Promise<string> {
  try {
    const { ssl, client_dn } = (await pooler.sql(IN_USE, { database })).rows[0];
    return ssl ? `tls ${client_dn ?? ''}`.trim() : 'plain';
  } catch (err) {
    return (err as Error).message;
  }
}

describe('server_tls_* of a database', () => {
  it('the server_tls_* keys of a database take precedence over the settings, which apply where a key is missing', async () => {
    const databases = {
      general: at(''),
      off: at('server_tls_sslmode=disable'),
      ca: at('server_tls_sslmode=verify-full'),
      wrong: at(`server_tls_sslmode=verify-ca server_tls_ca_file=${otherCa.cert}`),
      app: at(withCert(app)),
      spare: at(withCert(spare)),
      gone: at(`server_tls_sslmode=verify-ca server_tls_ca_file=${join(certs.dir, 'gone')}`),
    };
    const settings = { server_tls_sslmode: 'require', server_tls_ca_file: ca.cert, ...REFUSED };
    const pooler = await Bouncer.start({ databases, settings });
    try {
      assert.equal(await tls(pooler, 'general'), 'tls');
      assert.equal(await tls(pooler, 'off'), 'plain');
      assert.equal(await tls(pooler, 'ca'), 'tls');
      assert.notEqual(await tls(pooler, 'wrong'), 'tls');
      await pooler.logWait(/wrong\/postgres@.*closing because: .*(crashed|TLS|certificate)/);
      assert.equal(await tls(pooler, 'app'), 'tls /O=tests/CN=app');
      assert.match(await tls(pooler, 'spare'), /server conn crashed|certificate|unknown ca|query_wait_timeout/);
      await tls(pooler, 'gone');
      await pooler.logWait(/TLS connect error: failed to load CA: .*No such file/);

      // another certificate, another mode
      pooler.rewrite({ databases: { ...databases, off: at('server_tls_sslmode=prefer'), spare: at(withCert(app)) } });
      await pooler.admin('RELOAD');
      assert.equal(await tls(pooler, 'off'), 'tls');
      assert.equal(await tls(pooler, 'spare'), 'tls /O=tests/CN=app');
      assert.equal(await tls(pooler, 'general'), 'tls');
    } finally {
      await pooler.stop();
    }
  });

  it('TLS can be used for one database only, and a renewed CA counts for the next connection', async () => {
    const own = join(certs.dir, 'own-ca');
    copyFileSync(otherCa.cert, own);
    giveTo(user, own);
    const databases = { plain: at(''), safe: at(`server_tls_sslmode=verify-ca server_tls_ca_file=${own}`) };
    const settings = { server_tls_sslmode: 'disable', ...REFUSED };
    const pooler = await Bouncer.start({ databases, settings });
    try {
      assert.equal(await tls(pooler, 'plain'), 'plain');
      assert.notEqual(await tls(pooler, 'safe'), 'tls');
      copyFileSync(ca.cert, own);
      await pooler.admin('RECONNECT');
      await pooler.logWait(/safe\/postgres@.*closing because/);
      let got = '';
      while (got !== 'tls') got = await tls(pooler, 'safe');
      assert.equal(await tls(pooler, 'plain'), 'plain');
    } finally {
      await pooler.stop();
    }
  });

  it('an online reboot keeps the connections, unless the settings of the database have changed', async () => {
    const databases = { kept: at('server_tls_sslmode=require'), changed: at('server_tls_sslmode=require') };
    const settings = { server_tls_sslmode: 'disable', pool_mode: 'transaction' };
    await withRebootChain({ cluster: pg, databases, settings }, async (chain) => {
      await chain.start('ts');
      const kept = await chain.connect({ database: 'kept' });
      const changed = await chain.connect({ database: 'changed' });
      const backend = async (client: typeof kept) => (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;
      const before = [await backend(kept), await backend(changed)];
      chain.write({ databases: { ...databases, changed: at('server_tls_sslmode=disable') } });
      await chain.reboot('ts');
      assert.equal(await backend(kept), before[0]);
      assert.notEqual(await backend(changed), before[1]);
      assert.equal((await kept.query(IN_USE)).rows[0].ssl, true);
      assert.equal((await changed.query(IN_USE)).rows[0].ssl, false);
      await kept.end();
      await changed.end();
    });
  });

  it('--check names the line of a database whose files cannot be used', async () => {
    const databases = { bad: at(`server_tls_sslmode=verify-ca server_tls_ca_file=${join(certs.dir, 'gone')}`) };
    const pooler = await Bouncer.start({ databases });
    const { node, mainJs } = installed();
    const checked = await run(node, [mainJs, '--check', pooler.iniPath], { cwd: pooler.dir });
    await pooler.stop();
    assert.match(checked.stdout, /pooler\.ini:2: TLS connect error: failed to load CA: .*No such file/);
  });
});
