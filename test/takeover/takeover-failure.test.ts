/*
 * Handovers that fail: if the new process dies, the old process keeps running and no query fails. If the old process
 * dies after it has described everything, the new process owns everything.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { eventually, installed, it, PgCluster, startProgram, user } from '../harness';
import type { Actor, Stage } from '../harness/actor';
import { castOf, play } from '../harness/actors';
import { after, before } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { letters, type Message, RawClient, rowValues } from '../harness/raw-client';
import { PoolerProcess, type RebootChain, withPlace } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(async () => {
  await pg.stop();
});

/** Environment variables that kill a process at that step. */
function dieAt(step: string): NodeJS.ProcessEnv {
  return { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: step };
}

interface Scene {
  place: RebootChain;
  cast: { stage: Stage; actor: Actor }[];
}

/** Runs `body` with a pooler and all actors on both transports. */
async function scene(body: (scene: Scene) => Promise<void>, env: NodeJS.ProcessEnv = {}): Promise<void> {
  const connstr = `host=127.0.0.1 port=${pg.port} dbname=postgres`;
  const databases = {
    postgres: connstr,
    postgres_narrow_tcp: `${connstr} pool_size=1`,
    postgres_narrow_unix: `${connstr} pool_size=1`,
  };
  const settings = {
    pool_mode: 'transaction',
    default_pool_size: 60,
    track_extra_parameters: 'IntervalStyle',
    log_connections: 0,
    log_disconnections: 0,
  };
  await withPlace({ cluster: pg, databases, settings }, async (place) => {
    await place.start('ts', env);
    const cast: { stage: Stage; actor: Actor }[] = [];
    for (const unix of [false, true]) {
      const stage: Stage = { place, unix, database: 'postgres', session: false };
      for (const actor of castOf(stage, true)) cast.push({ stage, actor });
    }
    await body({ place, cast });
  });
}

for (const step of ['take-start', 'take-login', 'take-ahead', 'take-suspended', 'take-row', 'take-complete']) {
  it(`when the new process is killed at ${step}, the old process keeps running and a later takeover succeeds`, () =>
    scene(async ({ place, cast }) => {
      await play(cast, async () => {
        await place.failReboot('ts', dieAt(step));
        if (step !== 'take-start' && step !== 'take-login') await place.now.log.wait(/handover failed, resuming work/);
        assert.equal((await place.sql('SELECT 1 AS one')).rows[0].one, 1);
        await place.reboot('ts');
      });
    }));
}

for (const step of ['give-described', 'give-shutdown', 'give-acknowledged']) {
  it(`when the old process is killed at ${step}, the new process takes over everything`, () =>
    scene(async ({ place, cast }) => {
      await play(cast, async () => {
        const old = place.now;
        const next = await place.spawn('ts', ['-R']).waitUp();
        place.generations.push(next);
        assert.equal((await old.waitEnd()).signal, 'SIGKILL');
        assert.equal(place.pidInFile(), next.pid);
      });
    }, dieAt(step)));
}

it('when the old process is killed before it has described anything, the new process exits and logs why', () =>
  scene(async ({ place }) => {
    const next = place.spawn('ts', ['-R']);
    assert.equal((await next.waitEnd()).code, 1);
    assert.match(next.log.text, /FATAL.*unexpected EOF/);
    assert.equal((await place.now.waitEnd()).signal, 'SIGKILL');
  }, dieAt('give-still')));

it('when the new process runs out of file descriptors, the old process keeps running', () =>
  scene(async ({ place, cast }) => {
    await play(cast, async () => {
      const { node, mainJs } = installed();
      const child = startProgram('/bin/sh', ['-c', `ulimit -n 40; exec "${node}" "${mainJs}" -R "${place.ini}"`], {
        cwd: place.dir,
        stdio: ['ignore', 'ignore', 'pipe'],
        ...spawnAs(user),
      });
      const next = new PoolerProcess('ts', child);
      assert.notEqual((await next.waitEnd()).code, 0);
      await place.now.log.wait(/handover failed, resuming work/);
    });
  }));

