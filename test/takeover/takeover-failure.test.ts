/*
 * Handovers that fail: if the new process dies, the old process keeps running and no query fails. If the old process
 * dies after it has described everything, the new process owns everything.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { eventually, installed, it, PgCluster, startProgram, user } from '../harness';
import type { Actor, ActorContext } from '../harness/actor';
import { castOf, play } from '../harness/actors';
import { recordsOf } from '../harness/handover-records';
import { after, before } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { itUnless, notRoot } from '../harness/needs';
import { letters, type Message, type RawClient, rowValues } from '../harness/raw-client';
import { PoolerProcess, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { connectAs } from '../harness/relay';
import { TlsPlace } from '../harness/tls-place';

const place = new TlsPlace();
let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start({ settings: place.ofServers });
});
after(async () => {
  await pg.stop();
});

/** Environment variables that kill a process at that step. */
function dieAt(step: string): NodeJS.ProcessEnv {
  return { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: step };
}

interface Scene {
  chain: RebootChain;
  cast: { context: ActorContext; actor: Actor }[];
}

/** Runs `body` with a pooler and all actors on both transports: those over TCP use TLS, and their servers too. */
async function scene(body: (scene: Scene) => Promise<void>, env: NodeJS.ProcessEnv = {}): Promise<void> {
  const [safe, plain] = ['127.0.0.1', pg.socketDir].map((host) => `host=${host} port=${pg.port} dbname=postgres`);
  const databases = {
    postgres: `${safe}`,
    postgres_narrow_tcp: `${safe} pool_size=1`,
    local: `${plain}`,
    local_narrow_unix: `${plain} pool_size=1`,
  };
  const settings = {
    pool_mode: 'transaction',
    default_pool_size: 60,
    track_extra_parameters: 'IntervalStyle',
    log_connections: 0,
    log_disconnections: 0,
  };
  await withRebootChain(place.secure({ cluster: pg, databases, settings }), async (chain) => {
    await chain.start('ts', env);
    const cast: { context: ActorContext; actor: Actor }[] = [];
    for (const unix of [false, true]) {
      const context: ActorContext = { chain, unix, database: unix ? 'local' : 'postgres', session: false };
      for (const actor of castOf(context, true)) cast.push({ context, actor });
    }
    await body({ chain, cast });
  });
}

for (const step of ['take-start', 'take-login', 'take-ahead', 'take-suspended', 'take-row', 'take-complete']) {
  it(`when the new process is killed at ${step}, the old process keeps running and a later takeover succeeds`, () =>
    scene(async ({ chain, cast }) => {
      await play(cast, async () => {
        await chain.failReboot('ts', dieAt(step));
        if (step !== 'take-start' && step !== 'take-login') await chain.now.log.wait(/handover failed, resuming work/);
        assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
        await chain.reboot('ts');
      });
    }));
}

for (const step of ['give-described', 'give-shutdown', 'give-acknowledged']) {
  it(`when the old process is killed at ${step}, the new process takes over everything`, () =>
    scene(async ({ chain, cast }) => {
      await play(cast, async () => {
        const old = chain.now;
        const next = await chain.spawn('ts', ['-R']).waitUp();
        chain.generations.push(next);
        assert.equal((await old.waitEnd()).signal, 'SIGKILL');
        assert.equal(chain.pidInFile(), next.pid);
      });
    }, dieAt(step)));
}

it('when the old process is killed before it has described anything, the new process exits and logs why', () =>
  scene(async ({ chain }) => {
    const next = chain.spawn('ts', ['-R']);
    assert.equal((await next.waitEnd()).code, 1);
    assert.match(next.log.text, /FATAL.*unexpected EOF/);
    assert.equal((await chain.now.waitEnd()).signal, 'SIGKILL');
  }, dieAt('give-frozen')));

it('when the new process runs out of file descriptors, the old process keeps running', () =>
  scene(async ({ chain, cast }) => {
    await play(cast, async () => {
      const { node, mainJs } = installed();
      const child = startProgram('/bin/sh', ['-c', `ulimit -n 40; exec "${node}" "${mainJs}" -R "${chain.ini}"`], {
        cwd: chain.dir,
        stdio: ['ignore', 'ignore', 'pipe'],
        ...spawnAs(user),
      });
      const next = new PoolerProcess('ts', child);
      assert.notEqual((await next.waitEnd()).code, 0);
      assert.match(next.log.text, /got row without fd info: out of file descriptors\?/);
      await chain.now.log.wait(/handover failed, resuming work/);
    });
  }));

