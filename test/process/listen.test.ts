/*
 * The addresses on which the pooler listens, failures to listen, and the options of its sockets.
 */

import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { ask, login, valueIn, withPooler } from '../harness/answers';
import { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it, run, tempDir, user, withTimeout } from '../harness/machine';
import { itUnless, noProgram, noPython, notLinux, python } from '../harness/needs';
import { RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const HAS_IPV6 = Object.values(networkInterfaces()).some((list) => list?.some((each) => each.address === '::1'));

/** Whether a query at that address succeeds. */
async function answers(host: string, port: number): Promise<boolean> {
  try {
    const client = await RawClient.connect({ host, port });
    await client.login();
    const value = valueIn(await client.query('SELECT 1'));
    await client.end();
    return value === '1';
  } catch {
    return false;
  }
}

/** Starts a pooler that must fail. @returns its last log line */
async function failure(settings: Record<string, string | number | null>): Promise<string> {
  let text = '';
  await withPooler({ cluster: pg, settings, wait: false }, async (pooler) => {
    assert.equal((await pooler.expectEnd()).code, 1);
    text = pooler.log.text;
  });
  return text;
}

describe('listen_addr', () => {
  const cases: [string, string[], string[]][] = [
    ['127.0.0.1', ['127.0.0.1'], ['127.0.0.2']],
    ['127.0.0.2, 127.0.0.3', ['127.0.0.2', '127.0.0.3'], ['127.0.0.1']],
    ['0.0.0.0', ['127.0.0.1', '127.0.0.2'], []],
    ['localhost', ['127.0.0.1'], ['127.0.0.2']],
    ['*', HAS_IPV6 ? ['127.0.0.1', '127.0.0.2', '::1'] : ['127.0.0.1'], []],
  ];
  if (HAS_IPV6) cases.push(['::1', ['::1'], ['127.0.0.1']]);
  for (const [listen, open, closed] of cases) {
    it(`listen_addr ${listen} is reachable at ${open.join(', ')}${closed.length > 0 ? `, not at ${closed.join(', ')}` : ''}`, async () => {
      await withPooler({ cluster: pg, settings: { listen_addr: listen } }, async (pooler) => {
        for (const host of open) assert.ok(await answers(host, pooler.port), `no answer at ${host}`);
        for (const host of closed) assert.ok(!(await answers(host, pooler.port)), `an answer at ${host}`);
        await pooler.logWait(new RegExp(`listening on \\S*:${pooler.port}`));
      });
    });
  }

  it('an empty listen_addr leaves only the Unix socket', async () => {
    await withPooler({ cluster: pg, settings: { listen_addr: '' } }, async (pooler) => {
      assert.equal(await answers('127.0.0.1', pooler.port), false);
      const { rows } = await pooler.sql('SELECT 1 AS n', { host: pooler.socketDir });
      assert.equal(rows[0].n, 1);
    });
  });

  it('one listen_addr address that fails is a warning, and all addresses failing is fatal', async () => {
    await withPooler({ cluster: pg, settings: { listen_addr: '203.0.113.77, 127.0.0.1' } }, async (pooler) => {
      await pooler.logWait(/WARNING cannot listen on 203\.0\.113\.77:\d+: bind\(\): Cannot assign requested address/);
      assert.ok(await answers('127.0.0.1', pooler.port));
    });
    const text = await failure({ listen_addr: '203.0.113.77' });
    assert.match(text, /FATAL failed to listen on any address in listen_addr list: 203\.0\.113\.77/);
  });

  it('a listening socket whose options the kernel refuses counts as failed', async () => {
    assert.match(
      await failure({ tcp_keepidle: -1 }),
      /WARNING cannot listen on 127\.0\.0\.1:\d+: tune_socket\(\): Invalid argument\n.*FATAL failed to listen on any address/,
    );
  });

  it('an unknown name in listen_addr is fatal', async () => {
    assert.match(
      await failure({ listen_addr: 'no-such-host.invalid' }),
      /FATAL getaddrinfo\('no-such-host.invalid', '\d+'\) = /,
    );
  });

  it('a config without any address to listen on is fatal', async () => {
    assert.match(await failure({ listen_addr: '', unix_socket_dir: '' }), /FATAL nowhere to listen on/);
  });
});

describe('listen_port and so_reuseport', () => {
  it('a port in use cannot be shared without so_reuseport', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      const text = await failure({ listen_port: pooler.port });
      assert.match(text, /WARNING cannot listen on 127\.0\.0\.1:\d+: bind\(\): Address already in use/);
    });
  });

  it('two poolers with so_reuseport share a port, and both serve', async () => {
    const settings = { so_reuseport: 1 };
    await withPooler({ cluster: pg, settings }, async (one) => {
      await withPooler({ cluster: pg, settings: { ...settings, listen_port: one.port } }, async (two) => {
        const served = () => [one, two].map((pooler) => pooler.log.count(/login attempt/));
        await eventually('logins at both', async () => {
          assert.ok(await answers('127.0.0.1', one.port));
          return served().every((count) => count > 0);
        });
      });
    });
  });
});

