/*
 * Settings of the process itself: logging, statistics, pidfile, and SET and SHOW CONFIG for all settings.
 */

import assert from 'node:assert/strict';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findSetting } from '../../src/core/config/settings';
import { SettingType, settingsTable } from '../../src/core/config/settings-table';
import { ask, login, refusal, rowsBecome, show, withPooler } from '../harness/answers';
import { iniText } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe, runSync, withTimeout } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { eventually, installed, it, startProgram, tempDir, user } from '../harness/machine';
import { itUnless, noPython, notLinux, notRoot, python } from '../harness/needs';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

describe('what is logged', () => {
  it('log_connections logs logins and server connections', async () => {
    const lines = [
      /C-\w+: postgres\/postgres@[^\n]* login attempt: db=postgres user=postgres tls=no/,
      /S-\w+: [^\n]* new connection to server/,
    ];
    await withPooler({ cluster: pg, settings: { log_connections: 1 } }, async (pooler) => {
      await login(pooler);
      for (const line of lines) await pooler.logWait(line);
    });
    await withPooler({ cluster: pg, settings: { log_connections: 0 } }, async (pooler) => {
      await ask(await login(pooler), 'SELECT 1');
      for (const line of lines) assert.equal(pooler.log.count(line), 0);
      await pooler.admin('SET log_connections = 1');
      await login(pooler);
      await pooler.logWait(lines[0] as RegExp);
    });
  });

  it('log_disconnections logs disconnected clients and servers with the reason', async () => {
    const lines = [/C-[^\n]* closing because: client close request \(age=\d+s\)/, /S-[^\n]* closing because: /];
    await withPooler({ cluster: pg, settings: { log_disconnections: 1 } }, async (pooler) => {
      await (await login(pooler)).end();
      await pooler.admin('KILL postgres').catch(() => {});
      for (const line of lines) await pooler.logWait(line);
    });
    await withPooler({ cluster: pg, settings: { log_disconnections: 0 } }, async (pooler) => {
      await (await login(pooler)).end();
      await pooler.admin('KILL postgres').catch(() => {});
      await rowsBecome(pooler, 'SERVERS', {}, 0);
      for (const line of lines) assert.equal(pooler.log.count(line), 0);
    });
  });

  it('log_pooler_errors logs the errors sent to clients', async () => {
    for (const on of [1, 0]) {
      await withPooler({ cluster: pg, settings: { log_pooler_errors: on } }, async (pooler) => {
        await refusal(pooler, { user: 'nobody' });
        await pooler.logWait(/closing because: "trust" authentication failed/);
        await pooler.admin('SHOW VERSION');
        const line = /WARNING C-[^\n]* pooler error: "trust" authentication failed/;
        assert.equal(pooler.log.count(line), on);
      });
    }
  });

  it('verbose 1 and 2 log more, and SET changes verbose at once', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      await ask(await login(pooler), 'SELECT 1');
      assert.equal(pooler.log.count(/\] (DEBUG|NOISE) /), 0);
      await pooler.admin('SET verbose = 1');
      await ask(await login(pooler), 'SELECT 1');
      await pooler.logWait(/\] DEBUG C-/);
      assert.equal(pooler.log.count(/\] NOISE /), 0);
      await pooler.admin('SET verbose = 2');
      await ask(await login(pooler), 'SELECT 1');
      await pooler.logWait(/\] NOISE /);
    });
  });

  it('log_stats logs statistics every stats_period seconds', async () => {
    const line = /LOG stats: \d+ xacts\/s, \d+ queries\/s, /;
    await withPooler({ cluster: pg, settings: { stats_period: 1 } }, async (pooler) => {
      const client = await login(pooler);
      for (let i = 0; i < 40; i++) await ask(client, 'SELECT 1');
      await pooler.logWait(/stats: [1-9]\d* xacts\/s, [1-9]\d* queries\/s/);
      const from = pooler.log.mark();
      await pooler.logWait(line, from);
      await pooler.admin('SET log_stats = 0');
      const quiet = pooler.log.mark();
      await new Promise((wake) => setTimeout(wake, 1500));
      assert.equal(pooler.log.count(line, quiet), 0);
    });
    await withPooler({ cluster: pg, settings: { stats_period: 60 } }, async (pooler) => {
      await new Promise((wake) => setTimeout(wake, 1500));
      assert.equal(pooler.log.count(line), 0);
      await pooler.admin('SET stats_period = 1');
      await pooler.logWait(line);
    });
  });
});

