/*
 * An online reboot keeps the passwords that LDAP has accepted: clients that stay connected do not tell them again, and
 * logins to servers need them.
 */

import assert from 'node:assert/strict';
import { AuthType } from '../../src/core/config/choices';
import { cf } from '../../src/core/config/settings';
import { changePassword, findOrAddGlobalUser } from '../../src/core/pool/user';
import { globalCredentials, readUser, type UnknownUsers } from '../../src/takeover/records/user';
import { it, itUnless, noOriginal, PgCluster } from '../harness';
import { ask } from '../harness/answers';
import { FalseDirectory } from '../harness/directory';
import { after, before } from '../harness/limits';
import { cstring, type Message, type RawClient } from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { md5Answer } from '../harness/scram';

let pg: PgCluster;
let directory: FalseDirectory;
before(async () => {
  pg = await PgCluster.start();
  for (const name of ['ann', 'bob', 'eve']) await pg.createUser(name, 'right');
  await pg.setAuth('scram-sha-256');
  directory = await FalseDirectory.start((socket) => {
    // accepts every password: the answer has the number of the request
    socket.on('data', (request) => {
      const id = request[4] as number;
      if (request[5] === 0x60) socket.write(Buffer.from([0x30, 12, 2, 1, id, 0x61, 7, 0x0a, 1, 0, 4, 0, 4, 0]));
    });
  });
});
after(async () => {
  await directory.stop();
  await pg.stop();
});

const ADMIN = { user: 'admin', password: 'admin', database: 'pgbouncer' };

async function enter(chain: RebootChain, user: string): Promise<RawClient> {
  const client = await chain.raw();
  assert.equal((await client.login({ user, password: 'right', database: 'postgres' })).at(-1)?.type, 'Z');
  return client;
}

/** Makes the pools open new server connections, and asks through them. */
async function askAnew(chain: RebootChain, clients: Record<string, RawClient>): Promise<void> {
  await chain.sql('RECONNECT', ADMIN);
  for (const [name, client] of Object.entries(clients)) {
    assert.equal(await ask(client, 'SELECT current_user'), name);
  }
}

it('clients that stay connected get new server connections after an online reboot', async () => {
  const options = `ldapserver=127.0.0.1 ldapport=${directory.port} ldapprefix="cn="`;
  const settings = { auth_type: 'ldap', auth_ldap_options: options, pool_mode: 'transaction' };
  // LDAP knows a newer password of bob than auth_file
  await withRebootChain({ cluster: pg, settings, userlist: { bob: 'former', eve: 'right' } }, async (chain) => {
    await chain.start('ts');
    const clients = { ann: await enter(chain, 'ann'), bob: await enter(chain, 'bob'), eve: await enter(chain, 'eve') };
    for (let i = 0; i < 2; i++) {
      await askAnew(chain, clients);
      await chain.reboot('ts');
    }
    await askAnew(chain, clients);
    for (const client of Object.values(clients)) await client.end();
  });
});

it('the new process keeps the password of auth_file where LDAP has not accepted another one', () => {
  const { authType } = cf;
  const unknown: UnknownUsers = new Map();
  const adopt = (name: string, externalPasswd?: boolean): string => {
    const record = { k: 'user', name, passwd: 'old', scramClientKey: null, scramServerKey: null } as const;
    readUser(externalPasswd === undefined ? record : { ...record, externalPasswd }, unknown);
    return globalCredentials(name, unknown).passwd;
  };
  const listed = (name: string): string => {
    const { credentials } = findOrAddGlobalUser(name);
    changePassword(credentials, 'listed');
    credentials.dynamicPasswd = false;
    return name;
  };
  try {
    cf.authType = AuthType.LDAP;
    assert.equal(adopt('one', true), 'old');
    assert.equal(adopt('two', false), '', 'removed from auth_file');
    assert.equal(adopt('three'), 'old', 'an older version does not say whether LDAP has accepted it');
    assert.equal(adopt(listed('four'), true), 'old');
    assert.equal(adopt(listed('five'), false), 'listed');
    assert.equal(adopt(listed('six')), 'listed');
    cf.authType = AuthType.MD5;
    assert.equal(adopt('seven', true), 'old');
    assert.equal(adopt('eight'), '');
    assert.equal(adopt(listed('nine'), true), 'listed', 'it would let clients in');
  } finally {
    cf.authType = authType;
  }
});

/** Runs `body` with a pooler that finds user `dan` by auth_query, and a server that asks for its password. */
async function withMd5Chain(body: (chain: RebootChain) => Promise<void>): Promise<void> {
  const settings = { auth_type: 'md5', auth_user: 'postgres', pool_mode: 'transaction' };
  const databases = { postgres: `host=127.0.0.1 port=${pg.port}` };
  await pg.setHba(['local all all trust', 'host all dan 127.0.0.1/32 md5', 'host all all 127.0.0.1/32 trust']);
  await withRebootChain({ cluster: pg, settings, databases, userlist: { postgres: 'pw' } }, body);
}

it('a user whose first login completes after the reboot logs in to servers with later passwords', async () => {
  await pg.createUser('dan', 'first', 'md5');
  await withMd5Chain(async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.startup({ user: 'dan', database: 'postgres' });
    const challenge = (await client.next()) as Message;
    assert.equal(challenge.body.readInt32BE(0), 5);
    await chain.reboot('ts');
    await client.sendMessage('p', cstring(md5Answer('dan', 'first', challenge.body.subarray(4))));
    assert.equal((await client.until('Z')).at(-1)?.type, 'Z');
    assert.equal(await ask(client, 'SELECT current_user'), 'dan');
    await pg.sql("SET password_encryption = md5; ALTER ROLE dan PASSWORD 'second'");
    const other = await chain.raw();
    assert.equal((await other.login({ user: 'dan', password: 'second', database: 'postgres' })).at(-1)?.type, 'Z');
    await askAnew(chain, { dan: other });
  });
});

for (const users of [{}, { dan: 'pool_mode=transaction' }] as Record<string, string>[]) {
  const which = 'dan' in users ? ', who has settings of its own' : '';
  itUnless(noOriginal)(`an idle server of PgBouncer does not take the password from its user${which}`, async () => {
    await pg.sql("SET password_encryption = md5; ALTER ROLE dan PASSWORD 'first'");
    await withMd5Chain(async (chain) => {
      await chain.start('c');
      const dan = { user: 'dan', password: 'first', database: 'postgres' };
      assert.equal((await chain.sql('SELECT current_user AS name', dan)).rows[0].name, 'dan');
      // not before: PgBouncer 1.18 runs no auth_query for a user in [users]
      chain.write({ users });
      await chain.reboot('ts');
      const client = await chain.raw();
      assert.equal((await client.login(dan)).at(-1)?.type, 'Z');
      await askAnew(chain, { dan: client });
    });
  });
}

itUnless(noOriginal)(
  'the keys of SCRAM that PgBouncer has learnt are kept for a user found by auth_query',
  async () => {
    const settings = { auth_type: 'scram-sha-256', auth_user: 'postgres', pool_mode: 'transaction' };
    const databases = { postgres: `host=127.0.0.1 port=${pg.port}` };
    await pg.setHba([
      'local all all trust',
      'host all ann 127.0.0.1/32 scram-sha-256',
      'host all all 127.0.0.1/32 trust',
    ]);
    await withRebootChain({ cluster: pg, settings, databases, userlist: { postgres: 'pw' } }, async (chain) => {
      await chain.start('c');
      const client = await enter(chain, 'ann');
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      await chain.reboot('ts');
      await askAnew(chain, { ann: client });
    });
  },
);
