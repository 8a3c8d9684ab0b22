/*
 * password_command: the password of a forced user is what a command prints. Rotation without an error for clients, what
 * a command may do wrong, and what it inherits from the pooler.
 */

import assert from 'node:assert/strict';
import {
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { MessageChannel, Worker } from 'node:worker_threads';
import type { CommandAnswer } from '../../src/core/base/worker-messages';
import { giveTo } from '../../tools/unprivileged';
import { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { dropDir, eventually, installed, it, PROJECT_DIR, run, tempDir, user } from '../harness/machine';
import { withRebootChain } from '../harness/reboot-chain';

const ASK = 'SELECT current_user';

let pg: PgCluster;
let dir = '';
let program = '';

const at = (name: string): string => join(dir, name);

/** What the command prints. It fails while this is empty. */
function provide(password: string): void {
  writeFileSync(at('password'), password === '' ? '' : `${password}\n`);
  giveTo(user, dir);
}

/** How often the command has run. */
function runs(): number {
  return existsSync(at('runs')) ? readFileSync(at('runs'), 'latin1').split('\n').length - 1 : 0;
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    // closed meanwhile
    return '';
  }
}

/** No run ends while this file exists. */
function hold(): void {
  writeFileSync(at('hold'), '');
  giveTo(user, dir);
}

async function change(password: string): Promise<void> {
  await pg.sql(`ALTER ROLE app PASSWORD '${password}'`);
  provide(password);
}

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('app', 'one');
  await pg.setAuth('scram-sha-256');
  dir = tempDir('command');
  program = at('print');
  const lines = [
    '#!/bin/sh',
    `cd '${dir}'`,
    'echo "$#:$1:$2" >> runs',
    'ls -l /proc/$$/fd > descriptors',
    // of grep, which inherits it: the shell blocks signals while it starts a program
    'grep -E "^Sig(Blk|Ign)" /proc/self/status > signals',
    'while [ -e hold ]; do sleep 0.02; done',
    'echo "looked for $(cat password)" >&2',
    '[ -s password ] || exit 3',
    'cat password',
    '',
  ];
  writeFileSync(program, lines.join('\n'));
  chmodSync(program, 0o755);
});
after(async () => {
  await pg.stop();
  dropDir(dir);
});

const databases = (): Record<string, string> => {
  const connect = pg.connstr('postgres', `user=app password_command='${program} shop "two words"'`);
  return { shop: connect, '*': connect };
};

const who = async (pooler: Bouncer, database: string): Promise<string> =>
  (await pooler.sql(ASK, { database })).rows[0].current_user;

