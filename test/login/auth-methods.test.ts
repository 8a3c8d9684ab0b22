/*
 * Logins decided by HBA rules and external authentication: HBA files, the system user behind a Unix socket,
 * certificates and PAM. The tests use a real PostgreSQL server and the machine's PAM.
 */

import assert from 'node:assert/strict';
import { readFileSync, rmSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { Client } from 'pg';
import { ask, backendsBecome, errorIn, login, refusal, valueIn, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { type Cert, CertFolder } from '../harness/certs';
import { after, before, describe } from '../harness/limits';
import { eventually, installed, it, run, user } from '../harness/machine';
import { pamMissing, removePamRules, writePamRules } from '../harness/pam';
import { type Login, RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

/** The user that runs this test, and the user that runs the servers. */
const ME = userInfo().username;
const THEM = user?.name ?? ME;

import { ruleCluster, ruleFile, rulePath, withRuleCluster, withRules } from '../harness/rule-fixtures';

withRuleCluster('ann', 'pam_user', 'pam_slow', ME, THEM);

/** Logs in over the pooler's Unix socket as the user that runs this test. @returns null, or the text of the error */
async function unixLogin(pooler: Bouncer, who: Login): Promise<string | null> {
  const client = await RawClient.connect({ path: join(pooler.socketDir, `.s.PGSQL.${pooler.port}`) });
  const answer = await client.login(who);
  await client.destroy();
  return errorIn(answer)?.M ?? null;
}

/**
 * A program that logs in over the pooler's Unix socket, sends one query, and prints all bytes that it receives.
 */
const ASKS = `
  const [path, user, database, sql] = process.argv.slice(1);
  const packet = (type, body) => {
    const length = Buffer.alloc(4);
    length.writeInt32BE(body.length + 4);
    return Buffer.concat([Buffer.from(type), length, body]);
  };
  const socket = require('net').connect(path);
  const ready = () => said.split('Z\\0\\0\\0\\x05I').length - 1;
  let said = '';
  let asked = false;
  socket.on('data', (bytes) => {
    said += bytes.toString('latin1');
    if (ready() > 1) socket.end();
    if (ready() === 0 || asked) return;
    asked = true;
    socket.write(packet('Q', Buffer.from(sql + '\\0')));
  });
  socket.on('close', () => process.stdout.write(said, 'latin1'));
  socket.write(packet('', Buffer.from('\\0\\x03\\0\\0user\\0' + user + '\\0database\\0' + database + '\\0\\0')));
`;

/** Runs that program as the user that runs the servers. @returns the bytes received */
async function saidToThem(pooler: Bouncer, who: string, database: string, sql: string): Promise<string> {
  const path = join(pooler.socketDir, `.s.PGSQL.${pooler.port}`);
  return (await run(installed().node, ['-e', ASKS, path, who, database, sql])).stdout;
}

const ANN = { user: 'ann', password: 'right' };

describe('HBA', () => {
  it('HBA applies the method of the first matching rule', async () => {
    const rules = ['host all ann 127.0.0.0/8 scram-sha-256', 'host db2 all all trust', 'host all postgres all reject'];
    await withRules(rules, async (pooler) => {
      assert.equal(await ask(await login(pooler, ANN), 'SELECT 1'), '1');
      assert.equal(await refusal(pooler, { ...ANN, password: 'wrong' }), 'SASL authentication failed');
      assert.equal(await refusal(pooler), 'login rejected');
      assert.equal(await refusal(pooler, { user: 'stats' }), 'no authentication method is found');
      assert.equal(await refusal(pooler, { user: 'nobody', database: 'db2' }), '"trust" authentication failed');
      assert.equal(
        await refusal(pooler, { user: 'postgres', params: { replication: 'yes' } }),
        'no authentication method is found',
      );
    });
  });

  it('HBA rules follow the file on RELOAD, without bad lines, and are kept when the file is missing', async () => {
    await withRules(['host all ann all trust', 'host pgbouncer all all password'], async (pooler) => {
      await login(pooler, { user: 'ann' });
      ruleFile('hba.conf', 'host all ann all reject', 'host all +all all trust', 'host pgbouncer all all password');
      await pooler.admin('RELOAD');
      await pooler.logWait(/WARNING could not parse hba config line 2/);
      assert.equal(await refusal(pooler, { user: 'ann' }), 'login rejected');
      rmSync(rulePath('hba.conf'));
      await pooler.admin('RELOAD');
      await pooler.logWait(/ERROR could not open hba config file .*: No such file or directory/);
      assert.equal(await refusal(pooler, { user: 'ann' }), 'login rejected');
    });
  });

  it('HBA refuses every client if the file has never existed', async () => {
    await withRules(
      [],
      async (pooler) => assert.equal(await refusal(pooler, ANN), 'no authentication method is found'),
      {
        settings: { auth_hba_file: rulePath('nosuch') },
      },
    );
  });

  it('auth_type=cert requires client TLS', async () => {
    await withRules(['host all all all cert'], async (pooler) => {
      assert.equal(await refusal(pooler, ANN), 'certificate authentication failed');
      await pooler.logWait(/ERROR C-\S+ postgres\/ann@127.0.0.1:\d+ TLS connection required/);
    });
  });
});

describe('cert', () => {
  let certs: CertFolder;
  let ca: Cert;
  let tls: Record<string, string | null>;
  before(() => {
    certs = new CertFolder();
    ca = certs.authority('CA');
    const server = certs.issue(ca, 'server', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
    tls = { client_tls_sslmode: 'allow', client_tls_ca_file: ca.cert };
    tls = { ...tls, client_tls_cert_file: server.cert, client_tls_key_file: server.key };
  });

  /** Logs in with that certificate. @returns null, or the text of the error */
  async function certLogin(pooler: Bouncer, who: string, cert: Cert | null): Promise<string | null> {
    const own = cert === null ? {} : { cert: readFileSync(cert.cert), key: readFileSync(cert.key) };
    const client = new Client({
      ...{ host: '127.0.0.1', port: pooler.port, user: who, database: 'postgres' },
      ssl: { ca: readFileSync(ca.cert), ...own },
    });
    client.on('error', () => {});
    try {
      await client.connect();
      await client.end();
      return null;
    } catch (err) {
      return (err as Error).message;
    }
  }

  it("auth_type=cert accepts the name in the client's certificate", async () => {
    const ann = certs.issue(ca, 'ann', { cn: 'ann' });
    const other = certs.issue(ca, 'other', { cn: 'other' });
    const settings = { ...tls, auth_type: 'cert', client_tls_sslmode: 'verify-full' };
    await withPooler({ cluster: ruleCluster(), settings, userlist: { ann: '' } }, async (pooler) => {
      assert.equal(await certLogin(pooler, 'ann', ann), null);
      assert.equal(await certLogin(pooler, 'ann', other), 'certificate authentication failed');
      await pooler.logWait(/ann@127.0.0.1:\d+ TLS certificate name mismatch/);
      assert.equal(
        await certLogin(pooler, 'other', other),
        'certificate authentication failed',
        'no known user in the certificate',
      );
    });
  });

  it('the log warns of HBA rules with cert that trust all authorities of the system', async () => {
    const warning = /WARNING hba line 2: cert without client_tls_ca_file accepts certificates of all authorities/;
    const rules = ['host all all all md5', 'hostssl all all all cert'];
    for (const [caFile, count] of [
      ['', 1],
      [ca.cert, 0],
    ] as const) {
      await withRules(rules, async (pooler) => assert.equal(pooler.log.count(warning), count), {
        settings: { ...tls, client_tls_ca_file: caFile },
      });
    }
  });

  it('a certificate is not for users whose names differ in case, or match a wildcard', async () => {
    const ann = certs.issue(ca, 'exact', { cn: 'ann', san: 'DNS:ann.example.net' });
    const all = certs.issue(ca, 'all', { cn: '*.example.net', san: 'DNS:*.example.net' });
    const settings = { ...tls, auth_type: 'cert', client_tls_sslmode: 'verify-full' };
    const names = { ann: '', Ann: '', 'ann.example.net': '', 'ANN.example.net': '' };
    const refused = 'certificate authentication failed';
    await ruleCluster().sql('CREATE ROLE "ann.example.net" LOGIN');
    await withPooler({ cluster: ruleCluster(), settings, userlist: names }, async (pooler) => {
      assert.equal(await certLogin(pooler, 'ann', ann), null);
      assert.equal(await certLogin(pooler, 'ann.example.net', ann), null);
      for (const name of ['Ann', 'ANN.example.net']) assert.equal(await certLogin(pooler, name, ann), refused);
      assert.equal(await certLogin(pooler, 'ann.example.net', all), refused);
    });
  });

  it('HBA method cert works with rules and an ident map', async () => {
    const robot = certs.issue(ca, 'robot', { cn: 'robot', san: 'DNS:robot.example.net' });
    const ident = ruleFile('ident.conf', 'm robot.example.net ann', 'm "somebody else" postgres');
    const rules = ['hostssl all ann all cert map=m', 'hostssl all postgres all cert map=m', 'host all ann all reject'];
    const settings = { ...tls, client_tls_sslmode: 'verify-ca', auth_ident_file: ident };
    const allow = { ...settings, client_tls_sslmode: 'allow' };
    await withRules(
      rules,
      async (pooler) => {
        assert.equal(await certLogin(pooler, 'ann', robot), null);
        assert.equal(await certLogin(pooler, 'postgres', robot), 'certificate authentication failed');
        await pooler.logWait(/ident map: m does not have a match/);
      },
      { settings },
    );
    await withRules(
      rules,
      async (pooler) => {
        assert.equal(await certLogin(pooler, 'ann', null), 'certificate authentication failed');
        await pooler.logWait(/TLS client certificate required/);
        assert.equal(await refusal(pooler, { user: 'ann' }), 'login rejected', 'without TLS the last rule fits');
      },
      { settings: allow },
    );
  });
});

describe('peer', () => {
  const names = { [ME]: '', [THEM]: '', ann: 'right' };

  it('auth_type=peer accepts the system user at the other end of the Unix socket', async () => {
    const rules = ['local all all peer', 'host all all all peer'];
    const more = { userlist: names };
    await withRules(
      rules,
      async (pooler) => {
        assert.equal(await unixLogin(pooler, { user: ME }), null);
        assert.equal(await unixLogin(pooler, { user: 'ann' }), 'unix socket login rejected');
        assert.equal(await unixLogin(pooler, { user: 'nobody-at-all' }), 'unix socket login rejected');
        assert.equal(await refusal(pooler, { user: ME }), 'unix socket login rejected');
        // as another system user
        const row = 'D\0\0\0\v\0\x01\0\0\0\x011';
        assert.ok((await saidToThem(pooler, THEM, 'postgres', 'SELECT 1')).includes(row));
        if (THEM !== ME) assert.match(await saidToThem(pooler, ME, 'postgres', ''), /unix socket login rejected/);
      },
      more,
    );
  });

  it('HBA method peer works with an ident map', async () => {
    const ident = ruleFile('ident.conf', `m ${ME} ann`, 'm other postgres', `every ${ME} all`);
    const rules = ['local db2 all peer map=every', 'local all all peer map=m', 'host pgbouncer all all password'];
    await withRules(
      rules,
      async (pooler) => {
        assert.equal(await unixLogin(pooler, { user: 'ann' }), null);
        assert.equal(await unixLogin(pooler, { user: 'postgres' }), 'unix socket login rejected');
        await pooler.logWait(/ident map m cannot be matched/);
        assert.equal(await unixLogin(pooler, { user: ME }), 'unix socket login rejected', 'a map stands for the name');
        const mark = pooler.log.mark();
        const told = await unixLogin(pooler, { user: 'postgres', database: 'db2' });
        assert.match(told ?? '', /database "db2" does not exist/, 'it passed, and there is no such database');
        assert.equal(pooler.log.count(/ident map/, mark), 0);
        ruleFile('ident.conf', `m ${ME} postgres`, `every ${ME} all`);
        await pooler.admin('RELOAD');
        assert.equal(await unixLogin(pooler, { user: 'postgres' }), null);
        assert.equal(await unixLogin(pooler, { user: 'ann' }), 'unix socket login rejected');
      },
      { userlist: names, settings: { auth_ident_file: ident } },
    );
  });
});

/* ---- PAM ---- */

describe('PAM', { skip: pamMissing() ?? false }, () => {
  const settings = { auth_type: 'pam', auth_file: null };

  before(() => {
    // the real PAM stack, with a module that runs a script of this test; the script waits while the file `gate` exists
    const script = ruleFile(
      'judge',
      '#!/bin/sh',
      'read -r password',
      `while [ -e ${rulePath('gate')} ] && [ "$PAM_USER" = pam_slow ]; do sleep 0.02; done`,
      `echo "$PAM_USER $PAM_RHOST" >>${rulePath('asked')}`,
      '[ "$password" = right ]',
    );
    run('chmod', ['755', script], { asSelf: true });
    writePamRules(script);
  });
  after(removePamRules);

  it('PAM checks passwords, and a right password logs in to the server too', async () => {
    await ruleCluster().setAuth('scram-sha-256');
    await withPooler({ cluster: ruleCluster(), settings }, async (pooler) => {
      const client = await login(pooler, { user: 'pam_user', password: 'right' });
      assert.equal(await ask(client, 'SELECT current_user'), 'pam_user');
      assert.equal(await refusal(pooler, { user: 'pam_user', password: 'wrong' }), 'PAM authentication failed');
      await pooler.logWait(/WARNING pam_authenticate\(\) failed: /);
      assert.equal(await refusal(pooler, { user: 'pam_user', password: '' }), 'empty password returned by client');
      // the password is still accepted
      assert.equal(await ask(await login(pooler, { user: 'pam_user', password: 'right' }), 'SELECT 1'), '1');
      assert.match((await run('cat', [`${rulePath('asked')}`])).stdout, /^pam_user 127\.0\.0\.1$/m);
    });
    await ruleCluster().setAuth('trust');
  });

  it('slow PAM logins, even more than fit the queue, do not block other clients', async () => {
    ruleFile('gate', 'closed');
    await withPooler({ cluster: ruleCluster(), settings }, async (pooler) => {
      const slow = await Promise.all(
        Array.from({ length: 25 }, async () => {
          const client = await pooler.raw();
          return { client, answer: client.login({ user: 'pam_slow', password: 'wrong' }) };
        }),
      );
      await pooler.logWait(/WARNING C-\S+ postgres\/pam_slow@\S+ PAM queue is full, waiting/);
      // the console answers meanwhile: the same system user needs no authentication there
      const own = await saidToThem(pooler, 'pgbouncer', 'pgbouncer', 'SHOW LISTS');
      assert.ok(own.includes('login_clients\0\0\0\x0225'), own);
      // one client disconnects and leaves nothing behind
      await slow[3]?.client.destroy();
      await slow[24]?.client.destroy();
      rmSync(rulePath('gate'));
      for (const [at, { answer }] of slow.entries()) {
        const messages = await answer;
        if (at !== 3 && at !== 24) assert.equal(errorIn(messages)?.M, 'PAM authentication failed');
      }
      await login(pooler, { user: 'pam_user', password: 'right' });
    });
  });

  it('a PAM login under way at a takeover is repeated in the new process', async () => {
    ruleFile('gate', 'closed');
    await withRebootChain({ cluster: ruleCluster(), settings }, async (chain) => {
      await chain.start('ts');
      const logins = await Promise.all(
        ['right', 'wrong'].map(async (password) => {
          const client = await chain.raw();
          return { client, answer: client.login({ user: 'pam_slow', password }) };
        }),
      );
      const asking = async (): Promise<boolean> => (await run('pgrep', ['-P', String(chain.now.pid)])).code === 0;
      await eventually('the script to be asked', asking);
      await chain.reboot('ts');
      await eventually('the script to be asked by the new process', asking);
      rmSync(rulePath('gate'));
      const [right, wrong] = await Promise.all(logins.map((login) => login.answer));
      assert.equal(right?.at(-1)?.type, 'Z');
      assert.equal(errorIn(wrong ?? [])?.M, 'PAM authentication failed');
      assert.equal(await ask(logins[0]?.client as RawClient, 'SELECT 5'), '5');
      for (const { client } of logins) await client.destroy();
    });
  });

  it('an online reboot keeps the passwords that PAM has accepted', async () => {
    await ruleCluster().setAuth('scram-sha-256');
    await withRebootChain(
      { cluster: ruleCluster(), settings: { ...settings, pool_mode: 'transaction' } },
      async (chain) => {
        await chain.start('ts');
        const client = await chain.raw();
        const answer = await client.login({ user: 'pam_user', password: 'right', database: 'postgres' });
        assert.equal(answer.at(-1)?.type, 'Z');
        await chain.reboot('ts');
        await ruleCluster().killBackends("usename = 'pam_user'");
        await backendsBecome(ruleCluster(), "usename = 'pam_user'", 0);
        await eventually('a new server connection', async () => {
          return valueIn(await client.query('SELECT current_user')) === 'pam_user';
        });
        await client.destroy();
      },
    );
    await ruleCluster().setAuth('trust');
  });

  it('PAM cannot be combined with auth_user of a database', async () => {
    const databases = { postgres: ruleCluster().connstr('postgres', 'auth_user=postgres') };
    await withPooler({ databases, settings }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'pam_user', password: 'right' }), 'bouncer config error');
      await pooler.logWait(/PAM can't be used together with database authentication/);
    });
  });

  it('a pooler with a login under way ends at once', async () => {
    ruleFile('gate', 'closed');
    await withPooler({ cluster: ruleCluster(), settings }, async (pooler) => {
      const client = await pooler.raw();
      client.login({ user: 'pam_slow', password: 'right' }).catch(() => {});
      await eventually(
        'the script to be asked',
        async () => (await run('pgrep', ['-f', rulePath('judge')])).code === 0,
      );
      pooler.signal('SIGQUIT');
      assert.equal((await pooler.expectEnd()).code, 0);
      await client.destroy();
    });
    rmSync(rulePath('gate'), { force: true });
  });
});

/* ---- LDAP ---- */
