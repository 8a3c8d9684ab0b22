/*
 * The first packets of a client: encryption requests, versions, startup parameters and options, the welcome message,
 * cancel requests, and logins to the console.
 */

import assert from 'node:assert/strict';
import {
  ask,
  backendOf,
  errorIn,
  login,
  noticesIn,
  refusal,
  rowsBecome,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';
import { installed, it, run } from '../harness/machine';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  GSSENC_REQUEST,
  type Login,
  letters,
  message,
  PROTOCOL_30,
  parameterStatus,
  RawClient,
  SSL_REQUEST,
  startupPacket,
} from '../harness/raw-client';
import { startUntilTold } from '../harness/until-told';

let pg: PgCluster;
let pooler: Bouncer;
const WHO = { user: 'postgres', database: 'postgres' };

before(async () => {
  pg = await PgCluster.start();
  pooler = await Bouncer.start({ cluster: pg, settings: { pool_mode: 'transaction', verbose: 2 } });
});
after(async () => {
  await pooler.stop();
  await pg.stop();
});

describe('encryption requests', () => {
  it('encryption requests are answered N, and the login continues in plain text', async () => {
    const client = await pooler.raw();
    assert.equal(await client.request(SSL_REQUEST), 'N');
    assert.equal(await client.request(GSSENC_REQUEST), 'N');
    assert.equal((await client.login()).at(-1)?.type, 'Z');
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.end();
  });

  const smuggled = [
    [SSL_REQUEST, 'received unencrypted data after SSL request'],
    [GSSENC_REQUEST, 'received unencrypted data after GSSAPI encryption request'],
  ] as const;
  for (const [code, text] of smuggled) {
    it(`an encryption request with further bytes behind it is refused: ${text}`, async () => {
      const client = await pooler.raw();
      await client.send(startupPacket(code, Buffer.alloc(0)), startupPacket(PROTOCOL_30, WHO));
      assert.equal(await thrownOut(client), text);
    });
  }
});

describe('protocol versions', () => {
  it('protocol 3.0 is accepted without negotiation', async () => {
    const client = await pooler.raw();
    assert.match(letters(await client.login()), /^RS+KZ$/);
  });

  it('protocol 2.0 is refused', async () => {
    const client = await pooler.raw();
    await client.send(startupPacket(0x0002_0000, WHO));
    assert.equal(await thrownOut(client), 'old V2 protocol not supported');
  });

  it('protocol 4.0 is refused as a bad packet', async () => {
    const client = await pooler.raw();
    await client.send(startupPacket(0x0004_0000, WHO));
    const answer = await client.until('Z');
    assert.match(errorIn(answer)?.M ?? '', /^bad packet header: /);
  });
});

describe('the startup packet', () => {
  it('a startup packet may arrive one byte at a time', async () => {
    const client = await pooler.raw();
    for (const byte of startupPacket(PROTOCOL_30, WHO)) await client.send(Buffer.from([byte]));
    assert.equal((await client.until('ZE')).at(-1)?.type, 'Z');
  });

  it('a startup packet needs a user, whose name is the default database', async () => {
    assert.equal(await refusal(pooler, { user: '' }), 'no username supplied');
    const client = await pooler.raw();
    await client.startup({ user: 'postgres' });
    await client.until('Z');
    assert.equal(await ask(client, 'SELECT current_database()'), 'postgres');
  });

  it('a startup packet needs its terminator at the very end', async () => {
    for (const tail of ['user\0postgres\0', 'user\0postgres\0\0junk', 'user\0\0\0\0']) {
      const client = await pooler.raw();
      await client.send(startupPacket(PROTOCOL_30, Buffer.from(tail, 'latin1')));
      const text = 'invalid startup packet layout: expected terminator as last byte';
      assert.equal(await thrownOut(client), text, JSON.stringify(tail));
    }
  });

  it('a second startup packet is refused', async () => {
    await withPooler({ cluster: pg, settings: { auth_type: 'plain' } }, async (plain) => {
      const client = await plain.raw();
      await client.startup(WHO);
      await client.until('R');
      await client.startup(WHO);
      assert.equal(await thrownOut(client), 'client re-sent startup pkt');
    });
  });

  it('a password before the startup packet is refused', async () => {
    const client = await pooler.raw();
    await client.sendMessage('p', cstring('secret'));
    assert.equal(await thrownOut(client), 'client password pkt before startup packet');
  });

  it('a startup packet with an unknown database is refused', async () => {
    await withPooler({ databases: { postgres: pg.connstr() } }, async (strict) => {
      assert.equal(await refusal(strict, { database: 'nowhere' }), 'no such database: nowhere');
    });
  });

  it('the * line is not a database that can be asked for', async () => {
    await withPooler({ databases: { '*': pg.connstr() } }, async (own) => {
      assert.equal(await refusal(own, { database: '*' }), 'no such database: *');
      await fails(own.admin('PAUSE "*"'), 'no such database: *');
      assert.deepEqual(
        (await own.admin('SHOW DATABASES')).map((row) => row.name),
        ['pgbouncer'],
      );
    });
  });
});

