/*
 * Under a service manager: messages to NOTIFY_SOCKET, and listening sockets that are passed at start and handed over
 * from process to process.
 */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { spawnAs } from '../../tools/unprivileged';
import { installed, it, itUnless, noPython, PgCluster, python, startProgram, user } from '../harness';
import { after, before } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { PoolerProcess, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { TlsPlace } from '../harness/tls-place';

const place = new TlsPlace();
let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start({ settings: place.ofServers });
});
after(async () => {
  await pg.stop();
});

/** In Python, because Node has no Unix datagram sockets; building the addon needs python3 anyway. */
const LISTENER = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', chr(0)) if sys.argv[1][0] == '@' else sys.argv[1])
print('listening', file=sys.stderr, flush=True)
while True:
    print('<' + s.recv(65536).decode().replace(chr(10), '|') + '>', file=sys.stderr, flush=True)
`;

async function notifyListener(chain: RebootChain, path: string): Promise<LogTail> {
  const child = startProgram(python, ['-c', LISTENER, path], {
    cwd: chain.dir,
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  const tail = new LogTail(child);
  await tail.wait(/listening/);
  return tail;
}

for (const kind of ['a file', 'an abstract name']) {
  itUnless(noPython)(`READY, RELOADING, MAINPID and STOPPING are sent to a NOTIFY_SOCKET that is ${kind}`, async () => {
    await withRebootChain({ cluster: pg }, async (chain) => {
      const path = kind === 'a file' ? join(chain.dir, 'notify') : `@${chain.dir}/notify`;
      const heard = await notifyListener(chain, path);
      const first = await chain.start('ts', { NOTIFY_SOCKET: path });
      await heard.wait(new RegExp(`<READY=1\\|MAINPID=${first.pid}\\|STATUS=`));

      let from = heard.mark();
      first.child.kill('SIGHUP');
      await heard.wait(/<RELOADING=1\|MONOTONIC_USEC=\d+>\s*<READY=1>/, from);

      from = heard.mark();
      const second = await chain.reboot('ts', { NOTIFY_SOCKET: path });
      await heard.wait(new RegExp(`<MAINPID=${second.pid}>[\\s\\S]*<READY=1\\|MAINPID=${second.pid}\\|`), from);

      // a process that the service manager has not started learns NOTIFY_SOCKET from the old process
      from = heard.mark();
      const third = await chain.reboot('ts');
      await heard.wait(new RegExp(`<MAINPID=${third.pid}>[\\s\\S]*<READY=1\\|MAINPID=${third.pid}\\|`), from);
      assert.equal(heard.count(/STOPPING/), 0);

      third.child.kill('SIGINT');
      await heard.wait(/<STOPPING=1>/, from);
      assert.equal((await third.waitEnd()).code, 0);
    });
  });
}

itUnless(noPython)(
  'after a failed takeover, the old process tells the service manager that it is the main process',
  async () => {
    await withRebootChain({ cluster: pg }, async (chain) => {
      const path = join(chain.dir, 'notify');
      const heard = await notifyListener(chain, path);
      const env = { NOTIFY_SOCKET: path, TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: 'give-shutdown' };
      const old = await chain.start('ts', env);
      const next = chain.spawn('ts', ['-R'], { NOTIFY_SOCKET: path });
      await heard.wait(new RegExp(`<MAINPID=${next.pid}>`));
      await old.waitStopped();
      await next.kill();
      old.child.kill('SIGCONT');
      await old.log.wait(/handover failed, resuming work/);
      await heard.wait(new RegExp(`<MAINPID=${next.pid}>[\\s\\S]*<MAINPID=${old.pid}>`));
      assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
    });
  },
);

/** Opens a TCP and a Unix socket and executes the pooler, as systemd's socket activation does. */
const ACTIVATOR = `
import os, socket, sys
tcp = socket.create_server(('127.0.0.1', int(sys.argv[1])))
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[2])
unix.listen()
for at, s in enumerate([tcp, unix]):
    os.dup2(s.fileno(), 20 + at)
for at in range(2):
    os.dup2(20 + at, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')
os.execv(sys.argv[3], sys.argv[3:])
`;

itUnless(noPython)('sockets passed by the service manager are used and handed over at takeovers', async () => {
  await withRebootChain(place.secure({ cluster: pg }), async (chain) => {
    const { node, mainJs } = installed();
    const args = ['-c', ACTIVATOR, String(chain.port), chain.socketPath, node, mainJs, chain.ini];
    const child = startProgram(python, args, { cwd: chain.dir, stdio: ['ignore', 'ignore', 'pipe'], ...spawnAs(user) });
    const first = await new PoolerProcess('ts', child).waitUp();
    chain.generations.push(first);
    assert.match(first.log.text, /WARNING sockets passed from service manager, cf_listen_addr ignored/);
    assert.match(first.log.text, /LOG socket passed from service manager \(fd 3\)/);
    assert.match(first.log.text, /LOG socket passed from service manager \(fd 4\)/);
    // one with TLS, and one without
    const clients = [await chain.raw(), await chain.raw(true)];
    for (const client of clients) assert.equal((await client.login()).at(-1)?.type, 'Z');
    // listen_addr is ignored
    chain.write({ settings: { listen_addr: '127.0.0.2' } });
    for (let i = 0; i < 3; i++) {
      await chain.reboot('ts');
      assert.equal(chain.now.log.count(/listening on/), 0);
    }
    for (const client of clients) {
      assert.equal((await client.query('SELECT 1')).at(-1)?.type, 'Z');
      await client.end();
    }
    assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
    await chain.now.kill('SIGTERM');
    // the socket file belongs to the service manager
    assert.equal(existsSync(chain.socketPath), true);
  });
});

it('LISTEN_FDS is ignored if LISTEN_PID names another process', async () => {
  await withRebootChain({ cluster: pg }, async (chain) => {
    const only = await chain.start('ts', { LISTEN_PID: '1', LISTEN_FDS: '3' });
    assert.match(only.log.text, /listening on 127\.0\.0\.1/);
  });
});