describe('password_command', () => {
  it('clients wait for the first run, and meet no error when the password changes', async () => {
    provide('one');
    hold();
    const pooler = await Bouncer.start({ databases: databases() });
    try {
      const first = Promise.all([who(pooler, 'shop'), who(pooler, 'another')]);
      await eventually('the command to run', () => runs() === 1);
      await eventually('both to wait', async () => (await pooler.admin('SHOW WAITS')).length === 2);
      for (const row of await pooler.admin('SHOW WAITS')) assert.equal(row.waits_for, 'password_command');
      rmSync(at('hold'));
      assert.deepEqual(await first, ['app', 'app']);
      // both databases have the same command
      assert.equal(runs(), 1);
      assert.equal(readFileSync(at('runs'), 'latin1'), '2:shop:two words\n');
      await pooler.logWait(/WARNING password_command \S+print: looked for \*\*\*/);

      await change('second-password');
      await pooler.admin('RECONNECT');
      assert.deepEqual(await Promise.all([who(pooler, 'shop'), who(pooler, 'another')]), ['app', 'app']);
      await pooler.logWait(/WARNING .*server login failed: .*: waiting for password_command/);
      await pooler.logWait(/LOG password_command \S+print: the password has changed/);
      assert.equal(runs(), 2);

      await change('third-password');
      await pooler.admin('RELOAD');
      await pooler.logWait(/the password has changed[\s\S]*the password has changed/);
      await pooler.admin('RECONNECT');
      assert.equal(await who(pooler, 'shop'), 'app');
      assert.equal(runs(), 3);
      assert.equal(pooler.log.count(/-password\b/), 0);
    } finally {
      await pooler.stop();
    }
  });

  it('the command inherits no connection and no signal settings', () => {
    const links = readFileSync(at('descriptors'), 'latin1').match(/(?<=-> ).*/g) ?? [];
    // what these tests themselves were started with, and what sh has opened
    const known = readdirSync('/proc/self/fd').map((fd) => linkOf(`/proc/self/fd/${fd}`));
    const own = new Set(['/dev/null', program, at('descriptors'), ...known]);
    const others = new Set(links.filter((link) => !own.has(link)));
    // stdout and stderr
    assert.equal(others.size, 2, links.join('\n'));
    for (const line of readFileSync(at('signals'), 'latin1').trim().split('\n')) assert.match(line, /\t0+$/);
  });

  it('a command that fails leaves the known password, or tells the clients', async () => {
    provide('');
    const started = runs();
    const pooler = await Bouncer.start({ databases: databases() });
    try {
      await assert.rejects(who(pooler, 'shop'), /password_command failed/);
      await pooler.logWait(/ERROR password_command \S+print has failed with exit status 3\n/);
      await change('one');
      await pooler.admin('RELOAD');
      await eventually('another run', () => runs() === started + 2);
      await eventually('the login to succeed', () => who(pooler, 'shop').catch(() => null));

      provide('');
      await pooler.admin('RELOAD');
      await pooler.logWait(/exit status 3, keeping the known password/);
      await pooler.admin('RECONNECT');
      assert.equal(await who(pooler, 'shop'), 'app');
    } finally {
      await pooler.stop();
    }
  });

  it('a refused password does not run the command again and again', async () => {
    provide('wrong');
    const started = runs();
    const pooler = await Bouncer.start({ databases: databases(), settings: { server_login_retry: 0 } });
    try {
      for (let i = 0; i < 5; i++) await assert.rejects(who(pooler, 'shop'), /password authentication failed/);
      assert.ok(runs() - started <= 3, `${runs() - started} runs`);
    } finally {
      await pooler.stop();
    }
  });

  it('the process of an online reboot knows the password before its own run has ended', async () => {
    await change('one');
    await withRebootChain({ cluster: pg, databases: { shop: databases().shop as string } }, async (chain) => {
      await chain.start('ts');
      const client = await chain.connect({ database: 'shop' });
      assert.equal((await client.query(ASK)).rows[0].current_user, 'app');
      hold();
      await chain.reboot('ts');
      const admin = await chain.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
      await admin.query('RECONNECT');
      await admin.end();
      assert.equal((await client.query(ASK)).rows[0].current_user, 'app');
      rmSync(at('hold'));
      await client.end();
    });
  });

  it('--check names a command that cannot be run', async () => {
    const connect = (command: string) => pg.connstr('postgres', `user=app password_command='${command}'`);
    const broken = { gone: connect('/nonexistent/x'), data: connect(at('password')), none: connect('print') };
    const pooler = await Bouncer.start({ databases: broken, wait: false });
    assert.equal((await pooler.expectEnd()).code, 1);
    assert.match(pooler.log.text, /password_command must begin with the absolute path of a program/);
    const { node, mainJs } = installed();
    const checked = await run(node, [mainJs, '--check', pooler.iniPath], { cwd: pooler.dir });
    assert.equal(checked.code, 1);
    assert.match(checked.stdout, /pooler\.ini:4: password_command must begin/);
    pooler.writeIni(readFileSync(pooler.iniPath, 'latin1').replace(/^none.*\n/m, ''));
    const again = await run(node, [mainJs, '--check', pooler.iniPath], { cwd: pooler.dir });
    assert.match(again.stdout, /pooler\.ini:2: password_command \/nonexistent\/x cannot be run: No such file/);
    assert.match(again.stdout, /pooler\.ini:3: password_command \S+ cannot be run: Permission denied/);
    await pooler.stop();
  });
});

describe('the thread that runs commands', () => {
  /** The answer to one run of a shell command. */
  async function runIn(script: string, limitMs = 20_000): Promise<CommandAnswer> {
    const { port1, port2 } = new MessageChannel();
    const wakeFd = openSync('/dev/null', 'w');
    const worker = new Worker(join(PROJECT_DIR, 'dist-test', 'src', 'workers', 'command.js'), {
      workerData: { port: port2, wakeFd },
      transferList: [port2],
    });
    try {
      const answer = new Promise<CommandAnswer>((settle) => port1.once('message', settle));
      port1.postMessage({ id: 7, words: ['/bin/sh', '-c', script], limitMs, outputMax: 100 });
      return await answer;
    } finally {
      port1.close();
      await worker.terminate();
      closeSync(wakeFd);
    }
  }

  it('ends a command that takes too long or prints too much, with its children', async () => {
    const late = await runIn('echo $$; sleep 100 & wait', 200);
    assert.deepEqual(late, { id: 7, error: 'has not ended after 0.2 s', stdout: '', lines: [] });
    const long = await runIn('yes');
    assert.equal(long.error, 'has printed more than a password');
  });

  it('reports the end of a command, and its errors without the password', async () => {
    assert.equal((await runIn('kill -9 $$')).error, 'was ended by SIGKILL');
    const shown = await runIn('echo secret; echo "a secret" >&2; echo b >&2');
    assert.deepEqual(shown, { id: 7, error: '', stdout: 'secret\n', lines: ['a ***', 'b'] });
    const many = await runIn('yes x | head -1000 >&2; exit 1');
    assert.equal(many.error, 'has failed with exit status 1');
    assert.equal(many.lines.length, 10);
  });
});