describe('startup parameters', () => {
  it('startup parameters that are not tracked are refused, and the log shows the value', async () => {
    assert.equal(await refusal(pooler, { params: { work_mem: '1MB' } }), 'unsupported startup parameter: work_mem');
    await pooler.logWait(/unsupported startup parameter: work_mem=1MB/);
  });

  it('startup parameters in ignore_startup_parameters are accepted without effect', async () => {
    const settings = { ignore_startup_parameters: 'extra_float_digits, work_mem', verbose: 1 };
    await withPooler({ cluster: pg, settings }, async (lenient) => {
      const params = { work_mem: '123MB', options: '-c extra_float_digits=3' };
      const client = await login(lenient, { params });
      assert.notEqual(await ask(client, 'SHOW work_mem'), '123MB');
      await lenient.logWait(/ignoring startup parameter: work_mem=123MB/);
      await lenient.logWait(/ignoring startup parameter from options: extra_float_digits=3/);
      const other = { params: { geqo: 'off' } };
      assert.equal(await refusal(lenient, other), 'unsupported startup parameter: geqo');
    });
  });

  it('the startup parameter options accepts -c and --, with backslashes', async () => {
    const options = '-c TimeZone=Asia/Tokyo --application_name=a\\ b\\\\c   -cDateStyle=German';
    const client = await login(pooler, { params: { options } });
    assert.equal(await ask(client, 'SHOW TimeZone'), 'Asia/Tokyo');
    assert.equal(await ask(client, 'SHOW application_name'), 'a b\\c');
    assert.equal(await ask(client, 'SHOW DateStyle'), 'German, DMY');
  });

  it('the startup parameter options with any other switch is refused', async () => {
    const form = "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed";
    const cases: [string, string][] = [
      ['-d 5', form],
      ['TimeZone=UTC', form],
      ['-c TimeZone', form],
      ['-c work_mem=1MB', 'unsupported startup parameter in options: work_mem'],
    ];
    for (const [options, text] of cases) assert.equal(await refusal(pooler, { params: { options } }), text);
  });

  it("ignoring 'options' skips unknown parameters in it but refuses bad syntax", async () => {
    await withPooler({ cluster: pg, settings: { ignore_startup_parameters: 'options' } }, async (lenient) => {
      await login(lenient, { params: { options: '-c work_mem=1MB -c geqo=off' } });
      assert.match(await refusal(lenient, { params: { options: 'nonsense' } }), /^unsupported options/);
    });
  });
});