it('a new process with a bad config does not disturb the old process', () =>
  scene(async ({ chain, cast }) => {
    await play(cast, async () => {
      const from = chain.now.log.mark();
      chain.write({ settings: { pool_mode: 'no such mode' } });
      await chain.failReboot();
      chain.write({ settings: { listen_addr: 'no.such.host.invalid' } });
      const next = await chain.failReboot();
      assert.match(next.log.text, /FATAL getaddrinfo\('no\.such\.host\.invalid'/);
      chain.write({ settings: { pidfile: '/no/such/folder/pooler.pid' } });
      await chain.failReboot();
      assert.equal(chain.now.log.count(/HANDOVER command issued|SUSPEND command issued/, from), 0);
    });
  }));

it('a pidfile of another running process is refused, and stays', () =>
  scene(async ({ chain, cast }) => {
    await play(cast, async () => {
      const pidfile = join(chain.dir, 'other.pid');
      const other = startProgram('sleep', ['1000'], spawnAs(user));
      writeFileSync(pidfile, `${other.pid}\n`);
      giveTo(user, pidfile);
      chain.write({ settings: { pidfile } });
      const next = await chain.failReboot();
      assert.match(next.log.text, /FATAL pidfile '.*\/other\.pid' exists, another instance running\?/);
      assert.equal(readFileSync(pidfile, 'latin1'), `${other.pid}\n`);
      await chain.now.log.wait(/handover failed, resuming work/);
      // as if it had ended without removing its file
      other.kill('SIGKILL');
      await once(other, 'close');
      await chain.reboot('ts');
      assert.equal(Number(readFileSync(pidfile, 'latin1')), chain.now.pid);
    });
  }));

/** Opens a connection to the console as a new process does. */
async function connectAsNewProcess(chain: RebootChain): Promise<RawClient> {
  const client = await connectAs(user, chain.socketPath, join(chain.dir, `relay${chain.relays++}`));
  const answer = await client.login({ user: 'pgbouncer', database: 'pgbouncer' });
  assert.equal(answer.at(-1)?.type, 'Z');
  return client;
}

/** The console of a PgBouncer 1.26, which has no command that hands over: it prints the queries that it refuses. */
const CONSOLE_1_26 = `
const message = (type, ...parts) => {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
};
const ready = message('Z', 'I');
require('node:net').createServer((socket) => {
  let startup = true;
  socket.on('error', () => {}).on('data', (data) => {
    if (startup) {
      startup = false;
      socket.write(Buffer.concat([message('R', [0, 0, 0, 0]), message('S', 'server_version\\0' + '1.26.1/bouncer\\0'), ready]));
    } else if (data[0] === 0x51) {
      const query = data.toString('latin1', 5, data.length - 1);
      console.error('refused ' + query);
      const text = "invalid command '" + query + "', use SHOW HELP;";
      socket.write(Buffer.concat([message('E', 'SERROR\\0C08P01\\0M' + text + '\\0\\0'), ready]));
    }
  });
}).listen(process.argv[1], () => console.error('listening'));
`;

it('-R against PgBouncer 1.26, which cannot hand over, fails at once and logs why', async () => {
  await withRebootChain({ cluster: pg }, async (chain) => {
    const old = startProgram(installed().node, ['-e', CONSOLE_1_26, chain.socketPath], {
      stdio: ['ignore', 'ignore', 'pipe'],
      ...spawnAs(user),
    });
    const log = new LogTail(old);
    await log.wait(/listening/);
    const next = chain.spawn('ts', ['-R']);
    assert.equal((await next.waitEnd()).code, 1);
    assert.match(next.log.text, /FATAL the old process cannot hand over, as PgBouncer from 1\.26 on: stop it/);
    assert.deepEqual(log.text.match(/refused .*/g), ['refused HANDOVER 3;', 'refused SUSPEND;']);
    assert.equal(old.exitCode, null, 'the old process keeps running');
    old.kill();
  });
});

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
  scene(async ({ chain, cast }) => {
    await play(cast, async () => {
      const client = await connectAsNewProcess(chain);
      const records = await askForAll(client);
      assert.ok(letters(records).startsWith('dd'));
      const waits = chain.sql('SELECT 1 AS one');
      await client.destroy();
      assert.equal((await waits).rows[0].one, 1);
      await chain.now.log.wait(/handover failed, resuming work/);
    });
  }));

