/*
 * Authentication: every auth_type of the pooler and every method of the server with every kind of secret, and
 * auth_query with all its errors. Refusals must not reveal which users exist.
 */

import assert from 'node:assert/strict';
import { ask, errorIn, login, refusal, withPooler } from '../harness/answers';
import type { Bouncer, BouncerOptions } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import type { Login, Message } from '../harness/raw-client';

let pg: PgCluster;
/** each method of the server has a user of its own */
const HBA = [
  'local all all trust',
  'host all by_password 127.0.0.1/32 password',
  'host all by_md5 127.0.0.1/32 md5',
  'host all by_scram 127.0.0.1/32 scram-sha-256',
  'host all all 127.0.0.1/32 trust',
];
/** a SCRAM secret of the password 'right', as PostgreSQL stores it */
let scramSecret = '';
/** likewise md5, of user ann */
let md5Secret = '';

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('ann', 'right', 'md5');
  md5Secret = (await pg.storedSecret('ann')) as string;
  await pg.sql(`ALTER ROLE ann PASSWORD 'right'`);
  scramSecret = (await pg.storedSecret('ann')) as string;
  for (const [name, kind] of [
    ['by_password', 'scram'],
    ['by_md5', 'md5'],
    ['by_scram', 'scram'],
    ['by_trust', 'scram'],
  ] as const) {
    await pg.createUser(name, 'right', kind);
  }
  await pg.createUser('looker', '', 'none', 'SUPERUSER');
  await pg.setHba(HBA);
});
after(() => pg.stop());

/** The authentication requests of a login, and its outcome. */
interface Attempt {
  /** codes of the AuthenticationRequests: 0 ok, 3 plain, 5 md5, 10 SASL, 11 continue, 12 final */
  asked: number[];
  error: string | null;
  messages: Message[];
}

async function attempt(pooler: Bouncer, who: Login): Promise<Attempt> {
  const client = await pooler.raw();
  const messages = await client.login(who);
  const asked = messages.filter((msg) => msg.type === 'R').map((msg) => msg.body.readInt32BE(0));
  const error = errorIn(messages)?.M ?? null;
  await client.destroy();
  return { asked, error, messages };
}

const PLAIN = [3, 0];
const MD5 = [5, 0];
const SCRAM = [10, 11, 12, 0];

