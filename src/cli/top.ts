/*
 * `tsbouncer top [--once] FILE`: the pools of the running process in a terminal, once a second, from its console. The file
 * says where the console is. With --once, a table for scripts.
 */

import { writeSync } from 'node:fs';
import { logState } from '../core/base/log';
import { type AuthFileUser, loadAuthFile } from '../core/config/authfile';
import { applySettings, loadConfigFile } from '../core/config/loader';
import { cf } from '../core/config/settings';
import { waysIn } from './console';
import { PROGRAM_NAME } from './options';
import { type Session, withSession } from './pg-client';
import { printable } from './printable';
import { FRAME_LINES, ORDERS, plainTable, readSample, type Sample, screen, sorted } from './top-screen';
import { changeUser } from './user';

const PERIOD_MS = 1000;
const CONNECT_MS_MAX = 5000;
const ANSWER_MS_MAX = 5000;
/** A session ends after that, and the next begins. */
const SESSION_MS_MAX = 24 * 3600 * 1000;
/** Log lines of this level or worse are reasons why a config cannot be used. */
const ERROR = 1;

const ENTER = '\x1b[?1049h\x1b[?25l\x1b[?7l';
const LEAVE = '\x1b[?7h\x1b[?25h\x1b[?1049l';
/** Around a screen: the terminal shows it at once. */
const [BEGIN, END] = ['\x1b[?2026h\x1b[H', '\x1b[?2026l'];

/** A key of several bytes, or of one. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these keys begin with it
const KEY = /\x1b\[[0-9;]*[A-Za-z~]|[\s\S]/g;

const pause = (ms: number) => new Promise((settle) => setTimeout(settle, ms));

/** Loads the config. @returns the users of auth_file @throws Error with the reason */
function load(configFile: string): AuthFileUser[] {
  const reasons: string[] = [];
  logState.sink = (level, message) => {
    if (level <= ERROR) reasons.push(message);
  };
  cf.configFile = configFile;
  const parsed = loadConfigFile(configFile);
  if (parsed === null) throw new Error(reasons.join('\n') || `cannot load ${configFile}`);
  applySettings(parsed, true);
  // the file may be readable only for this user, and the console lets the pooler's own user in
  const users = cf.authFile === null || cf.authFile === '' ? null : loadAuthFile(cf.authFile, true);
  logState.sink = null;
  logState.quiet = true;
  if (process.getuid?.() === 0 && (cf.user ?? '') !== '') changeUser(cf.user as string);
  return users ?? [];
}

/** Asks the console once. */
async function take({ ask }: Session): Promise<Sample> {
  const late = pause(ANSWER_MS_MAX).then(() => Promise.reject(new Error('the console does not answer')));
  const all = async (): Promise<Sample> => {
    const [pools, databases] = [await ask('SHOW POOLS'), await ask('SHOW DATABASES')];
    const [users, stats] = [await ask('SHOW USERS'), await ask('SHOW STATS_TOTALS')];
    return readSample(performance.now(), pools, databases, users, stats);
  };
  late.catch(() => {});
  return Promise.race([all(), late]);
}

/** Runs `act` with the console, by the first way in that works. */
async function withConsole<T>(users: AuthFileUser[], act: (session: Session) => Promise<T>): Promise<T> {
  let failure = new Error('neither unix_socket_dir nor an administrator of auth_file leads to the console');
  let began = false;
  for (const way of waysIn(users)) {
    try {
      const noted = (session: Session) => {
        began = true;
        return act(session);
      };
      return await withSession(way, SESSION_MS_MAX, noted, CONNECT_MS_MAX);
    } catch (err) {
      failure = err as Error;
      if (began) break;
    }
  }
  throw failure;
}

function clock(): string {
  return new Date().toTimeString().slice(0, 8);
}

/** The interactive display. */
class Top {
  private now: Sample | null = null;
  private before: Sample | null = null;
  private order = 0;
  private from = 0;
  private trouble = '';
  private since = '';
  private entered = false;
  private finish: (code: number) => void = () => {};
  private readonly colour = (process.env.NO_COLOR ?? '') === '' && process.env.TERM !== 'dumb';

  constructor(private readonly users: AuthFileUser[]) {}