describe('the welcome', () => {
  it("the welcome message contains the server's parameters, a cancel key and ReadyForQuery", async () => {
    const client = await login(pooler);
    const direct = await RawClient.connect({ port: pg.port });
    await direct.login();
    const { is_superuser: _own, ...theirs } = direct.parameters;
    const { is_superuser: _too, ...all } = client.parameters;
    const ours = Object.fromEntries(Object.entries(all).filter(([name]) => !name.startsWith('pgbouncer.')));
    assert.deepEqual(ours, theirs);
    assert.notEqual(client.backendPid, 0);
    await direct.end();
  });

  it('the welcome message tells the version, the pool mode of the client and max_prepared_statements', async () => {
    await pg.createUser('ann', '', 'none');
    const options = {
      databases: {
        sess: pg.connstr(),
        tx: pg.connstr('postgres', 'pool_mode=transaction'),
      },
      users: { ann: 'pool_mode=statement' },
      userlist: { postgres: '', ann: '' },
      settings: { max_prepared_statements: 17 },
    };
    await withPooler(options, async (telling) => {
      const told = async (who: Login): Promise<(string | undefined)[]> => {
        const { parameters } = await login(telling, who);
        const version = (await telling.admin('SHOW VERSION'))[0]?.version as string;
        assert.equal(version, `PgBouncer ${parameters['pgbouncer.version']}`);
        return [parameters['pgbouncer.pool_mode'], parameters['pgbouncer.max_prepared_statements']];
      };
      assert.deepEqual(await told({ database: 'sess' }), ['session', '17']);
      assert.deepEqual(await told({ database: 'tx' }), ['transaction', '17']);
      assert.deepEqual(await told({ database: 'tx', user: 'ann' }), ['statement', '17']);
      // these are the values of the login: a later one is told the new values
      await telling.admin('SET max_prepared_statements = 0');
      assert.deepEqual(await told({ database: 'sess' }), ['session', '0']);
      await telling.admin('SET pool_mode = statement');
      assert.deepEqual(await told({ database: 'sess' }), ['statement', '0']);
    });
  });

  it('a pooler in front of another pooler tells its own values', async () => {
    const inner = { cluster: pg, settings: { pool_mode: 'statement', max_prepared_statements: 3 } };
    await withPooler(inner, async (behind) => {
      const databases = { postgres: `host=127.0.0.1 port=${behind.port}` };
      await withPooler({ databases, settings: { pool_mode: 'transaction' } }, async (front) => {
        const client = await front.raw();
        const answer = await client.login();
        const told = answer.filter(({ type }) => type === 'S').map((msg) => parameterStatus(msg));
        assert.deepEqual(
          told.filter(([name]) => name === 'pgbouncer.pool_mode' || name === 'pgbouncer.max_prepared_statements'),
          [
            ['pgbouncer.pool_mode', 'transaction'],
            ['pgbouncer.max_prepared_statements', '200'],
          ],
        );
      });
    });
  });

  it('login_notify_message is sent as a notice and can be changed', async () => {
    await withPooler({ cluster: pg, settings: { login_notify_message: 'maintenance at noon' } }, async (talking) => {
      const client = await talking.raw();
      assert.deepEqual(noticesIn(await client.login()), ['maintenance at noon']);
      await talking.admin("SET login_notify_message = ''");
      const other = await talking.raw();
      assert.deepEqual(noticesIn(await other.login()), []);
    });
  });
});

describe('cancel requests', () => {
  it('a cancel request cancels the query of its client and of no other client', async () => {
    const [client, other] = [await login(pooler), await login(pooler)];
    await start(client, 'SELECT pg_sleep(30)');
    const end = await startUntilTold(pg, other);
    await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 2);
    await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
    assert.equal(errorIn(await client.until('Z'))?.M, 'canceling statement due to user request');
    await end();
    assert.equal(valueIn(await other.until('Z')), '');
    assert.equal(await ask(client, 'SELECT 9'), '9', 'the client goes on');
  });

  it('a cancel request with a wrong key, or for an idle client, has no effect', async () => {
    const client = await login(pooler);
    const from = pooler.log.mark();
    await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
    await pooler.logWait(/closing because: cancel request for idle client/, from);
    const end = await startUntilTold(pg, client);
    const wrong = Buffer.from(client.backendKey);
    wrong[0] = (wrong[0] as number) ^ 0x55;
    await cancelRequest({ port: pooler.port }, client.backendPid, wrong);
    await pooler.logWait(/closing because: failed cancel request/, from);
    await end();
    assert.equal(valueIn(await client.until('Z')), '');
  });

  it('a cancel request is delivered even if the pool is full', async () => {
    await withPooler({ cluster: pg, settings: { default_pool_size: 1 } }, async (small) => {
      const client = await login(small);
      await start(client, 'SELECT pg_sleep(30)');
      await rowsBecome(small, 'SERVERS', { state: 'active' }, 1);
      await cancelRequest({ port: small.port }, client.backendPid, client.backendKey);
      assert.equal(errorIn(await client.until('Z'))?.C, '57014');
      await small.logWait(/closing because: successfully sent cancel request/);
    });
  });

  it('a cancel request of the wrong length is dropped', async () => {
    const from = pooler.log.mark();
    const client = await pooler.raw();
    await client.send(startupPacket(CANCEL_REQUEST, Buffer.alloc(7)));
    assert.deepEqual(await client.until(''), []);
    await pooler.logWait(/closing because: bad cancel request/, from);
  });
});

