/*
 * Going to the background, and the pidfile: the launcher exits with 0 only when the daemon serves, and otherwise prints
 * the reason. A pidfile of a running process is distinguished from a stale pidfile.
 */

import assert from 'node:assert/strict';
import { chmodSync, existsSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo, type RunUser, spawnAs } from '../../tools/unprivileged';
import {
  eventually,
  iniText,
  installed,
  it,
  itUnless,
  notRoot,
  type Outcome,
  run,
  startProgram,
  tempDir,
  user,
  withTimeout,
} from '../harness';
import { LogTail } from '../harness/log-tail';
import { RawClient } from '../harness/raw-client';

/** A folder with an ini for a daemon in it. */
interface Daemon {
  dir: string;
  ini: string;
  pidfile: string;
  logfile: string;
  port: number;
}

async function setUp(settings: Record<string, string | number | null> = {}): Promise<Daemon> {
  const dir = tempDir('daemon');
  const port = await freePort();
  const paths = { pidfile: join(dir, 'a.pid'), logfile: join(dir, 'a.log') };
  const base = { listen_addr: '127.0.0.1', listen_port: port, unix_socket_dir: dir, auth_type: 'any', ...paths };
  const ini = join(dir, 'a.ini');
  writeFileSync(ini, iniText({ databases: { db: 'host=127.0.0.1' }, pgbouncer: { ...base, ...settings } }));
  giveTo(user, dir);
  return { dir, ini, port, ...paths };
}

function launch(at: Daemon, ...args: string[]): Promise<Outcome> {
  const { node, mainJs } = installed();
  return run(node, [mainJs, ...args, at.ini], { cwd: at.dir });
}

function pidOf(at: Daemon): number {
  return Number(readFileSync(at.pidfile, 'latin1'));
}

/** True if the process has exited, even if it is still a zombie (a container may have no process that reaps it). */
function gone(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return /^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return true;
  }
}

/** Polls, because the daemon is not a child of this process and so there is no event to wait for. */
async function stopDaemon(at: Daemon, signal: NodeJS.Signals = 'SIGQUIT'): Promise<void> {
  const pid = pidOf(at);
  process.kill(pid, signal);
  await eventually('the daemon to end', () => gone(pid));
}

function log(at: Daemon): string {
  return existsSync(at.logfile) ? readFileSync(at.logfile, 'latin1') : '';
}

async function serves(at: Daemon): Promise<boolean> {
  const client = await RawClient.connect({ port: at.port });
  const answer = await client.request(80877103);
  await client.destroy();
  return answer === 'N';
}

/** The pid of a process that has exited: it is not reused for a while. */
async function deadPid(): Promise<number> {
  const child = startProgram('/bin/true', [], { stdio: 'ignore' });
  await withTimeout(new Promise((settle) => child.once('close', settle)), 'true to end');
  return child.pid as number;
}

function sleeper(): number {
  return startProgram('sleep', ['1000'], { stdio: 'ignore', ...spawnAs(user) }).pid as number;
}

it('-d exits with 0 when the daemon serves, and prints nothing', async () => {
  const at = await setUp();
  const outcome = await launch(at, '-d');
  assert.deepEqual([outcome.code, outcome.stdout, outcome.stderr], [0, '', '']);
  assert.equal(await serves(at), true);
  assert.match(log(at), new RegExp(`\\[${pidOf(at)}\\] LOG process up: `));
  await stopDaemon(at);
  assert.equal(existsSync(at.pidfile), false, 'the pidfile is gone');
});

it('the daemon has its own session, its standard streams on the null device, and its working directory', async () => {
  const at = await setUp();
  assert.equal((await launch(at, '-d')).code, 0);
  const pid = pidOf(at);
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  assert.equal(Number(fields[3]), pid, 'session');
  assert.equal(fields[4], '0', 'no terminal');
  for (const fd of [0, 1, 2]) assert.equal(readlinkSync(`/proc/${pid}/fd/${fd}`), '/dev/null');
  assert.equal(readlinkSync(`/proc/${pid}/cwd`), at.dir);
  assert.doesNotMatch(
    readFileSync(`/proc/${pid}/environ`, 'latin1').replaceAll(/TSBOUNCER_DAEMON_FD=3/g, ''),
    /DAEMON/,
  );
  assert.equal(existsSync(`/proc/${pid}/fd/3`) && readlinkSync(`/proc/${pid}/fd/3`).startsWith('socket:'), false);
  await stopDaemon(at);
});

