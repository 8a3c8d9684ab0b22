/*
 * Fair shares of max_db_connections: a pool whose connections are always busy gives some to a pool that has fewer.
 */

import assert from 'node:assert/strict';
import {
  ask,
  backendOf,
  login,
  refusal,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { RawClient } from '../harness/raw-client';

const pg = clusterWithUsers('ann', 'ben', 'cem');

const TX = { pool_mode: 'transaction', server_check_query: '' };
const QUERY = 'SELECT pg_sleep(0.02)';
const ENOUGH = 30;
/** samples in a row */
const STABLE = 5;

interface Options {
  connections: number;
  fairShareTimeout?: number;
  users?: Record<string, string>;
  settings?: Record<string, string | number>;
}

async function withShares(options: Options, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const settings = {
    ...TX,
    max_db_connections: options.connections,
    server_login_retry: 1,
    fair_share_timeout: options.fairShareTimeout ?? 0.02,
    ...options.settings,
  };
  const userlist = { ann: '', ben: '', cem: '' };
  await withPooler({ cluster: pg(), settings, userlist, users: options.users ?? {} }, async (pooler) => {
    try {
      await body(pooler);
    } finally {
      await Promise.all(Load.all.splice(0).map((load) => load.stop()));
    }
  });
}

/** Clients of a user that send one query after the other. */
class Load {
  static readonly all: Load[] = [];
  done = 0;
  private stopping = false;
  private readonly loops: Promise<void>[] = [];
  private readonly clients: RawClient[] = [];

  static async start(pooler: Bouncer, user: string, clients: number): Promise<Load> {
    const load = new Load();
    Load.all.push(load);
    for (let i = 0; i < clients; i++) {
      const client = await login(pooler, { user });
      load.clients.push(client);
      load.loops.push(load.run(client));
    }
    return load;
  }

  private async run(client: RawClient): Promise<void> {
    while (!this.stopping) {
      await start(client, QUERY);
      await client.until('Z');
      this.done++;
    }
  }

  /** Resolves after that many more queries. */
  async more(queries: number): Promise<void> {
    const goal = this.done + queries;
    await eventually(`${queries} more queries`, () => this.done >= goal);
  }

  async stop(): Promise<void> {
    this.stopping = true;
    await Promise.all(this.loops);
    for (const client of this.clients) await client.end();
  }
}

/** Logs in each user while no other needs a connection: a first login has to wait for one. */
async function introduce(pooler: Bouncer, ...users: string[]): Promise<void> {
  for (const user of users) {
    const client = await login(pooler, { user });
    await start(client, 'SELECT 1');
    await client.until('Z');
    await client.end();
  }
}

async function serversOf(pooler: Bouncer, ...users: string[]): Promise<number[]> {
  const rows = await show(pooler, 'SERVERS', {});
  return users.map((user) => rows.filter((row) => row.user === user).length);
}

/** Two loads settle at these numbers of connections. */
async function settlesAt(pooler: Bouncer, loads: Load[], users: string[], wanted: number[]): Promise<void> {
  let inRow = 0;
  await eventually(`${users.join(' and ')} to keep ${wanted.join(' and ')} connections`, async () => {
    for (const load of loads) await load.more(1);
    const now = await serversOf(pooler, ...users);
    inRow = now.every((count, i) => count === wanted[i]) ? inRow + 1 : 0;
    return inRow === STABLE;
  });
}

describe('fair shares of max_db_connections', () => {
  it('without fair_share_timeout, a client waits as long as the connections of another pool are busy', () =>
    withShares({ connections: 2, fairShareTimeout: 0 }, async (pooler) => {
      await introduce(pooler, 'ben');
      const ann = await Load.start(pooler, 'ann', 6);
      await eventually('ann to have all connections', async () => (await serversOf(pooler, 'ann'))[0] === 2);
      const ben = await login(pooler, { user: 'ben' });
      await start(ben, 'SELECT 1');
      await rowsBecome(pooler, 'CLIENTS', { state: 'waiting', user: 'ben' }, 1);
      await ann.more(ENOUGH);
      assert.equal((await show(pooler, 'CLIENTS', { state: 'waiting', user: 'ben' })).length, 1);
      await ann.stop();
      assert.equal(valueIn(await ben.until('Z')), '1');
      await ben.end();
    }));

  it('a pool without connections gets one, and pools of equal weight get equal shares', () =>
    withShares({ connections: 4 }, async (pooler) => {
      await introduce(pooler, 'ben');
      const ann = await Load.start(pooler, 'ann', 8);
      await eventually('ann to have all connections', async () => (await serversOf(pooler, 'ann'))[0] === 4);
      const ben = await Load.start(pooler, 'ben', 8);
      await settlesAt(pooler, [ann, ben], ['ann', 'ben'], [2, 2]);
      // who needs no connection leaves it to the other
      await ben.stop();
      await eventually('ann to have all again', async () => (await serversOf(pooler, 'ann'))[0] === 4);
      await ann.stop();
    }));

  const unequal: [what: string, users: Record<string, string>][] = [
    ['share_weight gives more', { ann: 'share_weight=3' }],
    ['share_minimum is kept, whatever the weights', { ann: 'share_minimum=3', ben: 'share_weight=100' }],
  ];
  for (const [what, users] of unequal) {
    it(what, () =>
      withShares({ connections: 4, users }, async (pooler) => {
        await introduce(pooler, 'ann');
        const ben = await Load.start(pooler, 'ben', 8);
        await eventually('ben to have all connections', async () => (await serversOf(pooler, 'ben'))[0] === 4);
        const ann = await Load.start(pooler, 'ann', 8);
        await settlesAt(pooler, [ann, ben], ['ann', 'ben'], [3, 1]);
        await ann.stop();
        await ben.stop();
      }),
    );
  }

  it('more pools than connections take turns', () =>
    withShares({ connections: 1 }, async (pooler) => {
      await introduce(pooler, 'ann', 'ben', 'cem');
      const loads = [];
      for (const user of ['ann', 'ben', 'cem']) loads.push(await Load.start(pooler, user, 2));
      for (const load of loads) await load.more(5);
      await Promise.all(loads.map((load) => load.stop()));
    }));

  it('no pool waits for a pool that cannot open a connection', () =>
    withShares({ connections: 4, users: { ben: 'max_user_connections=1' } }, async (pooler) => {
      await introduce(pooler, 'ann', 'ben');
      const ben = await Load.start(pooler, 'ben', 4);
      const ann = await Load.start(pooler, 'ann', 8);
      // more than an equal share, which ben cannot have
      await settlesAt(pooler, [ann, ben], ['ann', 'ben'], [3, 1]);
      await ben.stop();
      await eventually('ann to have all', async () => (await serversOf(pooler, 'ann'))[0] === 4);
      await ann.stop();
    }));

  it('no pool waits for a pool whose clients wait for servers that are being reset', () => {
    const reset = "SELECT pg_advisory_xact_lock_shared(1) WHERE current_user = 'ann'";
    const settings = { server_reset_query: reset, server_reset_query_always: 1 };
    return withShares({ connections: 3, settings }, async (pooler) => {
      await introduce(pooler, 'ann', 'ben');
      const locker = await RawClient.connect({ port: pg().port });
      await locker.login();
      await ask(locker, 'SELECT pg_advisory_lock(1)');
      const holders = [];
      for (const user of ['ann', 'ben', 'ben']) holders.push(await login(pooler, { user }));
      for (const client of holders) await ask(client, 'BEGIN');
      const [first, second] = holders as [RawClient, RawClient];
      const waiting = [await login(pooler, { user: 'ann' }), await login(pooler, { user: 'ben' })];
      for (const client of waiting) {
        await start(client, 'SELECT session_user');
        await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, waiting.indexOf(client) + 1);
      }
      await ask(first, 'COMMIT');
      await rowsBecome(pooler, 'SERVERS', { state: 'tested', user: 'ann' }, 1);
      await pg().killBackends(`pid = ${await backendOf(second)}`);
      const [ann, ben] = waiting as [RawClient, RawClient];
      assert.equal(valueIn(await ben.until('Z')), 'ben');
      assert.equal((await show(pooler, 'CLIENTS', { state: 'waiting', user: 'ann' })).length, 1);
      await ask(locker, 'SELECT pg_advisory_unlock(1)');
      assert.equal(valueIn(await ann.until('Z')), 'ann');
      await locker.end();
    });
  });

  it('SHOW WAITS tells what clients wait for, and who has it', () =>
    withShares({ connections: 2, fairShareTimeout: 0 }, async (pooler) => {
      await introduce(pooler, 'ben');
      assert.deepEqual(await show(pooler, 'WAITS', {}), []);
      const holders = [];
      for (let i = 0; i < 2; i++) {
        const client = await login(pooler, { user: 'ann' });
        await start(client, 'BEGIN');
        await client.until('Z');
        holders.push(client);
      }
      const ben = await login(pooler, { user: 'ben' });
      await start(ben, 'SELECT 1');
      await rowsBecome(pooler, 'WAITS', { user: 'ben' }, 1);
      const [row] = await show(pooler, 'WAITS', {});
      assert.deepEqual(
        [row?.database, row?.cl_waiting, row?.waits_for, row?.held_by],
        ['postgres', 1, 'max_db_connections', 'ann=2'],
      );
      for (const client of holders) await client.end();
      assert.equal(valueIn(await ben.until('Z')), '1');
      await ben.end();
    }));

  it('a pool whose last login failed gets its share once it may try again', () =>
    withShares({ connections: 1 }, async (pooler) => {
      await pg().sql('ALTER ROLE ben CONNECTION LIMIT 0');
      assert.match(await refusal(pooler, { user: 'ben' }), /too many connections for role/);
      await pg().sql('ALTER ROLE ben CONNECTION LIMIT -1');
      await Load.start(pooler, 'ann', 4);
      const ben = await login(pooler, { user: 'ben' });
      await start(ben, 'SELECT session_user');
      assert.equal(valueIn(await ben.until('Z')), 'ben');
      await ben.end();
    }));

  it('a client whose pool has no room for another login is not told that logins fail', () =>
    withShares({ connections: 1 }, async (pooler) => {
      await introduce(pooler, 'ben');
      await pg().sql('ALTER ROLE ben CONNECTION LIMIT 0');
      await pg().killBackends("usename = 'ben'");
      await rowsBecome(pooler, 'SERVERS', { user: 'ben' }, 0);
      const first = await login(pooler, { user: 'ben' });
      await start(first, 'SELECT 1');
      assert.match(await thrownOut(first), /too many connections for role/);
      await pg().sql('ALTER ROLE ben CONNECTION LIMIT -1');
      const ann = await Load.start(pooler, 'ann', 4);
      await eventually('server_login_retry to pass', async () => {
        const ben = await login(pooler, { user: 'ben' });
        await start(ben, 'SELECT session_user');
        const answer = await ben.until('ZE');
        await ben.end();
        return answer.at(-1)?.type === 'Z' && valueIn(answer) === 'ben';
      });
      await ann.more(1);
    }));
});
