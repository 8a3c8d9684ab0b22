/*
 * The name of the process: `tsbouncer`, or `pgbouncer` if it was started under that name, so that scripts which send
 * signals by name reach it.
 */

import assert from 'node:assert/strict';
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { iniText, installed, it, itUnless, run, startProgram, tempDir, user } from '../harness';
import { LogTail } from '../harness/log-tail';
import { findProgram } from '../harness/machine';
import { noProgram } from '../harness/needs';

interface Started {
  pid: number;
  stop(): Promise<void>;
}

/** How to start the pooler: the program, its first arguments, and how the process is then called. */
interface Way {
  what: string;
  name: string;
  command(dir: string): [program: string, ...args: string[]];
}

const ways: Way[] = [
  {
    what: 'as a script',
    name: 'tsbouncer',
    command: () => [installed().node, installed().mainJs],
  },
  {
    what: 'through a link called pgbouncer',
    name: 'pgbouncer',
    command(dir) {
      const link = join(dir, 'pgbouncer');
      symlinkSync(installed().mainJs, link);
      return [link];
    },
  },
  {
    what: 'through a link to a link, called pgbouncer',
    name: 'pgbouncer',
    command(dir) {
      symlinkSync(installed().mainJs, join(dir, 'tsbouncer'));
      const link = join(dir, 'pgbouncer');
      symlinkSync('tsbouncer', link);
      return [link];
    },
  },
  {
    what: 'with pgbouncer as its argument 0',
    name: 'pgbouncer',
    command(dir) {
      const wrapper = join(dir, 'start');
      const { node, mainJs } = installed();
      writeFileSync(wrapper, `exec -a pgbouncer '${node}' '${mainJs}' "$@"\n`);
      return ['/bin/bash', wrapper];
    },
  },
];

/** PATH with the folder of node in front: a link is started by its first line. */
function withNode(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${dirname(installed().node)}:${process.env.PATH ?? ''}` };
}

async function writeIni(dir: string, settings: Record<string, string> = {}): Promise<string> {
  const ini = join(dir, 'a.ini');
  const base = { listen_addr: '127.0.0.1', listen_port: await freePort(), unix_socket_dir: dir, auth_type: 'any' };
  writeFileSync(ini, iniText({ databases: { db: 'host=127.0.0.1' }, pgbouncer: { ...base, ...settings } }));
  return ini;
}

async function start(way: Way): Promise<Started & { ini: string }> {
  const dir = tempDir('name');
  const ini = await writeIni(dir);
  const [program, ...first] = way.command(dir);
  giveTo(user, dir);
  const child = startProgram(program, [...first, '-v', ini], {
    cwd: dir,
    env: withNode(),
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  await new LogTail(child).wait(/process up: /);
  const ended = new Promise<void>((settle) => void child.once('close', () => settle()));
  const stop = async (): Promise<void> => {
    child.kill('SIGQUIT');
    await ended;
  };
  return { pid: child.pid as number, ini, stop };
}

function arguments_(pid: number): string[] {
  const args = readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0');
  while (args.at(-1) === '') args.pop();
  return args;
}

for (const way of ways) {
  it(`started ${way.what}, the process is called ${way.name} and keeps its arguments`, async () => {
    const pooler = await start(way);
    assert.equal(readFileSync(`/proc/${pooler.pid}/comm`, 'latin1'), `${way.name}\n`);
    assert.deepEqual(arguments_(pooler.pid), [way.name, '-v', pooler.ini]);
    await pooler.stop();
  });
}

/* Signal 0 only asks whether the process exists: other processes of that name must not be disturbed. */
const finders: [program: string, args: string[], prints: boolean][] = [
  ['pgrep', ['-x', 'pgbouncer'], true],
  ['pgrep', ['--full', 'pgbouncer -v .*a.ini'], true],
  ['pidof', ['pgbouncer'], true],
  ['pkill', ['-0', '--exact', 'pgbouncer'], false],
  ['killall', ['-0', 'pgbouncer'], false],
];
for (const [program, args, prints] of finders) {
  itUnless(noProgram(program))(`${program} ${args.join(' ')} finds a process started as pgbouncer`, async () => {
    const pooler = await start(ways[1] as Way);
    const found = await run(findProgram(program) as string, args);
    assert.equal(found.code, 0, found.stderr);
    if (prints) assert.ok(found.stdout.trim().split(/\s+/).includes(String(pooler.pid)), found.stdout);
    await pooler.stop();
  });
}

it('a daemon started as pgbouncer is called so, and its messages use that name', async () => {
  const dir = tempDir('name');
  const pidfile = join(dir, 'a.pid');
  const ini = await writeIni(dir, { pidfile, logfile: join(dir, 'a.log') });
  const [link] = (ways[1] as Way).command(dir);
  giveTo(user, dir);
  const launched = await run(link, ['-d', ini], { cwd: dir, env: withNode() });
  assert.equal(launched.code, 0, launched.stderr);
  const pid = Number(readFileSync(pidfile, 'latin1'));
  assert.deepEqual(arguments_(pid), ['pgbouncer', '-d', ini]);
  process.kill(pid, 'SIGQUIT');
  const refused = await run(link, ['--nonsense'], { env: withNode() });
  assert.match(refused.stderr, /^pgbouncer: unrecognized option/);
  assert.match((await run(link, ['-V'], { env: withNode() })).stdout, /^PgBouncer \d+\.\d+\.\d+\n/);
});