describe('the Unix socket', () => {
  it('unix_socket_mode and unix_socket_group set the permissions of the Unix socket', async () => {
    const gid = user?.gid ?? (process.getgid?.() as number);
    const line = readFileSync('/etc/group', 'latin1')
      .split('\n')
      .find((each) => each.split(':')[2] === String(gid));
    for (const group of [String(gid), `0x${gid.toString(16)}`, line?.split(':')[0] ?? String(gid)]) {
      const settings = { unix_socket_mode: '0750', unix_socket_group: group };
      await withPooler({ cluster: pg, settings }, async (pooler) => {
        const stat = statSync(join(pooler.socketDir, `.s.PGSQL.${pooler.port}`));
        assert.equal(stat.mode & 0o777, 0o750);
        assert.equal(stat.gid, gid);
      });
    }
    await withPooler({ cluster: pg, settings: { unix_socket_mode: -1 } }, async (pooler) => {
      assert.equal(statSync(join(pooler.socketDir, `.s.PGSQL.${pooler.port}`)).mode & 0o7777, 0o7777);
    });
    assert.match(
      await failure({ unix_socket_group: 0 }),
      user === null || user.uid === 0 ? /./ : /FATAL chown\(\S+, 4294967295, 0\) failed: Operation not permitted/,
    );
    assert.match(await failure({ unix_socket_group: 'no-such-group' }), /FATAL could not find group 'no-such-group': /);
  });

  it('the Unix socket is open to all users by default, and removed at exit', async () => {
    const dir = tempDir('sock');
    await withPooler({ cluster: pg, settings: { unix_socket_dir: dir } }, async (pooler) => {
      const path = join(dir, `.s.PGSQL.${pooler.port}`);
      assert.equal(statSync(path).mode & 0o777, 0o777);
      pooler.signal('SIGQUIT');
      await pooler.expectEnd();
      assert.equal(existsSync(path), false);
    });
  });

  it('a Unix socket in use by another process is not replaced', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      const settings = { listen_addr: '', listen_port: pooler.port, unix_socket_dir: pooler.socketDir };
      assert.match(await failure(settings), /FATAL unix socket is in use, cannot continue/);
      const { rows } = await pooler.sql('SELECT 1 AS n', { host: pooler.socketDir });
      assert.equal(rows[0].n, 1);
    });
  });

  it('a Unix socket of PostgreSQL is not replaced, because its lock file exists', async () => {
    const dir = tempDir('sock');
    const port = await freePort();
    writeFileSync(join(dir, `.s.PGSQL.${port}.lock`), '');
    const text = await failure({ unix_socket_dir: dir, listen_port: port });
    assert.match(text, new RegExp(`FATAL unix port ${port} is in use`));
  });

  it('a Unix socket left over from a crash is replaced', async () => {
    const dir = tempDir('sock');
    const settings = { unix_socket_dir: dir, listen_port: await freePort() };
    const crashed = await Bouncer.start({ cluster: pg, settings });
    crashed.signal('SIGKILL');
    await crashed.expectEnd();
    await crashed.stop();
    assert.ok(existsSync(join(dir, `.s.PGSQL.${crashed.port}`)));
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const { rows } = await pooler.sql('SELECT 1 AS n', { host: dir });
      assert.equal(rows[0].n, 1);
    });
  });

  it('a Unix socket in a missing folder is fatal', async () => {
    const text = await failure({ unix_socket_dir: '/nowhere/at/all' });
    assert.match(text, /FATAL failed to create unix socket/);
  });

  itUnless(notLinux)('the Unix socket may be abstract', async () => {
    const name = `@tsb-${process.pid}`;
    await withPooler({ cluster: pg, settings: { unix_socket_dir: name } }, async (inner) => {
      // Node cannot connect to an abstract socket, but another pooler can
      const databases = { postgres: `host=${name} port=${inner.port}` };
      await withPooler({ databases }, async (outer) => {
        assert.equal(await ask(await login(outer), 'SELECT 1'), '1');
        await inner.logWait(/C-\w+: postgres\/postgres@unix\(\d+\):\d+ login attempt/);
      });
    });
  });
});

