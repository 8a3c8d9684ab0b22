/*
 * Steps of the wall clock, which must not move any deadline. First the timers and the conversions alone, then a pooler
 * whose wall clock is set an hour back or forward while every timeout is running, also during reboots.
 *
 *     TSBOUNCER_TABLE=1 npm test -- clock      prints when each timeout struck
 */

import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:net';
import { native, waitClock } from '../../src/core/base/native';
import {
  fromWallTime,
  getCachedTime,
  readClock,
  setTimeCache,
  USEC,
  type WallTime,
  wallTime,
} from '../../src/core/base/time';
import { newTimer, runTimers, timerStart, timerStop, timerWaitMs } from '../../src/core/base/timer';
import { freePort } from '../../tools/postgres';
import { it, PgCluster } from '../harness';
import { ask, login, start, withPooler } from '../harness/answers';
import { startTestLoop } from '../harness/backend';
import type { Bouncer } from '../harness/bouncer';
import { WallClock } from '../harness/clock';
import { after, before, describe } from '../harness/limits';
import { errorFields, type RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

const HOUR = 3600;
const STEPS = [-HOUR, HOUR];

/** Runs with clocks that the test sets. */
function withClocks(body: (clocks: { now: number; wallAhead: number }) => void): void {
  const { readClock: real, wallOffset } = native;
  const clocks = { now: real(), wallAhead: 0 };
  const first = wallOffset();
  native.readClock = () => clocks.now;
  native.wallOffset = () => first + clocks.wallAhead;
  try {
    body(clocks);
  } finally {
    native.readClock = real;
    native.wallOffset = wallOffset;
  }
}

describe('timers', () => {
  it('timers use the same clock for arming and for comparing', () => {
    startTestLoop(65536);
    const before = readClock();
    native.wait(0);
    const turn = waitClock[0] as number;
    assert.ok(before <= turn && turn <= readClock(), `${before} ${turn}`);
    assert.ok(before > 1e15, 'an instant soon after the boot could be 0');
  });

  it('timers fire after their time whatever the wall clock does', () => {
    for (const step of STEPS) {
      withClocks((clocks) => {
        const fired: string[] = [];
        const once = newTimer(() => fired.push('once'));
        const often = newTimer(() => fired.push('often'));
        timerStart(once, 2 * USEC, 0);
        timerStart(often, 3 * USEC, 3 * USEC);
        clocks.wallAhead = step * USEC;
        assert.equal(timerWaitMs(clocks.now), 2000);
        clocks.now += 2 * USEC - 1;
        runTimers(clocks.now);
        assert.deepEqual(fired, []);
        clocks.now += 1;
        runTimers(clocks.now);
        assert.deepEqual(fired, ['once']);
        clocks.now += 10 * USEC;
        runTimers(clocks.now);
        runTimers(clocks.now);
        // late: once, not once for each missed period
        assert.deepEqual(fired, ['once', 'often']);
        timerStop(often);
        assert.equal(timerWaitMs(clocks.now), -1);
      });
    }
  });
});

describe('wall time', () => {
  it('the wall time of an instant uses the current offset; 0 stays "not set"', () => {
    withClocks((clocks) => {
      const instant = clocks.now - 5 * USEC;
      const first = wallTime(instant) as unknown as number;
      clocks.wallAhead = HOUR * USEC;
      clocks.now += USEC;
      assert.equal((wallTime(instant) as unknown as number) - first, HOUR * USEC);
      assert.equal(wallTime(0), 0);
      assert.equal(fromWallTime(wallTime(0)), 0);
    });
  });

  it('wall time converts back to the same instant in another process, even after a step', () => {
    for (const step of STEPS) {
      withClocks((clocks) => {
        clocks.wallAhead = step * USEC;
        clocks.now += USEC;
        const instant = clocks.now - 7 * USEC;
        assert.equal(fromWallTime(wallTime(instant)), instant);
      });
    }
  });

  it('a wall time in the future counts as now, and a wall time before the boot is not 0', () => {
    withClocks((clocks) => {
      clocks.now += USEC;
      const future = wallTime(clocks.now + HOUR * USEC);
      assert.equal(fromWallTime(future), clocks.now);
      assert.ok(fromWallTime(1 as unknown as WallTime) >= 1);
      assert.equal(fromWallTime(undefined as unknown as WallTime), 0);
    });
  });

  it('wall time can be read before the first turn of the loop', () => {
    setTimeCache(0);
    assert.ok(Math.abs(getCachedTime() - readClock()) < 60 * USEC);
    const wall = wallTime(getCachedTime()) as unknown as number;
    assert.ok(Math.abs(wall / 1000 - Date.now()) < 60_000);
  });
});

/* ---- a pooler ---- */

let pg: PgCluster;
/** accepts connections and stays silent */
let mute: Server;
let mutePort = 0;

before(async () => {
  pg = await PgCluster.start();
  for (const name of ['ann', 'bob', 'carl', 'dora']) await pg.createUser(name, '', 'none');
  mute = createServer(() => {});
  mutePort = await freePort();
  await new Promise<void>((settle) => mute.listen(mutePort, '127.0.0.1', settle));
});
after(async () => {
  mute.close();
  await pg.stop();
});

const LIMIT_S = 3;
/** Allowance for a loaded machine; an effect of the wall clock would be an hour. */
const MARGIN_S = 10;

function options(env: NodeJS.ProcessEnv) {
  return {
    databases: {
      postgres: pg.connstr(),
      narrow: pg.connstr('postgres', `pool_size=1 query_wait_timeout=${LIMIT_S}`),
      short: pg.connstr('postgres', `server_lifetime=${LIMIT_S}`),
      idle: pg.connstr(),
      mute: `host=127.0.0.1 port=${mutePort} dbname=postgres`,
    },
    users: {
      ann: `query_timeout=${LIMIT_S}`,
      bob: `idle_transaction_timeout=${LIMIT_S}`,
      carl: `client_idle_timeout=${LIMIT_S}`,
      dora: `transaction_timeout=${LIMIT_S}`,
    },
    userlist: { ann: '', bob: '', carl: '', dora: '' },
    settings: {
      pool_mode: 'transaction',
      client_login_timeout: LIMIT_S,
      server_idle_timeout: LIMIT_S + 1,
      server_connect_timeout: LIMIT_S,
      log_connections: 1,
    },
    env: { ...env, TZ: 'UTC' },
  };
}

/** The text of the error that ends a client. */
async function lastWords(client: RawClient): Promise<string> {
  const error = (await client.until('E', (LIMIT_S + MARGIN_S) * 1000)).at(-1);
  return error === undefined ? '' : (errorFields(error).M ?? '');
}

/** Checks that the text begins with the time of a clock that is that many seconds ahead. */
function assertShown(text: string, seconds: number): void {
  const shown = Date.parse(`${text.slice(0, 19).replace(' ', 'T')}Z`);
  assert.ok(Math.abs(shown - Date.now() - seconds * 1000) < 60_000, text);
}

interface Victim {
  limit: string;
  seconds: number;
  begun: number;
  struck: Promise<string>;
  /** part of what is said then */
  says: string;
}

/** Starts an operation for every timeout. Each settles when its timeout ends it. */
async function victims(pooler: Bouncer): Promise<Victim[]> {
  const list: Victim[] = [];
  const add = (limit: string, says: string, struck: Promise<unknown>, seconds = LIMIT_S): void => {
    list.push({ limit, seconds, begun: performance.now(), struck: struck.then(String), says });
  };
  const logged = (pattern: RegExp) => pooler.logWait(pattern, 0, (LIMIT_S + MARGIN_S) * 1000);

  const silent = await pooler.raw();
  // the kernel defers accepting a connection without data for a while
  await silent.send(Buffer.alloc(3));
  add('client_login_timeout', 'client_login_timeout', lastWords(silent));
  const holder = await login(pooler, { database: 'narrow' });
  await ask(holder, 'BEGIN');
  const waiting = await login(pooler, { database: 'narrow' });
  await start(waiting, 'SELECT 1');
  add('query_wait_timeout', 'query_wait_timeout', lastWords(waiting));
  const ann = await login(pooler, { user: 'ann' });
  await start(ann, 'SELECT pg_sleep(60)');
  add('query_timeout', 'query timeout', lastWords(ann));
  const bob = await login(pooler, { user: 'bob' });
  await ask(bob, 'BEGIN');
  add('idle_transaction_timeout', 'idle transaction timeout', lastWords(bob));
  const carl = await login(pooler, { user: 'carl' });
  add('client_idle_timeout', 'client_idle_timeout', lastWords(carl));
  const dora = await login(pooler, { user: 'dora' });
  await start(dora, 'BEGIN; SELECT pg_sleep(60)');
  add('transaction_timeout', 'transaction timeout', lastWords(dora));
  await ask(await login(pooler, { database: 'short' }), 'SELECT 1');
  add('server_lifetime', 'lifetime', logged(/S-\w+: short[^\n]*server lifetime over/));
  await ask(await login(pooler, { database: 'idle' }), 'SELECT 1');
  add('server_idle_timeout', 'idle', logged(/S-\w+: idle[^\n]*server idle timeout/), LIMIT_S + 1);
  const late = await pooler.raw();
  await late.startup({ user: 'postgres', database: 'mute' });
  add('server_connect_timeout', 'connect timeout', logged(/S-\w+: mute[^\n]*connect timeout/));
  return list;
}

describe('the wall clock of a pooler is set', () => {
  for (const step of STEPS) {
    it(`every timeout ends on time when the wall clock is set an hour ${step < 0 ? 'back' : 'forward'}`, async () => {
      const clock = new WallClock();
      await withPooler(options(clock.env), async (pooler) => {
        const list = await victims(pooler);
        clock.set(step);
        await Promise.all(
          list.map(async ({ limit, seconds, begun, struck, says }) => {
            assert.match(await struck, new RegExp(says), limit);
            const tookS = (performance.now() - begun) / 1000;
            if (process.env.TSBOUNCER_TABLE) console.log(`${step} s | ${limit} | ${seconds} s | ${tookS.toFixed(2)} s`);
            // starting the operations takes time: some began a little before the recorded time
            assert.ok(tookS > seconds - 1.5 && tookS < seconds + MARGIN_S, `${limit} struck after ${tookS} s`);
          }),
        );
        const clients = await pooler.admin('SHOW CLIENTS');
        assertShown(String(clients[0]?.connect_time), step);
        assertShown(pooler.log.text.trimEnd().split('\n').at(-1)?.slice(0, 19) ?? '', step);
      });
    });
  }

  it('no query fails or waits when the wall clock is set while clients work', async () => {
    const clock = new WallClock();
    await withPooler(options(clock.env), async (pooler) => {
      const client = await login(pooler);
      for (const step of [...STEPS, ...STEPS]) {
        clock.set(step);
        assert.equal(await ask(client, 'SELECT 1'), '1');
        assert.equal(await ask(await login(pooler), 'SELECT 2'), '2');
      }
    });
  });
});

describe('the wall clock is set during a reboot', () => {
  for (const step of STEPS) {
    it(`a reboot keeps connection ages when the wall clock is set an hour ${step < 0 ? 'back' : 'forward'} meanwhile`, async () => {
      const clock = new WallClock();
      const settings = { pool_mode: 'transaction', client_idle_timeout: 0, query_wait_timeout: 0 };
      await withRebootChain({ cluster: pg, settings }, async (chain) => {
        await chain.start('ts', clock.env);
        const busy = await chain.raw();
        await busy.login();
        await ask(busy, 'BEGIN');
        // before, during and after the reboot
        clock.set(step);
        await chain.reboot('ts', clock.env);
        const next = chain.spawn('ts', ['-R'], clock.env);
        const old = chain.now;
        await old.log.wait(/HANDOVER command issued/);
        clock.set(0);
        await next.waitUp();
        chain.generations.push(next);
        await old.waitEnd();
        assert.equal(await ask(busy, 'SELECT 1'), '1');
        const [shown] = (await chain.show('CLIENTS')).filter((row) => row.database === 'postgres');
        assert.ok(Number(shown?.wait) < 60, 'the client seems to wait for an hour');
      });
    });
  }

  it('no client is taken for idle when the wall clock is set forward before the new process has read its record', async () => {
    const clock = new WallClock();
    const settings = { pool_mode: 'transaction', client_idle_timeout: 600 };
    await withRebootChain({ cluster: pg, settings }, async (chain) => {
      await chain.start('ts', clock.env);
      const client = await chain.raw();
      await client.login();
      const stop = { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: 'take-ahead' };
      const next = chain.spawn('ts', ['-R'], { ...clock.env, ...stop });
      await next.waitStopped();
      // the old process sends what the new one does not read yet
      await chain.now.log.wait(/HANDOVER command issued/);
      await new Promise((wake) => setTimeout(wake, 300));
      clock.set(HOUR);
      next.child.kill('SIGCONT');
      await next.waitUp();
      chain.generations.push(next);
      // maintenance runs three times a second
      await new Promise((wake) => setTimeout(wake, 1000));
      assert.equal(await ask(client, 'SELECT 1'), '1');
      const [shown] = (await chain.show('CLIENTS')).filter((row) => row.database === 'postgres');
      assertShown(String(shown?.connect_time), HOUR);
    });
  });
});