describe('auth_type', () => {
  const badPassword = 'password authentication failed';
  const badSasl = 'SASL authentication failed';
  /** type, kind of secret, what a right password meets, error of a wrong one, error of a right one if it fails too */
  const cases: [string, 'plain' | 'md5' | 'scram', number[], string, string?][] = [
    ['plain', 'plain', PLAIN, badPassword],
    ['plain', 'md5', PLAIN, badPassword],
    ['plain', 'scram', PLAIN, badPassword],
    ['md5', 'plain', MD5, badPassword],
    ['md5', 'md5', MD5, badPassword],
    ['md5', 'scram', SCRAM, badSasl],
    ['scram-sha-256', 'plain', SCRAM, badSasl],
    ['scram-sha-256', 'md5', [10], badSasl, badSasl],
    ['scram-sha-256', 'scram', SCRAM, badSasl],
  ];
  for (const [type, kind, asked, wrong, right] of cases) {
    it(`auth_type=${type} authenticates a user with a ${kind} secret`, async () => {
      const secret = { plain: 'right', md5: md5Secret, scram: scramSecret }[kind];
      await withPooler({ cluster: pg, settings: { auth_type: type }, userlist: { ann: secret } }, async (pooler) => {
        const good = await attempt(pooler, { user: 'ann', password: 'right' });
        assert.deepEqual([good.asked, good.error], [asked, right ?? null]);
        assert.equal((await attempt(pooler, { user: 'ann', password: 'wrong' })).error, wrong);
        // a secret cannot be used as a password
        if (kind !== 'plain') assert.equal((await attempt(pooler, { user: 'ann', password: secret })).error, wrong);
      });
    });
  }

  it('auth_type=trust accepts every name in auth_file', async () => {
    await withPooler({ cluster: pg, userlist: { ann: 'right' } }, async (pooler) => {
      assert.deepEqual((await attempt(pooler, { user: 'ann' })).asked, [0]);
      assert.equal(await refusal(pooler, { user: 'stranger' }), '"trust" authentication failed');
    });
  });

  it('auth_type=any accepts every name and needs a forced user', async () => {
    const databases = { forced: pg.connstr('postgres', 'user=ann'), free: pg.connstr() };
    await withPooler({ databases, settings: { auth_type: 'any', auth_file: null } }, async (pooler) => {
      const client = await login(pooler, { user: 'stranger', database: 'forced' });
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      assert.equal(await refusal(pooler, { user: 'ann', database: 'free' }), 'bouncer config error');
      await pooler.logWait(/auth_type=any requires forced user/);
    });
  });

  it('auth_type=plain refuses an empty password', async () => {
    await withPooler({ cluster: pg, settings: { auth_type: 'plain' }, userlist: { ann: '' } }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'ann' }), 'empty password returned by client');
    });
  });

  it('a SCRAM proof of the empty password does not log in a user without a password', async () => {
    const settings = { auth_type: 'scram-sha-256' };
    await withPooler({ cluster: pg, settings, userlist: { by_trust: '' } }, async (pooler) => {
      const { asked, error } = await attempt(pooler, { user: 'by_trust', password: '' });
      assert.deepEqual([asked, error], [[10, 11], 'SASL authentication failed']);
    });
  });

  it('RELOAD applies changed secrets, new users and removed users of auth_file', async () => {
    const options: BouncerOptions = { cluster: pg, settings: { auth_type: 'plain' } };
    await withPooler({ ...options, userlist: { ann: 'old', by_trust: 'x' } }, async (pooler) => {
      await login(pooler, { user: 'ann', password: 'old' });
      assert.match(await refusal(pooler, { user: 'looker', password: 'new' }), /authentication failed/);
      pooler.options.userlist = {};
      pooler.rewrite({ userlist: { ann: 'newer', looker: 'new' } });
      await pooler.admin('RELOAD');
      await login(pooler, { user: 'ann', password: 'newer' });
      await login(pooler, { user: 'looker', password: 'new' });
      for (const [user, password] of [
        ['ann', 'old'],
        ['by_trust', 'x'],
      ] as const) {
        assert.equal(await refusal(pooler, { user, password }), 'password authentication failed');
      }
    });
  });

  it('scram_iterations sets the cost of a secret made from a plain password', async () => {
    const settings = { auth_type: 'scram-sha-256', scram_iterations: 5000 };
    await withPooler({ cluster: pg, settings, userlist: { ann: 'right' } }, async (pooler) => {
      const cost = async () => {
        const { messages, error } = await attempt(pooler, { user: 'ann', password: 'right' });
        assert.equal(error, null);
        return /i=(\d+)$/.exec(messages[1]?.body.toString('latin1') ?? '')?.[1];
      };
      assert.equal(await cost(), '5000');
    });
  });
});

describe('unknown users and wrong passwords', () => {
  /** An exchange with its random parts masked. */
  function masked(messages: Message[]): string[] {
    return messages.map(({ type, body }) => {
      if (type !== 'R') return type + body.toString('latin1');
      const code = body.readInt32BE(0);
      if (code === 5) return 'R md5 salt';
      return `R${code} ${body.toString('latin1', 4).replace(/^r=[^,]{42,}(,s=)[A-Za-z0-9+/]{22}==/, 'r=…$1…')}`;
    });
  }

  const cases = [
    ['plain', 'plain'],
    ['plain', 'scram'],
    ['md5', 'plain'],
    ['md5', 'md5'],
    ['scram-sha-256', 'plain'],
    ['scram-sha-256', 'scram'],
  ] as const;
  for (const [type, kind] of cases) {
    it(`an unknown user and a wrong password get the same bytes: ${type}, ${kind} secret, any database`, async () => {
      const secret = { plain: 'right', md5: md5Secret, scram: scramSecret }[kind];
      const databases = { postgres: pg.connstr() };
      await withPooler({ databases, settings: { auth_type: type }, userlist: { ann: secret } }, async (pooler) => {
        const known = await attempt(pooler, { user: 'ann', password: 'wrong' });
        const stranger = await attempt(pooler, { user: 'bob', password: 'wrong' });
        const nowhere = await attempt(pooler, { user: 'ann', password: 'wrong', database: 'nowhere' });
        const both = await attempt(pooler, { user: 'bob', password: 'wrong', database: 'nowhere' });
        assert.notEqual(known.error, null);
        for (const other of [stranger, nowhere, both]) assert.deepEqual(masked(other.messages), masked(known.messages));
      });
    });
  }
});

