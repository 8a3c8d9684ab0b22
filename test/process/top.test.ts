/*
 * `tsbouncer top`: the table for scripts against SHOW POOLS, and the display in a terminal. Keys, sizes, hostile names, a
 * pooler that is gone and comes back, and the terminal as it was at the end.
 */

import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { type PoolLine, plainTable, screen, sorted } from '../../src/cli/top-screen';
import { spawnAs } from '../../tools/unprivileged';
import { ask, login, start, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, installed, it, run, startProgram, user, withTimeout } from '../harness/machine';
import { itUnless, noPython, python } from '../harness/needs';
import { withRebootChain } from '../harness/reboot-chain';

/** Runs a command in a terminal of its own, whose output and keys are those of this program. */
const TERMINAL = `
import fcntl, os, pty, signal, struct, sys, termios
columns, lines = int(sys.argv[1]), int(sys.argv[2])
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[3], sys.argv[3:])
def size(columns, lines):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', lines, columns, 0, 0))
size(columns, lines)
signal.signal(signal.SIGUSR1, lambda *_: size(100, 30))
import select
while True:
    try:
        ready, _, _ = select.select([fd, 0], [], [])
        if fd in ready:
            data = os.read(fd, 65536)
            if not data: break
            os.write(1, data)
        if 0 in ready:
            keys = os.read(0, 100)
            if not keys: os.kill(pid, signal.SIGHUP); continue
            if keys == b'TERM': os.kill(pid, signal.SIGTERM)
            else: os.write(fd, keys)
    except OSError:
        break
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
`;

class Terminal {
  text = '';
  readonly ended: Promise<number | null>;
  private readonly child: ChildProcess;

  constructor(command: string[], columns = 80, rows = 24) {
    this.child = startProgram(python, ['-c', TERMINAL, String(columns), String(rows), ...command], {
      cwd: '/',
      env: { ...process.env, TERM: 'xterm', NO_COLOR: '1' },
      stdio: ['pipe', 'pipe', 'inherit'],
      ...spawnAs(user),
    });
    this.child.stdout?.on('data', (chunk: Buffer) => {
      this.text += chunk.toString('utf8');
    });
    this.child.stdin?.on('error', () => {});
    this.ended = new Promise((settle) => this.child.once('close', settle));
  }

  /** The lines of the last whole screen. */
  get screen(): string[] {
    const end = this.text.lastIndexOf('\x1b[?2026l');
    const begin = this.text.lastIndexOf('\x1b[H', end);
    return end < 0 ? [] : this.text.slice(begin + 3, end).split(/\r+\n/);
  }

  shows(what: string, pattern: RegExp): Promise<boolean> {
    return eventually(what, () => this.screen.some((line) => pattern.test(line)));
  }

  keys(text: string): void {
    this.child.stdin?.write(text);
  }

  resize(): void {
    this.child.kill('SIGUSR1');
  }

  end(): Promise<number | null> {
    return withTimeout(this.ended, () => `top to end:\n${this.text.slice(-2000)}`);
  }
}

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function command(ini: string, ...args: string[]): string[] {
  const { node, mainJs } = installed();
  return [node, mainJs, 'top', ...args, ini];
}

async function once(pooler: Bouncer): Promise<string[][]> {
  const [node = '', ...args] = command(pooler.iniPath, '--once');
  const { code, stdout, stderr } = await run(node, args);
  assert.deepEqual([code, stderr], [0, '']);
  const lines = stdout.trimEnd().split('\n');
  return lines.map((line) => line.split(/ +/));
}

describe('top --once', () => {
  it('prints the pools of SHOW POOLS, the most saturated first', async () => {
    const settings = { pool_mode: 'transaction', default_pool_size: 2 };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const clients = await Promise.all([1, 2, 3].map(() => login(pooler)));
      for (const client of clients.slice(0, 2)) await ask(client, 'BEGIN');
      await start(clients[2] as (typeof clients)[0], 'SELECT 1');
      await eventually('the waiting client', async () => {
        const rows = await pooler.admin('SHOW POOLS');
        return rows.some((row) => row.database === 'postgres' && row.cl_waiting === 1);
      });
      const [heading = [], first = [], ...others] = await once(pooler);
      const [shown] = (await pooler.admin('SHOW POOLS')).filter((row) => row.database === 'postgres');
      const found = Object.fromEntries(heading.map((name, at) => [name, first[at]]));
      for (const name of ['database', 'user', 'cl_active', 'cl_waiting', 'sv_active', 'sv_idle']) {
        assert.equal(found[name], String(shown?.[name]), name);
      }
      assert.deepEqual([found.saturation, found.pool_size, found.sv_other], ['150%', '2', '0']);
      assert.equal(others.length, 1);
      for (const client of clients) await client.destroy();
    });
  });

  it('says why there is nothing to show', async () => {
    const fails = async (...args: string[]) => {
      const [node = '', main = ''] = command('');
      const { code, stdout, stderr } = await run(node, [main, 'top', ...args]);
      assert.equal(code, 1);
      return stdout + stderr;
    };
    assert.match(await fails(), /^usage: top \[--once\] CONFIG_FILE$/m);
    assert.match(await fails('--once', '/nowhere.ini'), /could not load file "\/nowhere.ini"/);
    await withPooler({ cluster: pg }, async (pooler) => {
      assert.match(await fails(pooler.iniPath), /no terminal: use top --once/);
      pooler.signal('SIGTERM');
      await pooler.expectEnd();
      assert.match(await fails('--once', pooler.iniPath), /connection to server .* failed/);
    });
  });
});

