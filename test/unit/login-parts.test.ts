/*
 * What logins share: the table of cancel keys, and the greeting that a pool keeps.
 */

import assert from 'node:assert/strict';
import { PoolMode } from '../../src/core/config/choices';
import { CompatVersion } from '../../src/core/config/compat-version';
import { cf } from '../../src/core/config/settings';
import { ClientSocket, SocketState } from '../../src/core/pool/bouncer';
import { adoptCancelKey, findByCancelKey, forgetCancelKey, newCancelKey } from '../../src/core/pool/cancel-keys';
import { type Greeting, greetingOf } from '../../src/core/pool/greeting';
import { initVarLookup, VarCache } from '../../src/core/pool/varcache';
import { describe, it } from '../harness/limits';

function keyed(...bytes: number[]): ClientSocket {
  const client = new ClientSocket(SocketState.CL_ACTIVE);
  adoptCancelKey(client, Buffer.from(bytes));
  return client;
}

describe('cancel keys', () => {
  // the same hash, which is made of the bytes from the fourth to the seventh
  const keys = [
    [1, 0, 0, 5, 6, 7, 8, 1],
    [2, 0, 0, 5, 6, 7, 8, 1],
    [1, 0, 0, 5, 6, 7, 8, 2],
  ];

  for (const gone of [0, 1, 2]) {
    it(`keys with the same hash are told apart, and number ${gone + 1} can be forgotten`, () => {
      const clients = keys.map((key) => keyed(...key));
      for (const client of clients) assert.equal(findByCancelKey(client.cancelKey), client);
      const absent = clients[gone] as ClientSocket;
      forgetCancelKey(absent);
      forgetCancelKey(absent);
      for (const client of clients) assert.equal(findByCancelKey(client.cancelKey), client === absent ? null : client);
      for (const client of clients) forgetCancelKey(client);
      for (const client of clients) assert.equal(findByCancelKey(client.cancelKey), null);
    });
  }

  it('a client that never had a key is not in the table', () => {
    const zero = keyed(0, 0, 0, 0, 0, 0, 0, 0);
    forgetCancelKey(new ClientSocket(SocketState.CL_LOGIN));
    assert.equal(findByCancelKey(zero.cancelKey), zero);
    forgetCancelKey(zero);
  });

  it('a new key replaces the old one', () => {
    const client = keyed(1, 2, 3, 4, 5, 6, 7, 8);
    const old = client.cancelKey;
    newCancelKey(client);
    assert.equal(findByCancelKey(old), null);
    assert.equal(findByCancelKey(client.cancelKey), client);
    forgetCancelKey(client);
  });
});

describe('greetings', () => {
  const newPool = () => {
    const origVars = new VarCache();
    origVars.set('DateStyle', 'ISO');
    origVars.set('client_encoding', 'UTF8');
    origVars.set('TimeZone', 'GMT');
    origVars.set('standard_conforming_strings', 'on');
    origVars.set('application_name', 'app');
    return { welcomeMsg: Buffer.from('welcome '), greeting: null as Greeting | null, origVars };
  };
  const none = [null, null, null, null, null];

  it('a greeting is kept while nothing changes', () => {
    initVarLookup('');
    const pool = newPool();
    const first = greetingOf(pool, none, PoolMode.TX, 200);
    assert.equal(greetingOf(pool, [...none], PoolMode.TX, 200), first);
    assert.equal(greetingOf(pool, [null, 'UTF8', null, null, null], PoolMode.TX, 200), first);
    assert.match(first.toString('latin1'), /^welcome .*pgbouncer\.pool_mode\0transaction\0.*DateStyle\0ISO\0/s);
  });

  const changes: Record<string, { tells: string; ask: (pool: ReturnType<typeof newPool>) => Buffer }> = {
    'a value of the client': {
      tells: 'client_encoding\0LATIN1\0',
      ask: (pool) => greetingOf(pool, [null, 'LATIN1', null, null, null], PoolMode.TX, 200),
    },
    'a default of the server': {
      tells: 'TimeZone\0UTC\0',
      ask: (pool) => {
        pool.origVars.set('timezone', 'UTC');
        return greetingOf(pool, none, PoolMode.TX, 200);
      },
    },
    'the welcome message': {
      tells: 'other',
      ask: (pool) => {
        pool.welcomeMsg = Buffer.from('other');
        return greetingOf(pool, none, PoolMode.TX, 200);
      },
    },
    'the pool mode': {
      tells: 'pool_mode\0session\0',
      ask: (pool) => greetingOf(pool, none, PoolMode.SESSION, 200),
    },
    max_prepared_statements: {
      tells: 'max_prepared_statements\x005\0',
      ask: (pool) => greetingOf(pool, none, PoolMode.TX, 5),
    },
    compat_version: {
      tells: 'pgbouncer.version\x001.25.2\0',
      ask: (pool) => {
        const before = cf.compatVersion;
        cf.compatVersion = CompatVersion.V1_25;
        const bytes = greetingOf(pool, none, PoolMode.TX, 200);
        cf.compatVersion = before;
        return bytes;
      },
    },
  };
  for (const [what, { tells, ask }] of Object.entries(changes)) {
    it(`a greeting tells that ${what} has changed`, () => {
      const pool = newPool();
      assert.ok(!greetingOf(pool, none, PoolMode.TX, 200).includes(tells));
      assert.ok(ask(pool).includes(tells));
    });
  }
});