describe('towards the server', () => {
  it('a plain password logs in to servers with every method', async () => {
    const userlist = { by_trust: 'right', by_password: 'right', by_md5: 'right', by_scram: 'right' };
    await withPooler({ cluster: pg, userlist }, async (pooler) => {
      for (const user of Object.keys(userlist)) {
        assert.equal(await ask(await login(pooler, { user }), 'SELECT current_user'), user);
      }
    });
  });

  it('an md5 secret logs in to servers with md5 only', async () => {
    const md5Of = async (user: string) => {
      const result = await pg.sql(`SELECT 'md5' || md5('right' || '${user}') AS secret`);
      return result.rows[0].secret as string;
    };
    const userlist = {
      by_md5: await md5Of('by_md5'),
      by_scram: await md5Of('by_scram'),
      by_password: await md5Of('by_password'),
    };
    await withPooler({ cluster: pg, userlist }, async (pooler) => {
      assert.equal(await ask(await login(pooler, { user: 'by_md5' }), 'SELECT current_user'), 'by_md5');
      assert.equal(await refusal(pooler, { user: 'by_scram' }), 'server login failed: wrong password type');
      const failed = 'password authentication failed for user "by_password"';
      assert.equal(await refusal(pooler, { user: 'by_password' }), failed);
    });
  });

  it('a SCRAM secret logs in to servers once its user has logged in with SCRAM', async () => {
    const secret = (await pg.storedSecret('by_scram')) as string;
    const settings = { auth_type: 'scram-sha-256' };
    await withPooler({ cluster: pg, settings, userlist: { by_scram: secret } }, async (pooler) => {
      const client = await login(pooler, { user: 'by_scram', password: 'right' });
      assert.equal(await ask(client, 'SELECT current_user'), 'by_scram');
      // the pooler keeps the keys: a new server needs no new login of the client
      await pooler.admin('RECONNECT');
      await client.end();
      assert.equal(await ask(await login(pooler, { user: 'by_scram', password: 'right' }), 'SELECT 1'), '1');
    });
    await withPooler({ cluster: pg, userlist: { by_scram: secret } }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'by_scram' }), 'server login failed: wrong password type');
    });
  });

  it('a forced user keeps its own password when clients log in with SCRAM secrets', async () => {
    const databases = { forced: pg.connstr('postgres', 'user=by_scram password=right') };
    const settings = { auth_type: 'scram-sha-256' };
    await withPooler({ databases, settings, userlist: { ann: scramSecret } }, async (pooler) => {
      for (let times = 0; times < 2; times++) {
        const client = await login(pooler, { user: 'ann', password: 'right', database: 'forced' });
        assert.equal(await ask(client, 'SELECT current_user'), 'by_scram');
        await client.end();
        await pooler.admin('RECONNECT');
      }
    });
  });

  it("a SCRAM secret that differs from the server's cannot log in to the server", async () => {
    await pg.createUser('other', 'right', 'scram');
    const secret = (await pg.storedSecret('other')) as string;
    const settings = { auth_type: 'scram-sha-256' };
    await withPooler({ cluster: pg, settings, userlist: { by_scram: secret } }, async (pooler) => {
      const text = await refusal(pooler, { user: 'by_scram', password: 'right' });
      assert.equal(text, 'password authentication failed for user "by_scram"');
    });
  });

  it("the server password comes from the database line, or else from auth_file; errors have the server's text", async () => {
    const databases = {
      good: pg.connstr('postgres', 'user=by_scram password=right'),
      quoted: pg.connstr('postgres', "user=quoter password='it''s \"so\"'"),
      bad: pg.connstr('postgres', 'user=by_scram password=wrong'),
      filed: pg.connstr('postgres', 'user=by_md5'),
    };
    await pg.createUser('quoter', `it's "so"`, 'scram');
    await pg.setHba(['local all all trust', 'host all quoter,by_scram all scram-sha-256', 'host all by_md5 all md5']);
    await withPooler({ databases, userlist: { by_md5: 'right' } }, async (pooler) => {
      for (const [database, user] of [
        ['good', 'by_scram'],
        ['quoted', 'quoter'],
        ['filed', 'by_md5'],
      ] as const) {
        assert.equal(await ask(await login(pooler, { database }), 'SELECT current_user'), user);
      }
      const client = await pooler.raw();
      const error = errorIn(await client.login({ database: 'bad' }));
      assert.deepEqual([error?.M, error?.C], ['password authentication failed for user "by_scram"', '28P01']);
      await pooler.logWait(/server login failed: FATAL password authentication failed for user "by_scram"/);
    });
    await pg.setHba(HBA);
  });
});