describe('a logged-in client', () => {
  it('a logged-in client that sends an unknown packet is disconnected, and its server is kept', async () => {
    const client = await login(pooler);
    const pid = await backendOf(client);
    await client.send(message('!', Buffer.from('boo')));
    assert.equal(await thrownOut(client), 'unknown pkt');
    assert.equal(await backendOf(await login(pooler)), pid);
  });
});

describe('the console', () => {
  it('admin_users may run every command, stats_users only SHOW, and other users cannot log in to the console', async () => {
    const stats = { user: 'stats', password: 'stats-password' };
    await pooler.admin('SET verbose = 2');
    await pooler.admin('SHOW POOLS', stats);
    await assert.rejects(pooler.admin('SET verbose = 1', stats), /admin access needed/);
    await assert.rejects(pooler.admin('RELOAD', stats), /admin access needed/);
    assert.equal(await refusal(pooler, { user: 'postgres', database: 'pgbouncer' }), 'not allowed');
  });

  it('admin_users and stats_users can be changed at run time', async () => {
    await withPooler({ cluster: pg, userlist: { ann: '', ben: '' } }, async (other) => {
      await other.admin("SET stats_users = 'ann, ben'");
      await other.admin('SHOW LISTS', { user: 'ben', password: '' });
      await other.admin("SET admin_users = 'ben,admin'");
      await other.admin('RELOAD', { user: 'ben', password: '' });
      await assert.rejects(other.admin('SHOW LISTS', { user: 'ann', password: '' }), /not allowed/);
    });
  });

  it("user pgbouncer with the pooler's uid needs no password, on the Unix socket only", async () => {
    const settings = { auth_type: 'scram-sha-256', admin_users: '' };
    await withPooler({ cluster: pg, settings }, async (strict) => {
      const path = `${strict.socketDir}/.s.PGSQL.${strict.port}`;
      const who = { user: 'pgbouncer', database: 'pgbouncer' };
      // a process of its own, because the tests may run as root and the pooler as another user
      const code = `const s = require('node:net').connect(process.argv[1]);
        s.write(Buffer.from(process.argv[2], 'hex')); s.once('data', (b) => { console.log(b.toString('hex')); s.end(); });`;
      const packet = startupPacket(PROTOCOL_30, who).toString('hex');
      const own = await run(installed().node, ['-e', code, path, packet]);
      assert.match(own.stdout, /^520000000800000000/, `no AuthenticationOk: ${own.stderr}`);
      const foreign = await run(installed().node, ['-e', code, path, packet.replace('7067626f', '7067426f')]);
      assert.match(foreign.stdout, /^52000000170000000a/, 'another name is asked for a password');
      assert.equal(await refusal(strict, who), 'SASL authentication failed');
    });
  });
});

it('options keep a byte that is a space only in Unicode', async () => {
  const client = await pooler.raw();
  const name = Buffer.from('voilà', 'utf8').toString('latin1');
  await client.login({ params: { options: `-c application_name=${name}` } });
  // servers before version 16 show such bytes as question marks
  assert.match((await ask(client, 'SHOW application_name')) ?? '', /^voil(\?\?|\\xc3\\xa0)$/);
  await client.end();
});