describe('top in a terminal', () => {
  const inTerminal = itUnless(noPython);

  inTerminal('shows pools and rates, sorts, resizes, and restores the terminal', async () => {
    await withPooler({ cluster: pg, settings: { pool_mode: 'transaction' } }, async (pooler) => {
      const client = await login(pooler);
      await ask(client, 'SELECT 1');
      const top = new Terminal(command(pooler.iniPath));
      await top.shows('the pool', /^postgres +postgres /);
      await top.shows('rates', /queries\/s/);
      assert.equal(top.screen.length, 24);
      assert.ok(
        top.screen.every((line) => line.length === 80),
        JSON.stringify(top.screen),
      );
      top.keys('s');
      await top.shows('the next order', /by cl_waiting/);
      top.keys('\x1b[D\x1b[D');
      await top.shows('the last order', /by name/);
      top.resize();
      await eventually('more lines', () => top.screen.length === 30 && top.screen[0]?.length === 100);
      top.keys('q');
      assert.equal(await top.end(), 0);
      assert.ok(top.text.includes('\x1b[?1049h'));
      assert.ok(top.text.endsWith('\x1b[?7h\x1b[?25h\x1b[?1049l'), JSON.stringify(top.text.slice(-60)));
    });
  });

  inTerminal('goes on after an online reboot, says when the pooler is gone, and obeys SIGTERM', async () => {
    await withRebootChain({ cluster: pg }, async (chain) => {
      await chain.start('ts');
      const top = new Terminal(command(chain.ini));
      await top.shows('the pool of the console', /^pgbouncer +pgbouncer /);
      await chain.reboot('ts');
      const from = top.text.length;
      await eventually('another screen', () => /queries\/s/.test(top.text.slice(from)));
      await chain.now.kill('SIGKILL');
      await top.shows('the reason', /no answer since \d\d:\d\d:\d\d/);
      top.keys('TERM');
      assert.equal(await top.end(), 0);
      assert.ok(top.text.endsWith('\x1b[?7h\x1b[?25h\x1b[?1049l'));
    });
  });
});

describe('the lines of top', () => {
  const pool = (database: string, more: Partial<PoolLine> = {}): PoolLine => ({
    ...{ database, user: 'u', active: 1, waiting: 0, serversActive: 0, serversIdle: 1, serversOther: 0, size: 2 },
    ...{ maxWait: 0, saturation: 0, ...more },
  });
  const view = { columns: 80, rows: 24, order: 0, from: 0, clock: '12:00:00', trouble: '', colour: false };

  it('names cannot disturb a terminal or a script', () => {
    const pools = [pool('a\x1b[2Jb\nc'), pool('d e'), pool(''), pool('\u202ex')];
    const table = plainTable(pools);
    assert.equal(table.split('\n').length, 6);
    assert.doesNotMatch(table, /[^\x20-\x7e\n]/);
    const [, ...rows] = table.trimEnd().split('\n');
    assert.deepEqual(
      rows.map((row) => row.split(/ +/)[0]),
      ['a\\x1b[2Jb\\x0ac', 'd\\x20e', '""', '\\x202ex'],
    );
    const lines = screen({ at: 1, pools, totals: {} }, null, view);
    assert.ok(
      lines.every((line) => /^[\x20-\x7e]{80}$/.test(line)),
      JSON.stringify(lines),
    );
  });

  it('an error text of the server cannot disturb a terminal', () => {
    const trouble = 'no answer: \x1b]0;x\x07\x1b[2J\xc2\x9b31m\x9b\u0085 end';
    const [line = ''] = screen(null, null, { ...view, columns: 120, trouble });
    assert.match(line, /no answer: +\]0;x +\[2J +31m +end/);
    assert.match(line, /^[\x20-\x7e]+$/);
  });

  it('fit any screen, with wide and long names', () => {
    const pools = Array.from({ length: 50 }, (_, at) => pool(`\u6570\u636e\u5e93${'x'.repeat(at * 3)}`));
    for (const [columns, rows] of [
      [80, 24],
      [40, 10],
      [200, 60],
      [20, 3],
    ] as const) {
      const lines = screen({ at: 1, pools, totals: {} }, null, { ...view, columns, rows, from: 0 });
      assert.equal(lines.length, rows);
      const width = (line: string) => [...line].reduce((sum, char) => sum + (char > '\u1100' ? 2 : 1), 0);
      for (const line of lines) assert.equal(width(line), columns, line);
    }
    assert.match(screen({ at: 1, pools, totals: {} }, null, view).at(-1) ?? '', /pools 1-18 of 50/);
  });

  it('are sorted by saturation, then by the longest wait', () => {
    const pools = [pool('a'), pool('b', { saturation: 1 }), pool('c', { saturation: 1, maxWait: 5 })];
    assert.deepEqual(
      sorted(pools, 0).map(({ database }) => database),
      ['c', 'b', 'a'],
    );
  });
});