describe('auth_query', () => {
  const PLAIN_TYPE = { auth_type: 'plain', auth_user: 'looker' };
  const USERLIST = { looker: '' };

  it('auth_query finds users missing from auth_file, and their secrets log in to the server', async () => {
    const settings = { auth_type: 'scram-sha-256', auth_user: 'looker' };
    await withPooler({ cluster: pg, settings, userlist: USERLIST }, async (pooler) => {
      const client = await login(pooler, { user: 'by_scram', password: 'right' });
      assert.equal(await ask(client, 'SELECT current_user'), 'by_scram');
      const wrong = { user: 'by_scram', password: 'wrong' };
      assert.equal(await refusal(pooler, wrong), 'SASL authentication failed');
      assert.equal(await refusal(pooler, { user: 'stranger', password: 'x' }), 'no such user');
      await pg.sql("ALTER ROLE by_scram PASSWORD 'changed'");
      await login(pooler, { user: 'by_scram', password: 'changed' });
      assert.equal(await refusal(pooler, { user: 'by_scram', password: 'right' }), 'SASL authentication failed');
      await pg.sql("ALTER ROLE by_scram PASSWORD 'right'");
    });
  });

  it('the default auth_query refuses expired passwords, users without a password, and roles without login', async () => {
    await pg.createUser('expired', 'right', 'scram', "VALID UNTIL '2001-01-01'");
    await pg.createUser('bare', '', 'none');
    await pg.sql("CREATE ROLE no_login PASSWORD 'right'");
    await withPooler({ cluster: pg, settings: PLAIN_TYPE, userlist: USERLIST }, async (pooler) => {
      for (const user of ['expired', 'bare']) {
        assert.equal(await refusal(pooler, { user, password: 'right' }), 'password authentication failed');
        assert.equal(await refusal(pooler, { user, password: 'md5' }), 'password authentication failed');
      }
      assert.equal(await refusal(pooler, { user: 'no_login', password: 'right' }), 'no such user');
    });
  });

  it('auth_user, auth_query and auth_dbname of a database override the general settings', async () => {
    await pg.sql('CREATE DATABASE secrets');
    await pg.sql("CREATE TABLE keys AS SELECT 'by_trust'::text AS who, 'from table'::text AS secret", {
      database: 'secrets',
    });
    const query = "auth_query='SELECT who, secret FROM keys WHERE who = $1'";
    const databases = {
      secrets: pg.connstr('secrets'),
      own: pg.connstr('postgres', `auth_user=looker auth_dbname=secrets ${query}`),
      general: pg.connstr(),
    };
    const settings = {
      auth_type: 'plain',
      auth_user: 'by_trust',
      auth_query: "SELECT $1::text, current_database() || ':' || current_user",
      auth_dbname: 'secrets',
    };
    await withPooler({ databases, settings, userlist: USERLIST }, async (pooler) => {
      const who = { user: 'by_trust' };
      await login(pooler, { ...who, database: 'own', password: 'from table' });
      assert.match(await refusal(pooler, { ...who, database: 'own', password: 'x' }), /^password authentication/);
      await login(pooler, { ...who, user: 'ann', database: 'general', password: 'secrets:by_trust' });
      await pooler.admin("SET auth_dbname = 'general'");
      await login(pooler, { ...who, user: 'ann', database: 'general', password: 'postgres:by_trust' });
    });
  });

  it('an auth_query that returns NULLs means that the user is unknown', async () => {
    await pg.sql(
      "CREATE FUNCTION out_user(IN name text, OUT usename text, OUT passwd text) AS $$ BEGIN SELECT s.name, s.secret INTO usename, passwd FROM (VALUES ('ann', 'right')) s(name, secret) WHERE s.name = $1; END $$ LANGUAGE plpgsql",
    );
    const settings = { ...PLAIN_TYPE, auth_query: 'SELECT usename, passwd FROM out_user($1)' };
    await withPooler({ cluster: pg, settings, userlist: USERLIST }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'stranger', password: 'x' }), 'no such user');
      await login(pooler, { user: 'ann', password: 'right' });
      assert.equal(pooler.log.count(/S-[^\n]* closing because/), 0);
    });
  });

  it('a failed auth_query is a config error for the client, and the log explains it', async () => {
    const cases: [string, RegExp][] = [
      ['SELECT 1', /expected 2 columns from auth_query, not 1|bind message supplies 1 parameters/],
      ['SELECT $1::text', /closing because: expected 2 columns from auth_query, not 1/],
      ['SELECT $1::text, 1, 2', /closing because: expected 2 columns from auth_query, not 3/],
      ['SELECT nonsense($1)', /S: error in auth_query: ERROR: function nonsense\(unknown\) does not exist/],
    ];
    for (const [query, line] of cases) {
      const settings = { ...PLAIN_TYPE, auth_query: query };
      await withPooler({ cluster: pg, settings, userlist: USERLIST }, async (pooler) => {
        assert.equal(await refusal(pooler, { user: 'ann', password: 'right' }), 'bouncer config error', query);
        await pooler.logWait(line);
      });
    }
  });

  it('auth_query needs an existing, enabled database other than the admin database', async () => {
    const databases = { postgres: pg.connstr('postgres', 'auth_dbname=gone'), secrets: pg.connstr('secrets') };
    await withPooler({ databases, settings: PLAIN_TYPE, userlist: USERLIST }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'ann', password: 'right' }), 'bouncer config error');
      await pooler.logWait(/authentication database "gone" is not configured\./);
      await pooler.admin("SET auth_dbname = 'secrets'");
      const client = await pooler.raw();
      await client.destroy();
      await pooler.admin('DISABLE secrets');
      const text = await refusal(pooler, { user: 'ann', password: 'right', database: 'secrets' });
      assert.equal(text, 'authentication database "secrets" is disabled');
      await assert.rejects(pooler.admin("SET auth_dbname = 'pgbouncer'"), /SET failed/);
      await pooler.logWait(/cannot use the reserved "pgbouncer" database as an auth_dbname/);
    });
  });

  it('auth_query does not run without auth_user', async () => {
    const settings = { ...PLAIN_TYPE, auth_user: null, log_connections: 1 };
    await withPooler({ cluster: pg, settings, userlist: USERLIST }, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'ann', password: 'right' }), 'password authentication failed');
      assert.equal(pooler.log.count(/new connection to server/), 0);
    });
  });
});