it('a new process that sends another command instead of SHUTDOWN is disconnected', () =>
  scene(async ({ chain }) => {
    const client = await connectAsNewProcess(chain);
    await askForAll(client);
    await client.sendMessage('Q', Buffer.from('SHOW VERSION;\0'));
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /only SHUTDOWN/);
    assert.equal((await chain.sql('SELECT 2 AS two')).rows[0].two, 2);
  }));

it('a new process that never becomes ready is disconnected after suspend_timeout while clients are busy', () =>
  withRebootChain({ cluster: pg, settings: { suspend_timeout: 1 } }, async (chain) => {
    await chain.start('ts');
    const client = await connectAsNewProcess(chain);
    await client.sendMessage('Q', Buffer.from('HANDOVER 1;\0'));
    let over = false;
    const busy = (async () => {
      while (!over) await chain.sql('SELECT 1');
    })();
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /handover timeout/);
    over = true;
    await busy;
  }));

it('a new process that falls silent is disconnected after suspend_timeout', () =>
  withRebootChain({ cluster: pg, settings: { suspend_timeout: 1 } }, async (chain) => {
    await chain.start('ts');
    const client = await connectAsNewProcess(chain);
    await askForAll(client);
    const late = chain.sql('SELECT 3 AS three');
    const error = (await client.until('E')).at(-1);
    assert.match(errorOf(error?.body ?? Buffer.alloc(0)), /handover timeout/);
    assert.equal((await late).rows[0].three, 3);
  }));

it('HANDOVER is refused for clients that are not the owner of the process', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const owner = await connectAsNewProcess(chain);
    const admin = await chain.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
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
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const [first, second] = [await connectAsNewProcess(chain), await connectAsNewProcess(chain)];
    await askForAll(first);
    await second.sendMessage('Q', Buffer.from('HANDOVER 1;\0'));
    let answered = false;
    // one wait from the start: an abandoned one would take the first bytes of the answer
    const answer = second.until('d').finally(() => {
      answered = true;
    });
    await new Promise((wake) => setTimeout(wake, 300));
    assert.equal(answered, false);
    await first.destroy();
    // the first handover has ended by then
    assert.equal(letters(await answer).at(-1), 'd');
    await second.destroy();
    assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
  }));

it('HANDOVER with a newer format number is answered in the format of this version', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const client = await connectAsNewProcess(chain);
    await client.sendMessage('Q', Buffer.from('HANDOVER 99;\0'));
    const first = (await client.until('d')).at(-1);
    const text = first?.body.toString('latin1', 4, 4 + first.body.readUInt32BE(0)) ?? '';
    assert.equal((JSON.parse(text) as { format: number }).format, 3);
  }));

it('two simultaneous takeovers both succeed or one is refused, and no query fails', () =>
  scene(async ({ chain, cast }) => {
    await play(cast, async () => {
      const old = chain.now;
      const both = [chain.spawn('ts', ['-R']), chain.spawn('ts', ['-R'])];
      chain.generations.push(...both);
      await old.waitEnd();
      await eventually('one process to be left', () => {
        const alive = both.filter((one) => one.end === null);
        return alive.length === 1 && /process up/.test(alive[0]?.log.text ?? '') && chain.pidInFile() === alive[0]?.pid;
      });
      for (const one of both) if (one.end !== null) assert.ok(one.end.code === 0 || one.end.code === 1, one.log.text);
    });
  }));

it('-R without an old process boots as usual, even with a stale socket file', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    const first = await chain.spawn('ts', ['-R']).waitUp();
    chain.generations.push(first);
    assert.match(first.log.text, /old process not found, try to continue normally/);
    await first.kill('SIGKILL');
    // the socket file and the pidfile of the killed process still exist
    const second = await chain.spawn('ts', ['-R']).waitUp();
    chain.generations.push(second);
    assert.match(second.log.text, /old process not found[\s\S]*stale pidfile, removing/);
    assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
  }));