  /** @returns the exit code, when the user wants to leave */
  run(): Promise<number> {
    const done = new Promise<number>((settle) => {
      this.finish = (code) => {
        this.leave();
        settle(code);
      };
    });
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const) process.on(signal, () => this.finish(0));
    process.on('SIGCONT', () => this.enter());
    process.on('exit', () => this.leave());
    process.stdout.on('resize', () => this.draw());
    process.stdin.on('data', (keys: Buffer) => this.keys(keys.toString('latin1')));
    // the terminal is gone
    process.stdin.on('end', () => this.finish(0));
    process.stdout.on('error', () => this.finish(0));
    this.enter();
    this.refresh();
    return done;
  }

  private enter(): void {
    process.stdin.setRawMode?.(true);
    process.stdin.resume();
    process.stdout.write(ENTER);
    this.entered = true;
    this.draw();
  }

  private leave(): void {
    if (!this.entered) return;
    this.entered = false;
    process.stdin.setRawMode?.(false);
    try {
      writeSync(1, LEAVE);
    } catch {
      // the terminal is gone
    }
  }

  private async refresh(): Promise<void> {
    for (;;) {
      await withConsole(this.users, async (session) => {
        for (;;) {
          const sample = await take(session);
          this.before = this.now;
          this.now = sample;
          this.trouble = this.since = '';
          this.draw();
          await pause(PERIOD_MS);
        }
      }).catch((err: Error) => {
        // an online reboot may end the session: the next one is with the new process
        this.since ||= clock();
        this.trouble = `no answer since ${this.since}: ${err.message.replaceAll('\n', ' ')}`;
        this.draw();
      });
      await pause(PERIOD_MS);
    }
  }

  private room(): number {
    return Math.max(1, (process.stdout.rows ?? 24) - FRAME_LINES);
  }

  private scroll(by: number): void {
    const last = Math.max(0, (this.now?.pools.length ?? 0) - this.room());
    this.from = Math.min(last, Math.max(0, this.from + by));
  }

  private turn(by: number): void {
    this.order = (this.order + by + ORDERS.length) % ORDERS.length;
    this.from = 0;
  }

  private keys(text: string): void {
    for (const [key] of text.matchAll(KEY)) {
      if (key === 'q' || key === '\x03') this.finish(0);
      else if (key === '\x1a') this.suspend();
      else if (key === 's' || key === '\x1b[C') this.turn(1);
      else if (key === '\x1b[D') this.turn(-1);
      else if (key === '\x1b[A') this.scroll(-1);
      else if (key === '\x1b[B') this.scroll(1);
      else if (key === '\x1b[5~') this.scroll(-this.room());
      else if (key === '\x1b[6~') this.scroll(this.room());
    }
    this.draw();
  }

  private suspend(): void {
    this.leave();
    process.kill(process.pid, 'SIGSTOP');
  }

  private draw(): void {
    // a slow terminal gets the next screen instead
    if (!this.entered || process.stdout.writableLength > 0) return;
    this.scroll(0);
    const { columns = 80, rows = 24 } = process.stdout;
    const { order, from, trouble, colour } = this;
    const lines = screen(this.now, this.before, { columns, rows, order, from, clock: clock(), trouble, colour });
    process.stdout.write(BEGIN + lines.join('\r\n') + END);
  }
}

function warn(message: string): void {
  writeSync(2, Buffer.from(`${PROGRAM_NAME}: ${printable(message)}\n`, 'latin1'));
}

/**
 * Runs the command.
 * @param args the arguments after the word top
 * @returns the exit code
 */
export async function top(args: readonly string[]): Promise<number> {
  const files = args.filter((arg) => arg !== '--once');
  const [file] = files;
  if (file === undefined || files.length !== 1 || file.startsWith('-')) {
    writeSync(1, 'usage: top [--once] CONFIG_FILE\n');
    return 1;
  }
  try {
    const users = load(Buffer.from(file).toString('latin1'));
    if (!args.includes('--once')) {
      if (process.stdout.isTTY && process.stdin.isTTY) return await new Top(users).run();
      throw new Error('no terminal: use top --once');
    }
    const { pools } = await withConsole(users, take);
    writeSync(1, plainTable(sorted(pools, 0)));
  } catch (err) {
    warn((err as Error).message);
    return 1;
  }
  return 0;
}