it('a new process with a bad config does not disturb the old process', () =>
  scene(async ({ place, cast }) => {
    await play(cast, async () => {
      const from = place.now.log.mark();
      place.write({ settings: { pool_mode: 'no such mode' } });
      await place.failReboot();
      place.write({ settings: { listen_addr: 'no.such.host.invalid' } });
      const next = await place.failReboot();
      assert.match(next.log.text, /FATAL getaddrinfo\('no\.such\.host\.invalid'/);
      place.write({ settings: { pidfile: '/no/such/folder/pooler.pid' } });
      await place.failReboot();
      assert.equal(place.now.log.count(/HANDOVER command issued|SUSPEND command issued/, from), 0);
    });
  }));

/** A relay that runs as the pooler's user, so that the pooler sees that user as its peer. */
const RELAY = `
const net = require('node:net');
net.createServer((from) => {
  const to = net.connect(process.argv[1]);
  from.pipe(to);
  to.pipe(from);
  for (const end of [from, to]) end.on('error', () => {}).on('close', () => { from.destroy(); to.destroy(); });
}).listen(process.argv[2], () => console.error('listening'));
`;

/** Opens a connection to the console as a new process does. */
async function connectAsNewProcess(place: RebootChain): Promise<RawClient> {
  const path = join(place.dir, `relay${place.relays++}`);
  const relay = startProgram(installed().node, ['-e', RELAY, place.socketPath, path], {
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  await new LogTail(relay).wait(/listening/);
  const client = await RawClient.connect({ path });
  client.socket.once('close', () => relay.kill());
  const answer = await client.login({ user: 'pgbouncer', database: 'pgbouncer' });
  assert.equal(answer.at(-1)?.type, 'Z');
  return client;
}

function errorOf(text: Buffer): string {
  return /\0M([^\0]*)\0/.exec(text.toString('latin1'))?.[1] ?? '';
}

/** Runs a handover until the old process is frozen; returns the messages that it sent after the freeze. */
async function askForAll(client: RawClient): Promise<Message[]> {
  await client.sendMessage('Q', Buffer.from('HANDOVER 1;\0'));
  for (let text = ''; !text.includes('"aheadEnd"'); )
    text = `${(await client.until('d')).at(-1)?.body.toString('latin1')}`;
  await client.sendMessage('Q', Buffer.from('HANDOVER READY;\0'));
  return client.until('Z');
}

it('the old process resumes when the new process disconnects without SHUTDOWN', () =>
  scene(async ({ place, cast }) => {
    await play(cast, async () => {
      const client = await connectAsNewProcess(place);
      const records = await askForAll(client);
      assert.ok(letters(records).startsWith('dd'));
      const waits = place.sql('SELECT 1 AS one');
      await client.destroy();
      assert.equal((await waits).rows[0].one, 1);
      await place.now.log.wait(/handover failed, resuming work/);
    });
  }));

it('a new process that sends another command instead of SHUTDOWN is disconnected', () =>
  scene(async ({ place }) => {
    const client = await connectAsNewProcess(place);
    await askForAll(client);
    await client.sendMessage('Q', Buffer.from('SHOW VERSION;\0'));
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /only SHUTDOWN/);
    assert.equal((await place.sql('SELECT 2 AS two')).rows[0].two, 2);
  }));

it('a new process that never becomes ready is disconnected after suspend_timeout while clients are busy', () =>
  withPlace({ cluster: pg, settings: { suspend_timeout: 1 } }, async (place) => {
    await place.start('ts');
    const client = await connectAsNewProcess(place);
    await client.sendMessage('Q', Buffer.from('HANDOVER 1;\0'));
    let over = false;
    const busy = (async () => {
      while (!over) await place.sql('SELECT 1');
    })();
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /handover timeout/);
    over = true;
    await busy;
  }));

it('a new process that falls silent is disconnected after suspend_timeout', () =>
  withPlace({ cluster: pg, settings: { suspend_timeout: 1 } }, async (place) => {
    await place.start('ts');
    const client = await connectAsNewProcess(place);
    await askForAll(client);
    const late = place.sql('SELECT 3 AS three');
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /handover timeout/);
    assert.equal((await late).rows[0].three, 3);
  }));

it('HANDOVER is refused for clients that are not the owner of the process', () =>
  withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const owner = await connectAsNewProcess(place);
    const admin = await place.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
    await assert.rejects(admin.query('HANDOVER 1'), /handover is only allowed for the owner of the process/);
    await assert.rejects(admin.query('HANDOVER'), /bad handover format/);
    await admin.query('SUSPEND');
    const refused = await owner.query('HANDOVER 1;');
    assert.match(errorOf(refused[0]?.body ?? Buffer.alloc(0)), /already suspended/);
    await admin.query('RESUME');
    await owner.end();
    await admin.end();
  }));

