/*
 * The authentication method ldap, from HBA rules and auth_ldap_options, against a real slapd.
 */

import assert from 'node:assert/strict';
import { ask, errorIn, login, refusal, withPooler } from '../harness/answers';
import type { Bouncer, BouncerOptions } from '../harness/bouncer';
import { BASE_DN, Directory, FalseDirectory, LONG_DN, noSlapd } from '../harness/directory';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import type { Login } from '../harness/raw-client';
import { ruleCluster, ruleFile, withRuleCluster, withRules } from '../harness/rule-fixtures';

withRuleCluster('ann', 'lucy', 'жук');

describe('LDAP', { skip: noSlapd ?? false }, () => {
  let ldap: Directory;
  before(async () => {
    ldap = await Directory.start();
  });
  after(() => ldap.stop());

  const LUCY = { user: 'lucy', password: 'right' };
  const direct = () => `ldapserver=127.0.0.1 ldapport=${ldap.port} ldapprefix="uid=" ldapsuffix=",${BASE_DN}"`;
  const search = () => `ldapserver=127.0.0.1 ldapport=${ldap.port} ldapbasedn="${BASE_DN}"`;
  const rulesFor = (options: string) => [`host all all all ldap ${options}`];
  const trusting = (): BouncerOptions => ({ env: ldap.trust });

  /** Logs in as lucy with these options. @returns null, or the text of the error */
  async function outcome(pooler: Bouncer, options: string, who: Login = LUCY): Promise<string | null> {
    ruleFile('hba.conf', 'host pgbouncer all all password', ...rulesFor(options));
    await pooler.admin('RELOAD');
    const client = await pooler.raw();
    const answer = await client.login(who);
    await client.destroy();
    return errorIn(answer)?.M ?? null;
  }

  it('LDAP binds as the user, or searches and then binds, with options given as keys or as a URL', async () => {
    const url = `ldap://127.0.0.1:${ldap.port}/${BASE_DN}`;
    const ways = [
      direct(),
      search(),
      `${search()} ldapsearchattribute=mail`,
      `${search()} ldapsearchfilter="uid=$username"`,
      `${search()} ldapsearchfilter="(|(uid=$username)(mail=$username))"`,
      `${search()} ldapbinddn="uid=lucy,${BASE_DN}" ldapbindpasswd=right`,
      `ldapurl="${url}?uid?sub"`,
      `ldapurl="${url}??sub?(uid=$username)"`,
      `ldapurl="${url}?uid?one"`,
    ];
    await withRules(
      ['host pgbouncer all all password'],
      async (pooler) => {
        for (const way of ways) {
          const user = way.includes('=mail') ? 'lucy@example.net' : 'lucy';
          const told = await outcome(pooler, way, { user, password: 'right' });
          // the directory's user does not exist on that server
          assert.equal(
            told?.replace(/^.*role.*does not exist.*$/, 'no role') ?? null,
            user === 'lucy' ? null : 'no role',
            way,
          );
          assert.equal(await outcome(pooler, way, { user, password: 'wrong' }), 'LDAP authentication failed', way);
        }
        assert.equal(
          await outcome(pooler, direct(), { user: 'жук', password: 'пароль' }),
          'LDAP authentication failed',
        );
      },
      trusting(),
    );
  });

  it('a right LDAP password logs in to the server too', async () => {
    await ruleCluster().setAuth('scram-sha-256');
    await withRules(rulesFor(search()), async (pooler) => {
      assert.equal(await ask(await login(pooler, LUCY), 'SELECT current_user'), 'lucy');
    });
    await ruleCluster().setAuth('trust');
  });

  it('LDAP failures are explained in the log only', async () => {
    await withRules(['host pgbouncer all all password'], async (pooler) => {
      const cases: [string, Login, RegExp][] = [
        [
          direct(),
          { ...LUCY, password: 'x' },
          /LDAP login failed for user uid=lucy,dc=example,dc=net on server 127\.0\.0\.1: Invalid credentials/,
        ],
        [
          search(),
          { user: 'nosuch', password: 'x' },
          /LDAP user "nosuch" does not exist\n.*LDAP search for filter "\(uid=nosuch\)" on server "127\.0\.0\.1" returned no entries\./,
        ],
        [search(), { user: 'twin', password: 'right' }, /LDAP user "twin" is not unique\n.*returned 2 entries\./],
        [search(), { user: '*', password: 'right' }, /invalid character in user name for LDAP authentication/],
        [search(), { user: 'lucy)(uid=*', password: 'right' }, /invalid character in user name/],
        [
          `${search()} ldapbinddn="uid=lucy,${BASE_DN}" ldapbindpasswd=x`,
          LUCY,
          /could not perform initial LDAP bind for ldapbinddn "uid=lucy,dc=example,dc=net" on server "127\.0\.0\.1": Invalid credentials/,
        ],
        [
          search().replace('net', 'org'),
          LUCY,
          /could not search LDAP for filter "\(uid=lucy\)" on server "127\.0\.0\.1": No such object/,
        ],
        [`${search()} ldapsearchfilter="(uid="`, LUCY, /could not search LDAP for filter "\(uid="/],
        [direct().replace(`${ldap.port}`, '1'), LUCY, /LDAP login failed for user .*: Can't contact LDAP server/],
        ['ldapserver=127.0.0.1', LUCY, /requires argument "ldapbasedn", "ldapprefix", or "ldapsuffix" to be set/],
        ['nonsense=1', LUCY, /invalid LDAP option: "nonsense"/],
      ];
      for (const [options, who, line] of cases) {
        const mark = pooler.log.mark();
        assert.equal(await outcome(pooler, options, who), 'LDAP authentication failed', options);
        await pooler.logWait(line, mark);
      }
      assert.equal(await outcome(pooler, search(), { ...LUCY, password: '' }), 'empty password returned by client');
    });
  });

  it('LDAP uses the next server if one is unreachable', async () => {
    const dead = `ldapserver="127.0.0.2 127.0.0.1" ldapport=${ldap.port} ldapbasedn="${BASE_DN}"`;
    await withRules(rulesFor(dead), async (pooler) => void (await login(pooler, LUCY)));
  });

  it('LDAP over TLS verifies the certificate of the directory server', async () => {
    const ldaps = `ldapscheme=ldaps ${search().replace(`${ldap.port}`, `${ldap.tlsPort}`)}`;
    const startTls = `${search()} ldaptls=1`;
    await withRules(
      ['host pgbouncer all all password'],
      async (pooler) => {
        for (const way of [
          ldaps,
          startTls,
          `${direct()} ldaptls=1`,
          `ldapurl="ldaps://localhost:${ldap.tlsPort}/${BASE_DN}?uid?sub"`,
        ]) {
          assert.equal(await outcome(pooler, way), null, way);
        }
        for (const way of [
          `${ldaps} ldaptls=1`,
          ldaps.replace(`${ldap.tlsPort}`, `${ldap.port}`),
          startTls.replace(`${ldap.port}`, `${ldap.tlsPort}`),
        ]) {
          assert.equal(await outcome(pooler, way), 'LDAP authentication failed', way);
        }
      },
      trusting(),
    );
    // no trusted CA has signed its certificate
    await withRules(['host pgbouncer all all password'], async (pooler) => {
      assert.equal(await outcome(pooler, ldaps), 'LDAP authentication failed');
      assert.equal(await outcome(pooler, startTls), 'LDAP authentication failed');
      await pooler.logWait(/could not start LDAP TLS session: Connect error, server: 127\.0\.0\.1, port: \d+/);
    });
    await withRules(rulesFor(startTls), async (pooler) => void (await login(pooler, LUCY)), {
      env: { LDAPTLS_REQCERT: 'never' },
    });
  });

  it('auth_type=ldap uses LDAP for every user, whatever auth_file contains', async () => {
    const settings = { auth_type: 'ldap', auth_ldap_options: direct(), admin_users: 'lucy' };
    await withPooler({ cluster: ruleCluster(), settings, userlist: { lucy: 'other' } }, async (pooler) => {
      await login(pooler, LUCY);
      assert.equal(await refusal(pooler, { user: 'lucy', password: 'other' }), 'LDAP authentication failed');
      assert.equal(await refusal(pooler, { ...LUCY, database: 'pgbouncer', user: 'ann' }), 'not allowed');
      assert.deepEqual((await pooler.admin('SHOW VERSION', LUCY)).length, 1);
    });
    await withPooler({ cluster: ruleCluster(), settings: { auth_type: 'ldap' } }, async (pooler) => {
      assert.equal(await refusal(pooler, LUCY), 'auth_ldap_options is null');
    });
    const databases = { postgres: ruleCluster().connstr('postgres', 'auth_user=postgres') };
    await withPooler({ databases, settings }, async (pooler) => {
      assert.equal(await refusal(pooler, LUCY), 'bouncer config error');
      await pooler.logWait(/LDAP can't be used together with database authentication/);
    });
  });

  it('rules with LDAP work beside an auth_user of the settings, also after it has been used', async () => {
    const rules = [`host all lucy all ldap ${direct()}`, 'host all all all scram-sha-256'];
    const more = { settings: { auth_user: 'postgres' }, userlist: {} };
    await withRules(
      rules,
      async (pooler) => {
        await login(pooler, LUCY);
        await login(pooler, { user: 'ann', password: 'right' });
        assert.match(pooler.log.text, /\/postgres@\S+ new connection to server/, 'auth_query did not run');
        await login(pooler, LUCY);
      },
      more,
    );
  });

  it('LDAP accepts UTF-8 names and passwords', async () => {
    const bytes = (text: string) => Buffer.from(text, 'utf8').toString('latin1');
    await withRules(rulesFor(search()), async (pooler) => {
      const client = await login(pooler, { user: bytes('жук'), password: bytes('пароль') });
      assert.equal(await ask(client, 'SELECT current_user'), bytes('жук'));
    });
  });

  it('the name of an LDAP entry may be longer than 256 bytes', async () => {
    const options = `ldapserver=127.0.0.1 ldapport=${ldap.port} ldapprefix="uid=" ldapsuffix=",${LONG_DN}"`;
    await withRules(['host pgbouncer all all password'], async (pooler) => {
      // the directory's user does not exist on that server
      assert.match(String(await outcome(pooler, options, { user: 'deep', password: 'right' })), /role.*does not exist/);
      const wrong = await outcome(pooler, options, { user: 'deep', password: 'wrong' });
      assert.equal(wrong, 'LDAP authentication failed');
    });
  });

  it('an LDAP server that never answers does not block other clients', async () => {
    const mute = await FalseDirectory.start(() => {});
    const options = `ldapserver=127.0.0.1 ldapport=${mute.port} ldapprefix="uid="`;
    const rules = ['host pgbouncer all all password', 'host all ann all trust', `host all lucy all ldap ${options}`];
    await withRules(rules, async (pooler) => {
      const waiting = await Promise.all(
        Array.from({ length: 25 }, async () => {
          const client = await pooler.raw();
          return { client, answer: client.login(LUCY) };
        }),
      );
      await pooler.logWait(/WARNING C-\S+ postgres\/lucy@\S+ LDAP queue is full, waiting/);
      await eventually('twenty to be asked about', () => mute.sockets.length === 20);
      assert.equal(await ask(await login(pooler, { user: 'ann' }), 'SELECT 1'), '1');
      await waiting[0]?.client.destroy();
      await mute.stop();
      for (const [at, { answer }] of waiting.entries()) {
        const messages = await answer;
        if (at > 0) assert.equal(errorIn(messages)?.M, 'LDAP authentication failed');
      }
    });
  });

  it('LDAP sends no password over a connection that lost its encryption, and accepts no forged answer', async () => {
    const answerTo = Buffer.from('300c02010178070a010004000400', 'hex');
    const bindOk = Buffer.from('300c02010261070a010004000400', 'hex');
    const seen: Buffer[] = [];
    for (const forged of [
      Buffer.concat([answerTo, bindOk]),
      Buffer.concat([answerTo, bindOk.subarray(0, 10)]),
      Buffer.from('300c02010178070a010204000400', 'hex'),
      Buffer.from('30847fffffff', 'hex'),
      Buffer.from('3080', 'hex'),
      Buffer.alloc(5000, 0x30),
    ]) {
      const liar = await FalseDirectory.start((socket) => {
        socket.on('data', (chunk) => seen.push(chunk));
        socket.once('data', () => socket.write(forged));
      });
      const options = `ldapserver=127.0.0.1 ldapport=${liar.port} ldapprefix="uid=" ldaptls=1`;
      await withRules(
        rulesFor(options),
        async (pooler) => {
          assert.equal(await refusal(pooler, { user: 'lucy', password: 'SECRET' }), 'LDAP authentication failed');
          await pooler.logWait(/could not start LDAP TLS session/);
        },
        { env: { LDAPTLS_REQCERT: 'never' } },
      );
      await liar.stop();
    }
    assert.ok(seen.length > 0);
    assert.ok(!Buffer.concat(seen).includes('SECRET'));
  });

  it('an LDAP server that sends without end is disconnected', async () => {
    const most = 64 * 1024 * 1024;
    const sent: number[] = [];
    const babbler = await FalseDirectory.start((socket) => {
      socket.once('data', () => {
        const chunk = Buffer.alloc(64 * 1024);
        // the beginning of a message of 2 GB
        socket.write(Buffer.from('30847fffffff', 'hex'));
        const more = () => {
          while (!socket.destroyed && socket.bytesWritten < most) if (!socket.write(chunk)) return;
          socket.destroy();
        };
        socket.on('drain', more).once('close', () => sent.push(socket.bytesWritten));
        more();
      });
    });
    await withRules(rulesFor(`ldapserver=127.0.0.1 ldapport=${babbler.port} ldapprefix="uid="`), async (pooler) => {
      assert.equal(await refusal(pooler, LUCY), 'LDAP authentication failed');
      await pooler.logWait(/LDAP login failed for user uid=lucy on server 127\.0\.0\.1: Can't contact LDAP server/);
    });
    await babbler.stop();
    assert.ok((sent[0] ?? most) < most / 2, `${sent} bytes were received`);
  });

  it('a pooler with a login under way ends at once', async () => {
    const mute = await FalseDirectory.start(() => {});
    await withRules(rulesFor(`ldapserver=127.0.0.1 ldapport=${mute.port} ldapprefix="uid="`), async (pooler) => {
      const client = await pooler.raw();
      client.login(LUCY).catch(() => {});
      await eventually('the directory to be asked', () => mute.sockets.length === 1);
      pooler.signal('SIGQUIT');
      assert.equal((await pooler.expectEnd()).code, 0);
      await client.destroy();
    });
    await mute.stop();
  });
});
