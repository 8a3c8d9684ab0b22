/*
 * Passwords that are not in the ini: each in a file of its own, as containers get their secrets, in a variable of the
 * environment, or printed by a command (link/password-command.ts runs it). Called when the config is read, and for a
 * file again when a connection logs in to a server.
 */

import { readFileSync, statSync } from 'node:fs';
import { logWarning, strerror } from '../base/log';
import { MAX_PASSWORD } from '../wire/limits';

/** The bit of a file's mode that lets all users read it. */
const READABLE_BY_ALL = 0o004;

/** The files that a warning has named. */
const warned = new Set<string>();

/** A password, and the state of its file when it was read. */
interface FoundPassword {
  readonly passwd: string;
  readonly mark: string;
}

/** A text for the state of a file, to see whether the file has changed, or a link to it leads elsewhere. */
export function fileMark(path: string): string {
  if (path === '') return '';
  const stat = statSync(Buffer.from(path, 'latin1'), { throwIfNoEntry: false });
  return stat === undefined ? 'none' : `${stat.ino}/${stat.mtimeMs}/${stat.size}`;
}

/** @returns why the text is no password, or null */
export function passwordFault(text: string): string | null {
  if (text === '') return 'is empty';
  if (text.length >= MAX_PASSWORD) return 'has too long a password';
  return /[\r\n\0]/.test(text) ? 'has more than one line' : null;
}

/** The password in a file: all of it, without the line break at its end. @returns the error if there is none */
export function readPasswordFile(path: string): FoundPassword | string {
  try {
    const bytes = Buffer.from(path, 'latin1');
    const mark = fileMark(path);
    const { mode, size } = statSync(bytes);
    // reading anything else could take forever
    if ((mode & 0o170000) !== 0o100000) return `password_file ${path} is not a file`;
    if (size > MAX_PASSWORD + 1) return `password_file ${path} has too long a password`;
    const passwd = readFileSync(bytes, 'latin1').replace(/\r?\n$/, '');
    const error = passwordFault(passwd);
    if (error !== null) return `password_file ${path} ${error}`;
    if ((mode & READABLE_BY_ALL) !== 0 && !warned.has(path)) {
      warned.add(path);
      logWarning(`password_file ${path} can be read by all users`);
    }
    return { passwd, mark };
  } catch (err) {
    return `could not open password_file ${path}: ${strerror(err)}`;
  }
}

/** The password in a variable of the environment. @returns the error if there is none */
function readPasswordVariable(name: string): FoundPassword | string {
  const value = process.env[name];
  if (value === undefined) return `password_env: there is no variable ${name} in the environment`;
  const passwd = Buffer.from(value, 'utf8').toString('latin1');
  const error = passwordFault(passwd);
  return error === null ? { passwd, mark: '' } : `password_env: ${name} ${error}`;
}

/**
 * Program and arguments of a password_command: words between spaces; in double quotes a word may contain spaces, and ""
 * stands for one double quote. No shell is involved.
 * @returns the error if it is no command
 */
export function commandWords(text: string): string[] | string {
  const rest = text.replace(/^ +| +$/g, '');
  if (!/^(?:(?:[^" ]+|"(?:[^"]|"")*")(?: +|$))*$/.test(rest))
    return 'password_command: double quotes enclose whole words';
  const words = rest.match(/"(?:[^"]|"")*"|[^ ]+/g) ?? [];
  const plain = words.map((word) => (word.startsWith('"') ? word.slice(1, -1).replaceAll('""', '"') : word));
  if (!(plain[0] ?? '').startsWith('/')) return 'password_command must begin with the absolute path of a program';
  return plain;
}

interface WithPassword {
  password: string | null;
  passwordMark: string;
  readonly passwordFile: string | null;
  readonly passwordEnv: string | null;
  readonly passwordCommand: string | null;
}

/** Finds the password of a database, if its line says where it is. @returns the error, or null */
export function findPassword(config: WithPassword): string | null {
  const { password, passwordFile, passwordEnv, passwordCommand } = config;
  const given = [password, passwordFile, passwordEnv, passwordCommand].filter((value) => value !== null).length;
  if (given > 1) return 'only one of password, password_file, password_env and password_command is possible';
  if (passwordCommand !== null) {
    const words = commandWords(passwordCommand);
    return typeof words === 'string' ? words : null;
  }
  if (passwordFile === null && passwordEnv === null) return null;
  const found = passwordFile === null ? readPasswordVariable(passwordEnv ?? '') : readPasswordFile(passwordFile);
  if (typeof found === 'string') return found;
  config.password = found.passwd;
  config.passwordMark = found.mark;
  return null;
}
