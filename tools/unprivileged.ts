/*
 * Neither PostgreSQL nor the pooler runs as root. Whoever starts one of them from a root shell (the demo, the tests, the
 * benchmark) asks here as whom to start it, and whether that user can reach a folder or a program.
 */

import { spawnSync } from 'node:child_process';
import { chownSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A user to run programs as. */
export interface RunUser {
  name: string;
  uid: number;
  gid: number;
}

/** Tried in this order; one of them is on every Unix machine. */
const CANDIDATES = ['postgres', 'nobody'];

/** True when this process may switch users, and must. */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

function lookUp(name: string): RunUser | null {
  const line = readFileSync('/etc/passwd', 'latin1')
    .split('\n')
    .find((entry) => entry.startsWith(`${name}:`));
  const fields = line?.split(':');
  if (fields === undefined || fields.length < 4) return null;
  return { name, uid: Number(fields[2]), gid: Number(fields[3]) };
}

/** As whom children run when this process is root; null when it is an ordinary user and they simply inherit. */
export function runUser(): RunUser | null {
  if (!isRoot()) return null;
  for (const name of CANDIDATES) {
    const user = lookUp(name);
    if (user !== null) return user;
  }
  throw new Error(`running as root, and there is none of the users ${CANDIDATES.join(', ')} to switch to`);
}

/** What spawn() needs in order to start a child as that user. */
export function spawnAs(user: RunUser | null): { uid?: number; gid?: number } {
  return user === null ? {} : { uid: user.uid, gid: user.gid };
}

/** Whether the user may do that to the path (through every folder above it): 'r' read, 'w' write, 'x' run or enter. */
export function userCan(user: RunUser | null, what: 'r' | 'w' | 'x', path: string): boolean {
  const run = spawnSync('/bin/sh', ['-c', `test -${what} "$1"`, 'sh', path], { cwd: '/', ...spawnAs(user) });
  return run.status === 0;
}

/** Gives the folder and all in it to the user; nothing happens when there is nobody to switch to. */
export function giveTo(user: RunUser | null, path: string): void {
  if (user === null) return;
  const stat = lstatSync(path);
  if (stat.isSymbolicLink()) return;
  if (stat.uid !== user.uid) chownSync(path, user.uid, user.gid);
  if (stat.isDirectory()) for (const name of readdirSync(path)) giveTo(user, join(path, name));
}
