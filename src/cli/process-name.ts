/*
 * The name of this process for ps, pgrep, pkill, killall and pidof. Otherwise it would be `node`, and scripts and
 * operators that send signals to `pgbouncer` would miss it.
 */

import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { native } from '../core/base/native';
import { PROGRAM_NAME } from './options';

/** The name of the program that this one replaces: for links and wrappers with that name. */
const ORIGINAL_NAME = 'pgbouncer';

/**
 * The name under which this program was started: `pgbouncer` if the script's path (a link) or the process's argument 0
 * (exec -a) is that, else `tsbouncer`.
 */
export function programName(): string {
  const paths = [process.argv[1] ?? '', process.argv0];
  return paths.some((path) => basename(path) === ORIGINAL_NAME) ? ORIGINAL_NAME : PROGRAM_NAME;
}

/** Gives the process that name, and the command line that a program of that name would have. */
export function nameProcess(name: string): void {
  let args: string[] = [];
  try {
    // the bytes as they are, which process.argv does not keep
    args = readFileSync('/proc/self/cmdline', 'latin1').split('\0').slice(0, -1);
  } catch {
    // no /proc: the name alone
  }
  const own = args.slice(args.length - (process.argv.length - 2));
  native.setProcessTitle(name, Buffer.from(`${[name, ...own].join('\0')}\0`, 'latin1'));
}