/** The kernel allows no longer queues than this. */
const QUEUE_MOST = Number(readFileSync('/proc/sys/net/core/somaxconn', 'latin1'));
const shortQueues = QUEUE_MOST >= 400 ? null : `net.core.somaxconn is ${QUEUE_MOST}, and the tests need 400`;

/** How many of `count` connections to a Unix socket the kernel refuses while its process cannot accept any. */
async function refusedMeanwhile(child: ChildProcess, path: string, count: number): Promise<number> {
  child.kill('SIGSTOP');
  const clients = Array.from({ length: count }, () => connect(path));
  try {
    const outcomes = clients.map((client) =>
      once(client, 'connect').then(
        () => '',
        (err) => String(err.code),
      ),
    );
    const codes = await withTimeout(Promise.all(outcomes), 'the kernel to answer');
    const refused = codes.filter((code) => code !== '');
    assert.deepEqual(
      refused,
      refused.map(() => 'EAGAIN'),
    );
    return refused.length;
  } finally {
    for (const client of clients) client.destroy();
    child.kill('SIGCONT');
  }
}

describe('listen_backlog', () => {
  itUnless(noProgram('ss'))('listen_backlog sets the length of the listen queue', async () => {
    await withPooler({ cluster: pg, settings: { listen_backlog: 37 } }, async (pooler) => {
      const { stdout } = await run('ss', ['-ltnH', `sport = :${pooler.port}`]);
      assert.match(stdout, /LISTEN\s+0\s+37\s/);
    });
  });

  itUnless(shortQueues)('by default, hundreds of clients can connect at once, and none is refused', async () => {
    await withPooler({ cluster: pg, settings: { max_client_conn: 1000 } }, async (pooler) => {
      const path = join(pooler.socketDir, `.s.PGSQL.${pooler.port}`);
      assert.equal(await refusedMeanwhile(pooler.child, path, 400), 0);
      assert.ok(await answers('127.0.0.1', pooler.port));
    });
    await withPooler({ cluster: pg, settings: { listen_backlog: 128 } }, async (pooler) => {
      const path = join(pooler.socketDir, `.s.PGSQL.${pooler.port}`);
      assert.ok((await refusedMeanwhile(pooler.child, path, 400)) > 200);
    });
  });

  itUnless(shortQueues)('after an online reboot, the setting of the new process counts', async () => {
    await withRebootChain({ cluster: pg, settings: { listen_backlog: 20 } }, async (chain) => {
      const first = await chain.start('ts');
      assert.ok((await refusedMeanwhile(first.child, chain.socketPath, 60)) > 20);
      chain.write({ settings: { listen_backlog: 100 } });
      const second = await chain.reboot('ts');
      assert.equal(await refusedMeanwhile(second.child, chain.socketPath, 60), 0);
    });
  });
});

itUnless(notLinux)('tcp_defer_accept defers clients that send nothing', async () => {
  await withPooler({ cluster: pg, settings: { verbose: 1 } }, async (pooler) => {
    const line = /got connection: \S+:(\d+) -> /;
    const [silent, talking] = [await pooler.raw(), await pooler.raw()];
    await talking.login();
    // the kernel reports a silent client after a second or more
    const [, first] = await pooler.logWait(line);
    assert.equal(Number(first), talking.socket.localPort);
    await pooler.admin('SET tcp_defer_accept = 0');
    const from = pooler.log.mark();
    await pooler.raw();
    await pooler.logWait(line, from);
    // the kernel has not reported the connection to the pooler, so it must be closed here
    await silent.destroy();
  });
});

/**
 * Takes the pooler's descriptors as a new process would (SHOW FDS), and prints the options of each socket: kind
 * (listen, client or server), then the options in order.
 */