it('-R without a Unix socket, or with an abstract Unix socket, fails and logs why', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    chain.write({ settings: { unix_socket_dir: '' } });
    const none = chain.spawn('ts', ['-R']);
    assert.equal((await none.waitEnd()).code, 1);
    assert.match(none.log.text, /FATAL cannot reboot if unix dir not configured/);
    chain.write({ settings: { unix_socket_dir: `@${chain.dir}` } });
    const abstract = chain.spawn('ts', ['-R']);
    assert.equal((await abstract.waitEnd()).code, 1);
    assert.match(abstract.log.text, /FATAL cannot reboot with abstract Unix socket/);
  }));

it('a Unix socket with a running pooler is fatal without -R', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const second = chain.spawn('ts');
    assert.equal((await second.waitEnd()).code, 1);
    assert.match(second.log.text, /FATAL unix socket is in use, cannot continue/);
  }));

it('the old process refuses -R by another user and keeps running', async () => {
  await withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const { node, mainJs } = installed();
    const ini = join(chain.dir, 'other.ini');
    writeFileSync(
      ini,
      `[databases]\n[pgbouncer]\nlisten_port = ${chain.port}\nunix_socket_dir = ${chain.dir}\nauth_type = trust\n`,
    );
    giveTo(user, chain.dir);
    const uid = (user?.uid ?? 0) === 65533 ? 65532 : 65533;
    const as = { uid, gid: uid };
    const child = startProgram(node, [mainJs, '-R', ini], { cwd: '/', stdio: ['ignore', 'ignore', 'pipe'], ...as });
    const other = new PoolerProcess('ts', child);
    assert.equal((await other.waitEnd()).code, 1);
    assert.match(other.log.text, /login failed/);
    assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
  });
});

/** Answers every login, and prints what it is asked. */
const FALSE_CONSOLE = `
require('node:net').createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', () => {
    socket.write('R\\0\\0\\0\\x08\\0\\0\\0\\0Z\\0\\0\\0\\x05I', 'latin1');
    socket.on('data', (bytes) => console.error('asked: ' + bytes.toString('latin1', 5)));
  });
}).listen(process.argv[1], () => {
  require('node:fs').chmodSync(process.argv[1], 0o777);
  console.error('listening');
});
`;

itUnless(notRoot)('a new process takes nothing over from a process of another user', async () => {
  await withRebootChain({ cluster: pg }, async (chain) => {
    chmodSync(chain.dir, 0o777);
    const uid = (user?.uid ?? 0) === 65533 ? 65532 : 65533;
    const options = { cwd: '/', stdio: ['ignore', 'ignore', 'pipe'] as ['ignore', 'ignore', 'pipe'], uid, gid: uid };
    const log = new LogTail(startProgram(installed().node, ['-e', FALSE_CONSOLE, chain.socketPath], options));
    await log.wait(/listening/);
    const next = chain.spawn('ts', ['-R']);
    assert.equal((await next.waitEnd()).code, 1);
    assert.match(next.log.text, new RegExp(`runs as another user \\(uid ${uid}\\), not taking over`));
    assert.equal(log.count(/asked: (?:HANDOVER|SUSPEND)/), 0);
  });
});

it('SUSPEND on the console holds queries up until RESUME', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.login();
    const admin = await chain.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
    await admin.query('SUSPEND');
    await client.sendMessage('Q', Buffer.from("SELECT 'late'\0"));
    await assert.rejects(client.next(300), /waited/);
    await admin.query('RESUME');
    const rows = (await client.until('Z')).filter((msg) => msg.type === 'D').map(rowValues);
    assert.deepEqual(rows, [['late']]);
  }));

it('a client that is suspended while it is described ahead is read by the process that owns it after RESUME', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.login();
    const { ahead, frozen } = await recordsOf(chain, 3, (process) => process.query('RESUME'), 'SUSPEND;');
    const reading = 1 << JSON.parse(ahead[0] ?? '').flags.indexOf('reading');
    const records = [...ahead, ...frozen].map((text) => JSON.parse(text));
    const record = records.filter(({ k, state }) => /^(?:ahead|socket)$/.test(k) && state === 'cl_active').at(-1);
    assert.notEqual(record.f & reading, 0);
    await client.end();
  }));
