/*
 * The part of --check about password_command: whether its program can be run, and with --connect what it prints. Runs as
 * the pooler's user.
 */

import { spawnSync } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { strerror } from '../core/base/log';
import type { ParsedConfig } from '../core/config/loader';
import { commandWords, passwordFault } from '../core/config/password-source';
import type { DatabaseConfig } from '../core/config/records';
import { MAX_PASSWORD } from '../core/wire/limits';
import { allDatabases, type Warning } from './check-limits';

/** The pooler's limit, too. */
const COMMAND_MS_MAX = 10_000;

/** What the commands have printed, by their text; null = no password. */
const printed = new Map<string, string | null>();

function programOf(text: string): string | null {
  const words = commandWords(text);
  return typeof words === 'string' ? null : (words[0] as string);
}

/** The programs that the pooler cannot run. */
export function findCommandProblems(parsed: ParsedConfig): Warning[] {
  const found: Warning[] = [];
  for (const { name, passwordCommand } of allDatabases(parsed)) {
    const program = passwordCommand === null ? null : programOf(passwordCommand);
    if (program === null) continue;
    const path = Buffer.from(program, 'latin1');
    const key = `databases/${name}`;
    try {
      if (!statSync(path).isFile()) found.push({ key, text: `password_command ${program} is not a program` });
      else accessSync(path, constants.X_OK);
    } catch (err) {
      found.push({ key, text: `password_command ${program} cannot be run: ${strerror(err)}` });
    }
  }
  return found;
}

function runCommand(text: string): string | null {
  const words = commandWords(text);
  if (typeof words === 'string') return null;
  const [program = '', ...args] = words.map((word) => Buffer.from(word, 'latin1').toString('utf8'));
  const { status, stdout } = spawnSync(program, args, {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'ignore'],
    encoding: 'latin1',
    timeout: COMMAND_MS_MAX,
    killSignal: 'SIGKILL',
    maxBuffer: MAX_PASSWORD + 1,
  });
  const passwd = status === 0 ? stdout.replace(/\r?\n$/, '') : '';
  return passwordFault(passwd) === null ? passwd : null;
}

/** The password in a database's line, or what its command prints. @returns null if there is none */
export function passwordOf({ password, passwordCommand }: DatabaseConfig): string | null {
  if (passwordCommand === null) return password;
  if (!printed.has(passwordCommand)) printed.set(passwordCommand, runCommand(passwordCommand));
  return printed.get(passwordCommand) ?? null;
}