const OPTIONS_SCRIPT = `
import socket, struct, sys
path, pg_port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_UNIX)
s.connect(path)
body = struct.pack('!i', 196608) + b'user\\0pgbouncer\\0database\\0pgbouncer\\0\\0'
s.sendall(struct.pack('!i', len(body) + 4) + body)
data = b''
while not data.endswith(b'Z\\0\\0\\0\\5I'): data += s.recv(4096)
s.sendall(b'Q\\0\\0\\0\\rSHOW FDS\\0')
data, fds = b'', []
while not data.endswith(b'Z\\0\\0\\0\\5I'):
    chunk, got, _, _ = socket.recv_fds(s, 65536, 16)
    data += chunk
    fds += got
T = socket.IPPROTO_TCP
for fd in fds:
    k = socket.socket(fileno=fd)
    if k.family == socket.AF_UNIX: continue
    S = socket.SOL_SOCKET
    kind = 'listen' if k.getsockopt(S, socket.SO_ACCEPTCONN) else 'server' if k.getpeername()[1] == pg_port else 'client'
    values = [k.getsockopt(S, socket.SO_KEEPALIVE), k.getsockopt(T, socket.TCP_KEEPIDLE), k.getsockopt(T, socket.TCP_KEEPINTVL),
      k.getsockopt(T, socket.TCP_KEEPCNT), k.getsockopt(T, 18), k.getsockopt(S, socket.SO_SNDBUF), k.getsockopt(S, socket.SO_RCVBUF),
      k.getsockopt(T, socket.TCP_NODELAY), k.getsockopt(T, 9)]
    print(kind, *values)
`;

describe('options of the sockets', () => {
  /**
   * Options by kind: keepalive, idle, interval, count, user timeout, send and receive buffer, no delay, defer accept.
   */
  async function optionsWith(
    settings: Record<string, string | number>,
    before: (pooler: Bouncer) => Promise<unknown> = async () => {},
  ): Promise<Map<string, number[]>> {
    const byKind = new Map<string, number[]>();
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      await before(pooler);
      await ask(await login(pooler), 'SELECT 1');
      const path = join(pooler.socketDir, `.s.PGSQL.${pooler.port}`);
      const outcome = await run(python, ['-c', OPTIONS_SCRIPT, path, String(pg.port)]);
      assert.equal(outcome.code, 0, outcome.stderr);
      for (const line of outcome.stdout.trim().split('\n')) {
        const [kind, ...values] = line.split(' ');
        byKind.set(kind ?? '', values.map(Number));
      }
      assert.deepEqual([...byKind.keys()].sort(), ['client', 'listen', 'server']);
    });
    return byKind;
  }

  const itLooks = itUnless(notLinux ?? noPython);

  itLooks('tcp_keepalive, tcp_keep*, tcp_user_timeout and tcp_socket_buffer set socket options', async () => {
    const settings = {
      tcp_keepalive: 1,
      tcp_keepidle: 111,
      tcp_keepintvl: 22,
      tcp_keepcnt: 7,
      tcp_user_timeout: 33000,
      tcp_socket_buffer: 40000,
    };
    for (const [kind, values] of await optionsWith(settings)) {
      // the kernel doubles the buffer size for its own overhead
      assert.deepEqual(values.slice(0, 8), [1, 111, 22, 7, 33000, 80000, 80000, 1], kind);
    }
  });

  itLooks('TCP settings that are SET apply to new connections', async () => {
    const byKind = await optionsWith({ tcp_keepidle: 111 }, async (pooler) => {
      for (const [name, value] of [
        ['tcp_keepidle', 99],
        ['tcp_user_timeout', 12000],
      ])
        await pooler.admin(`SET ${name} = ${value}`);
    });
    for (const [kind, values] of byKind) assert.deepEqual([values[1], values[4]], [99, 12000], kind);
  });

  itLooks('the defaults of the TCP settings, and tcp_keepalive=0, set socket options', async () => {
    const byKind = await optionsWith({});
    for (const [kind, values] of byKind) {
      assert.equal(values[0], 1, `keepalive of ${kind}`);
      assert.equal(values[4], 0, `user timeout of ${kind}`);
      assert.equal(values[7], 1, `no delay of ${kind}`);
    }
    assert.ok((byKind.get('listen')?.[8] as number) > 0, 'defer accept');
    const off = await optionsWith({ tcp_keepalive: 0, tcp_keepidle: 111, tcp_defer_accept: 0 });
    for (const [kind, values] of off) {
      assert.equal(values[0], 0, `keepalive of ${kind}`);
      assert.notEqual(values[1], 111);
    }
    assert.equal(off.get('listen')?.[8], 0);
  });
});