/** Prints every datagram sent to a socket, in place of the machine's syslog. */
const SYSLOG_SCRIPT = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
print('ready', file=sys.stderr)
while True: print(s.recv(9000).decode('latin1'), file=sys.stderr, flush=True)
`;

/** Gives the process its own /dev in which log is the socket $0; the folder for it is beside the socket. */
const OWN_DEV = `d="$0.dev" && mkdir -p $d && mount -t tmpfs none $d && for f in null zero random urandom; do
  : > $d/$f; mount --bind /dev/$f $d/$f; done && ln -s "$0" $d/log && mount --rbind $d /dev`;

/** Why a process cannot have its own /dev, or null. */
function noOwnDev(): string | null {
  if ((notLinux ?? notRoot ?? noPython) !== null) return notLinux ?? notRoot ?? noPython;
  const args = ['-m', 'sh', '-c', `${OWN_DEV} && exec setpriv --version`, join(tempDir('dev'), 'log')];
  return runSync('unshare', args).status === 0 ? null : 'needs a mount namespace';
}

describe('where it is logged', () => {
  it('logfile is reopened on RELOAD', async () => {
    const dir = tempDir('log');
    const file = join(dir, 'pooler.log');
    await withPooler({ cluster: pg, settings: { logfile: file } }, async (pooler) => {
      // each line goes to stderr first
      await eventually('the last line of the start', () => /LOG process up: /.test(readFileSync(file, 'latin1')));
      renameSync(file, `${file}.1`);
      await login(pooler);
      assert.match(readFileSync(`${file}.1`, 'latin1'), /login attempt/);
      pooler.signal('SIGHUP');
      await eventually('the new file', () => existsSync(file) || pooler.admin('SHOW VERSION').then(() => false));
      await login(pooler);
      assert.match(readFileSync(file, 'latin1'), /login attempt/);
    });
  });

  it('logfile can be set, changed and removed at run time', async () => {
    const dir = tempDir('log');
    const files = [join(dir, 'a.log'), join(dir, 'b.log')];
    await withPooler({ cluster: pg }, async (pooler) => {
      for (const file of files) {
        pooler.rewrite({ settings: { logfile: file } });
        await pooler.admin('RELOAD');
        await login(pooler);
        assert.match(readFileSync(file, 'latin1'), /user=postgres/);
      }
      assert.doesNotMatch(
        readFileSync(files[0] as string, 'latin1')
          .split('\n')
          .slice(-3)
          .join('\n'),
        /user=postgres/,
      );
      pooler.rewrite({ settings: { logfile: null } });
      await pooler.admin('RELOAD');
      const size = readFileSync(files[1] as string).length;
      await login(pooler);
      assert.equal(readFileSync(files[1] as string).length, size);
    });
  });

  itUnless(noOwnDev())('syslog, under syslog_ident and syslog_facility', async () => {
    const dir = tempDir('syslog');
    const [path, ini] = [join(dir, 'log'), join(dir, 'pooler.ini')];
    const write = (settings: Record<string, string | number>) => {
      const fixed = { listen_addr: '', unix_socket_dir: dir, auth_type: 'any' };
      writeFileSync(ini, iniText({ databases: { a: 'port=1' }, pgbouncer: { ...fixed, ...settings } }));
    };
    write({ syslog: 1, syslog_ident: 'pool-one', syslog_facility: 'local3' });
    const listener = startProgram(python, ['-u', '-c', SYSLOG_SCRIPT, path], { stdio: ['ignore', 'ignore', 'pipe'] });
    const heard = new LogTail(listener);
    await heard.wait(/ready/);
    const { uid, gid } = user as NonNullable<typeof user>;
    const drop = `exec setpriv --reuid ${uid} --regid ${gid} --clear-groups "$@"`;
    const { node, mainJs } = installed();
    const child = startProgram('unshare', ['-m', 'sh', '-c', `${OWN_DEV} && ${drop}`, path, node, mainJs, ini], {});
    const ended = new Promise((settle) => child.once('close', settle));
    try {
      const log = new LogTail(child);
      await log.wait(/process up: /);
      // facility * 8 + level: local3 is 19, info is 6
      await heard.wait(/<158>\S+ +\d+ \S+ pool-one\[\d+\]: process up: /);
      assert.equal(heard.count(/DEBUG|LOG /), 0, 'the level is in the number');
      write({ syslog: 1, syslog_ident: 'pool-two', syslog_facility: 'local4' });
      child.kill('SIGHUP');
      await log.wait(/got SIGHUP/);
      const from = heard.mark();
      child.kill('SIGUSR2');
      await heard.wait(/<166>\S+ +\d+ \S+ pool-two\[\d+\]: got SIGUSR2/, from);
      write({ syslog: 0 });
      child.kill('SIGHUP');
      await log.wait(/got SIGHUP[\s\S]*got SIGHUP/);
      child.kill('SIGUSR2');
      await log.wait(/got SIGUSR2[\s\S]*got SIGUSR2/);
      assert.equal(heard.count(/got SIGUSR2/), 1);
    } finally {
      child.kill('SIGQUIT');
      await withTimeout(ended, 'the pooler to end');
      listener.kill();
    }
  });

  it('a missing syslog socket has no effect', async () => {
    const settings = { syslog: 1, syslog_ident: 'pool-one', syslog_facility: 'local3' };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
      await pooler.admin("SET syslog_facility = 'local4'");
      await pooler.admin('SET syslog = 0');
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });
});

it('pidfile contains the process id while the process runs', async () => {
  const file = join(tempDir('pid'), 'pooler.pid');
  await withPooler({ cluster: pg, settings: { pidfile: file } }, async (pooler) => {
    assert.equal(readFileSync(file, 'latin1').trim(), String(pooler.pid));
    pooler.signal('SIGQUIT');
    await pooler.expectEnd();
    assert.equal(existsSync(file), false);
  });
});

it('job_name is only shown, because it names a service on Windows', async () => {
  const settings = { job_name: 'night-shift', verbose: 2 };
  await withPooler({ cluster: pg, settings }, async (pooler) => {
    assert.deepEqual(await show(pooler, 'CONFIG', { key: 'job_name' }), [
      { key: 'job_name', value: 'night-shift', default: 'pgbouncer', changeable: 'no' },
    ]);
    assert.equal((await show(pooler, 'CONFIG', { key: 'syslog_ident' }))[0]?.value, 'pgbouncer');
    await pooler.sql('SELECT 1');
    assert.equal(pooler.log.count(/night-shift/), 0);
  });
  // the alias service_name exists only on Windows
  await withPooler({ cluster: pg, settings: { service_name: 'x' }, wait: false }, async (pooler) => {
    assert.equal((await pooler.expectEnd()).code, 1);
    await pooler.logWait(/ERROR unknown parameter: pgbouncer\/service_name/);
  });
});

it('user must name a user that the process may switch to', async () => {
  await withPooler({ cluster: pg, settings: { user: 'no-such-user-here' }, wait: false }, async (pooler) => {
    const end = await pooler.expectEnd();
    assert.equal(end.code, 1);
    assert.match(pooler.log.text, /FATAL could not find user 'no-such-user-here'/);
  });
});

it('large rows and many small rows pass through with any pkt_buf and sbuf_loopcnt', async () => {
  for (const settings of [
    { pkt_buf: 64, sbuf_loopcnt: 1 },
    { pkt_buf: 65536, sbuf_loopcnt: 0 },
  ]) {
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const client = await login(pooler);
      assert.equal((await ask(client, "SELECT repeat('x', 3000000)"))?.length, 3_000_000);
      assert.equal(
        (await client.query('SELECT generate_series(1, 20000)')).filter((msg) => msg.type === 'D').length,
        20000,
      );
    });
  }
});

describe('SHOW CONFIG and SET', () => {
  it('SHOW CONFIG shows every setting with its value, its default and whether it is reloadable', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      const rows = await pooler.admin('SHOW CONFIG');
      assert.deepEqual(
        rows.map((row) => row.key),
        settingsTable.map((setting) => setting.name),
      );
      for (const { name, def, noReload } of settingsTable) {
        const row = rows.find((each) => each.key === name);
        // the harness lets an ordinary user trace its poolers
        const usual = name === 'core_dumps' ? (process.env.TSBOUNCER_CORE_DUMPS ?? def) : def;
        assert.deepEqual([row?.default, row?.changeable], [usual, noReload ? 'no' : 'yes'], name);
      }
    });
  });

  it('SET changes every reloadable setting and no other setting', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      const console = await pooler.console();
      const shown = async (name: string) => {
        const { rows } = await console.query('SHOW CONFIG');
        return rows.find((row) => row.key === name)?.value;
      };
      for (const { name, type, map, noReload, max } of settingsTable) {
        // settings about logins and the place of the config are tested elsewhere
        if (['admin_users', 'conffile', 'auth_type', 'logfile', 'auth_file'].includes(name)) continue;
        const texts: Partial<Record<SettingType, string>> = {
          [SettingType.STR]: 'some_text',
          [SettingType.AUTHDB]: 'some_text',
          [SettingType.NETWORKS]: '10.0.0.0/8',
        };
        const text = texts[type] ?? String(Math.min(3000, max));
        const value = map === null ? text : (map.at(-1)?.name ?? '');
        const before = await shown(name);
        await console.query(`SET ${name} = '${value}'`);
        assert.equal(await shown(name), noReload ? before : value, name);
        if (noReload || before === null) continue;
        await console.query(`SET ${name} = '${before}'`);
        assert.equal(await shown(name), before, name);
      }
    });
  });

  it('SET with a bad value is refused and changes nothing', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      const console = await pooler.console();
      for (const { name, type, noReload } of settingsTable) {
        if (noReload || type === SettingType.STR || type === SettingType.AUTHDB) continue;
        await assert.rejects(console.query(`SET ${name} = 'no sense'`), /SET failed/, name);
      }
      await assert.rejects(console.query('SET no_such_setting = 1'), /SET failed/);
      await pooler.logWait(/unknown parameter: pgbouncer\/no_such_setting/);
      const { rows } = await console.query('SHOW CONFIG');
      assert.equal(rows.find((row) => row.key === 'query_timeout').value, findSetting('query_timeout')?.def);
    });
  });
});