itUnless(notRoot)("a daemon that root starts has the user that -u names, and none of root's groups", async () => {
  const at = await setUp();
  const { node, mainJs } = installed();
  const { name, uid, gid } = user as RunUser;
  const outcome = await run(node, [mainJs, '-d', '-u', name, at.ini], { cwd: at.dir, asSelf: true });
  assert.equal(outcome.code, 0, outcome.stderr);
  const status = readFileSync(`/proc/${pidOf(at)}/status`, 'latin1');
  const ids = (what: string) => new RegExp(`^${what}:\\s+(.*?)\\s*$`, 'm').exec(status)?.[1]?.split(/\s+/).map(Number);
  assert.deepEqual(ids('Uid'), Array(4).fill(uid));
  assert.deepEqual(ids('Gid'), Array(4).fill(gid));
  assert.deepEqual(ids('Groups'), [gid]);
  await stopDaemon(at);
});

it('relative paths are resolved from the directory in which the daemon was started', async () => {
  const at = await setUp({ pidfile: 'a.pid', logfile: 'a.log', unix_socket_dir: '.' });
  const { node, mainJs } = installed();
  const outcome = await run(node, [mainJs, '-d', 'a.ini'], { cwd: at.dir });
  assert.deepEqual([outcome.code, outcome.stderr], [0, '']);
  await stopDaemon(at);
});

itUnless(notRoot)('a daemon started by root runs as the setting `user`', async () => {
  const { name, uid } = user as RunUser;
  const at = await setUp({ user: name });
  const { node, mainJs } = installed();
  const outcome = await run(node, [mainJs, '-d', at.ini], { cwd: at.dir, asSelf: true });
  assert.deepEqual([outcome.code, outcome.stderr], [0, '']);
  const status = readFileSync(`/proc/${pidOf(at)}/status`, 'latin1');
  assert.match(status, new RegExp(`^Uid:\\s+${uid}\\s+${uid}\\s+${uid}`, 'm'));
  await stopDaemon(at);
});

it('-d requires a pidfile', async () => {
  const outcome = await launch(await setUp({ pidfile: null }), '-d');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL daemon needs pidfile configured\n$/);
});

it('-d requires a log file or syslog', async () => {
  const outcome = await launch(await setUp({ logfile: null }), '-d');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL daemon needs logfile or syslog configured\n$/);
});

it('-d accepts syslog without a logfile', async () => {
  const at = await setUp({ logfile: null, syslog: 1 });
  assert.equal((await launch(at, '-d')).code, 0);
  await stopDaemon(at);
});

it('-d reports a bad config before it starts the daemon', async () => {
  const at = await setUp({ listen_port: 'nonsense' });
  const outcome = await launch(at, '-d');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL cannot load config file\n$/);
  assert.equal(existsSync(at.pidfile), false);
});

it('the launcher reports an address in use and fails', async () => {
  const at = await setUp({ unix_socket_dir: '' });
  const squatter = createServer();
  await new Promise<void>((settle) => squatter.listen(at.port, '127.0.0.1', settle));
  const outcome = await launch(at, '-d');
  squatter.close();
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /bind|listen|address/i);
  assert.match(outcome.stderr, /FATAL /);
  assert.equal(existsSync(at.pidfile), false);
});

it('the launcher reports a log file that cannot be opened and fails', async () => {
  const at = await setUp({ logfile: '/nonexistent/a.log' });
  const outcome = await launch(at, '-d');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL Cannot open logfile: '\/nonexistent\/a\.log': No such file or directory\n/);
});

