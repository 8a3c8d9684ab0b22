/*
 * Neither PostgreSQL nor the pooler runs as root. When the demo, the tests or the benchmark run as root, this file
 * chooses the user to start them as, and checks whether that user can access a folder or a program.
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

/** Tried in this order; every Unix machine has at least one of these users. */
const CANDIDATES = ['postgres', 'nobody'];

/** True if this process can and must switch to another user. */
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

/** The user for child processes if this process is root; null otherwise, because they inherit the ordinary user. */
export function runUser(): RunUser | null {
  if (!isRoot()) return null;
  for (const name of CANDIDATES) {
    const user = lookUp(name);
    if (user !== null) return user;
  }
  throw new Error(`running as root, and none of the users to switch to exists: ${CANDIDATES.join(', ')}`);
}

/** Options for spawn() to start a child process as that user. */
export function spawnAs(user: RunUser | null): { uid?: number; gid?: number } {
  return user === null ? {} : { uid: user.uid, gid: user.gid };
}

/** Whether the user can access the path through every folder above it: 'r' read, 'w' write, 'x' run or enter. */
export function userCan(user: RunUser | null, what: 'r' | 'w' | 'x', path: string): boolean {
  const run = spawnSync('/bin/sh', ['-c', `test -${what} "$1"`, 'sh', path], { cwd: '/', ...spawnAs(user) });
  return run.status === 0;
}

/** Makes the user the owner of the folder and its contents; does nothing if `user` is null. */
export function giveTo(user: RunUser | null, path: string): void {
  if (user === null) return;
  const stat = lstatSync(path);
  if (stat.isSymbolicLink()) return;
  if (stat.uid !== user.uid) chownSync(path, user.uid, user.gid);
  if (stat.isDirectory()) for (const name of readdirSync(path)) giveTo(user, join(path, name));
}