it('a second HANDOVER is refused while another handover is under way, and accepted afterwards', () =>
  withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const [first, second] = [await connectAsNewProcess(place), await connectAsNewProcess(place)];
    await askForAll(first);
    await second.sendMessage('Q', Buffer.from('HANDOVER 1;\0'));
    await assert.rejects(second.next(300), /waited/);
    await first.destroy();
    // the first handover has ended by then
    assert.equal(letters(await second.until('d')).at(-1), 'd');
    await second.destroy();
    assert.equal((await place.sql('SELECT 1 AS one')).rows[0].one, 1);
  }));

it('HANDOVER with a newer format number is answered in the format of this version', () =>
  withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const client = await connectAsNewProcess(place);
    await client.sendMessage('Q', Buffer.from('HANDOVER 99;\0'));
    const first = (await client.until('d')).at(-1);
    const text = first?.body.toString('latin1', 4, 4 + first.body.readUInt32BE(0)) ?? '';
    assert.equal((JSON.parse(text) as { format: number }).format, 1);
  }));

it('two simultaneous takeovers both succeed or one is refused, and no query fails', () =>
  scene(async ({ place, cast }) => {
    await play(cast, async () => {
      const old = place.now;
      const both = [place.spawn('ts', ['-R']), place.spawn('ts', ['-R'])];
      place.generations.push(...both);
      await old.waitEnd();
      await eventually('one process to be left', () => {
        const alive = both.filter((one) => one.end === null);
        return alive.length === 1 && /process up/.test(alive[0]?.log.text ?? '') && place.pidInFile() === alive[0]?.pid;
      });
      for (const one of both) if (one.end !== null) assert.ok(one.end.code === 0 || one.end.code === 1, one.log.text);
    });
  }));

it('-R without an old process boots as usual, even with a stale socket file', () =>
  withPlace({ cluster: pg }, async (place) => {
    const first = await place.spawn('ts', ['-R']).waitUp();
    place.generations.push(first);
    assert.match(first.log.text, /old process not found, try to continue normally/);
    await first.kill('SIGKILL');
    // the socket file and the pidfile of the killed process still exist
    const second = await place.spawn('ts', ['-R']).waitUp();
    place.generations.push(second);
    assert.match(second.log.text, /old process not found[\s\S]*stale pidfile, removing/);
    assert.equal((await place.sql('SELECT 1 AS one')).rows[0].one, 1);
  }));

it('-R without a Unix socket, or with an abstract Unix socket, fails and logs why', () =>
  withPlace({ cluster: pg }, async (place) => {
    place.write({ settings: { unix_socket_dir: '' } });
    const none = place.spawn('ts', ['-R']);
    assert.equal((await none.waitEnd()).code, 1);
    assert.match(none.log.text, /FATAL cannot reboot if unix dir not configured/);
    place.write({ settings: { unix_socket_dir: `@${place.dir}` } });
    const abstract = place.spawn('ts', ['-R']);
    assert.equal((await abstract.waitEnd()).code, 1);
    assert.match(abstract.log.text, /FATAL cannot reboot with abstract Unix socket/);
  }));

it('a Unix socket with a running pooler is fatal without -R', () =>
  withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const second = place.spawn('ts');
    assert.equal((await second.waitEnd()).code, 1);
    assert.match(second.log.text, /FATAL unix socket is in use, cannot continue/);
  }));

it('the old process refuses -R by another user and keeps running', async () => {
  await withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const { node, mainJs } = installed();
    const ini = join(place.dir, 'other.ini');
    writeFileSync(
      ini,
      `[databases]\n[pgbouncer]\nlisten_port = ${place.port}\nunix_socket_dir = ${place.dir}\nauth_type = trust\n`,
    );
    giveTo(user, place.dir);
    const uid = (user?.uid ?? 0) === 65533 ? 65532 : 65533;
    const as = { uid, gid: uid };
    const child = startProgram(node, [mainJs, '-R', ini], { cwd: '/', stdio: ['ignore', 'ignore', 'pipe'], ...as });
    const other = new PoolerProcess('ts', child);
    assert.equal((await other.waitEnd()).code, 1);
    assert.match(other.log.text, /login failed/);
    assert.equal((await place.sql('SELECT 1 AS one')).rows[0].one, 1);
  });
});

it('SUSPEND on the console holds queries up until RESUME', () =>
  withPlace({ cluster: pg }, async (place) => {
    await place.start('ts');
    const client = await place.raw();
    await client.login();
    const admin = await place.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
    await admin.query('SUSPEND');
    await client.sendMessage('Q', Buffer.from("SELECT 'late'\0"));
    await assert.rejects(client.next(300), /waited/);
    await admin.query('RESUME');
    const rows = (await client.until('Z')).filter((msg) => msg.type === 'D').map(rowValues);
    assert.deepEqual(rows, [['late']]);
  }));