it('the launcher reports a pidfile that cannot be written and fails', async () => {
  const at = await setUp({ pidfile: '/nonexistent/a.pid' });
  const outcome = await launch(at, '-d');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL could not open pidfile '\/nonexistent\/a\.pid': No such file or directory\n/);
  assert.match(log(at), /FATAL could not open pidfile/);
});

it('a second daemon with the same config fails, and the first keeps running', async () => {
  const at = await setUp();
  assert.equal((await launch(at, '-d')).code, 0);
  const pid = pidOf(at);
  const second = await launch(at, '-d');
  assert.equal(second.code, 1);
  assert.match(second.stderr, /FATAL unix socket is in use, cannot continue\n/);
  assert.equal(pidOf(at), pid);
  assert.equal(await serves(at), true);
  await stopDaemon(at);
});

it('a pidfile of a running process prevents a start', async () => {
  const at = await setUp({ unix_socket_dir: '' });
  const pid = sleeper();
  writeFileSync(at.pidfile, `${pid}\n`);
  const outcome = await launch(at);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, new RegExp(`FATAL pidfile '${at.pidfile}' exists, another instance running\\?\n`));
  assert.equal(pidOf(at), pid);
});

it('a pidfile with the process id of the process that starts is stale, as in a container', async () => {
  const at = await setUp();
  const { node, mainJs } = installed();
  const command = ['-c', 'echo $$ >"$0"; exec "$@"', at.pidfile, node, mainJs, '-q', at.ini];
  const child = startProgram('sh', command, { cwd: at.dir, stdio: 'ignore', ...spawnAs(user) });
  await eventually('the pooler to be up', () => log(at).includes('LOG process up: '));
  assert.equal(pidOf(at), child.pid);
  await stopDaemon(at);
});

it('an empty pidfile prevents a start', async () => {
  for (const text of ['', 'x', '0', '-5']) {
    const at = await setUp({ unix_socket_dir: '' });
    writeFileSync(at.pidfile, text);
    const outcome = await launch(at);
    assert.equal(outcome.code, 1, JSON.stringify(text));
    assert.match(outcome.stderr, /FATAL pidfile '.*' exists, another instance running\?\n/);
  }
});

it('a stale pidfile is replaced', async () => {
  const at = await setUp();
  writeFileSync(at.pidfile, `${await deadPid()}\n`);
  giveTo(user, at.pidfile);
  assert.equal((await launch(at, '-d')).code, 0);
  assert.match(log(at), /LOG stale pidfile, removing\n/);
  await stopDaemon(at);
  assert.equal(existsSync(at.pidfile), false);
});

it('an unreadable pidfile prevents a start', async () => {
  const at = await setUp({ unix_socket_dir: '' });
  writeFileSync(at.pidfile, '1\n');
  giveTo(user, at.pidfile);
  chmodSync(at.pidfile, 0);
  const outcome = await launch(at);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL could not open pidfile '.*': Permission denied\n/);
});

it('the pidfile of another process is left alone at exit', async () => {
  const at = await setUp();
  assert.equal((await launch(at, '-d')).code, 0);
  const pid = pidOf(at);
  const other = sleeper();
  writeFileSync(at.pidfile, `${other}\n`);
  process.kill(pid, 'SIGQUIT');
  await eventually('the daemon to end', () => gone(pid));
  assert.equal(pidOf(at), other);
});

it('the pidfile exists while a foreground pooler runs, and is removed at its end', async () => {
  const at = await setUp();
  const { node, mainJs } = installed();
  const child = startProgram(node, [mainJs, at.ini], { stdio: ['ignore', 'ignore', 'pipe'], ...spawnAs(user) });
  await new LogTail(child).wait(/process up/);
  assert.equal(pidOf(at), child.pid);
  const closed = new Promise<number | null>((settle) => child.once('close', settle));
  child.kill('SIGTERM');
  assert.equal(await withTimeout(closed, 'the pooler to end'), 0);
  assert.equal(existsSync(at.pidfile), false);
});
