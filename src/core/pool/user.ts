/*
 * Users: the global user carries settings and counts; credentials carry a secret. One global user per name; credentials
 * exist per user (auth_file), per forced user of a database, and per database for users found by auth_query.
 */

import { nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { detach } from '../base/strutil';
import type { AuthFileUser } from '../config/authfile';
import { PgCredentials, PgGlobalUser } from './bouncer';

/** Longest user name, as NAMEDATALEN with room for cloud services' long names. */
export const MAX_USERNAME = 128;
/** Longest password including the terminator: PostgreSQL refuses longer authentication messages. */
export const MAX_PASSWORD = 65531;

/** All users that something has asked for, ordered by name. */
export const userList = new StatList<PgGlobalUser>('user_list');
const usersByName = new Map<string, PgGlobalUser>();
/** The other users of auth_file, with their passwords: of a large file, most never log in. */
let sleepingUsers = new Map<string, string>();
/** PAM users live apart: their names may clash with those of other methods. */
const pamCredentials = new Map<string, PgCredentials>();

/** Byte order, as strcmp. */
export function compareNames(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

const userOrder = new OrderedIndex(userList, (a: PgGlobalUser, b: PgGlobalUser) => compareNames(a.name, b.name));

export function findGlobalUser(name: string): PgGlobalUser | null {
  return usersByName.get(name) ?? wakeUser(name);
}

export function findGlobalCredentials(name: string): PgCredentials | null {
  return findGlobalUser(name)?.credentials ?? null;
}

/** Number of all users, also those of auth_file that nothing has asked for. */
export function userCount(): number {
  return userList.count + sleepingUsers.size;
}

/** Puts all users of auth_file into the list, for those who want to see every user. */
export function wakeAllUsers(): void {
  for (const name of [...sleepingUsers.keys()]) wakeUser(name);
}

function wakeUser(name: string): PgGlobalUser | null {
  const passwd = sleepingUsers.get(name);
  if (passwd === undefined) return null;
  sleepingUsers.delete(name);
  const user = addGlobalUser(detach(name), '');
  takeFromAuthFile(user, passwd);
  return user;
}

/** A user without a secret of its own has to be asked for at every login. */
function updateGlobalUserPasswd(user: PgGlobalUser, passwd: string): void {
  user.credentials.passwd = passwd;
  user.credentials.dynamicPasswd = passwd === '';
}

function addGlobalUser(name: string, passwd: string): PgGlobalUser {
  const user = new PgGlobalUser(name);
  usersByName.set(name, user);
  userOrder.insert(user);
  updateGlobalUserPasswd(user, passwd);
  return user;
}

/** The user of that name, made with `passwd` when there is none yet. */
export function findOrAddGlobalUser(name: string, passwd: string): PgGlobalUser {
  const user = findGlobalUser(name) ?? addGlobalUser(name, passwd);
  user.provisional = false;
  return user;
}

/** Likewise, for a login: one that is made is provisional until the login succeeds. The client must be counted for it. */
export function findOrAddLoginUser(name: string): PgGlobalUser {
  const known = findGlobalUser(name);
  if (known !== null) return known;
  const user = addGlobalUser(name, '');
  user.provisional = true;
  return user;
}

/** Number of the last auth_file that was put in force. */
let authFileRound = 0;

/**
 * Puts the users of auth_file in force. Those who left it are unknown from now on: looked up by auth_query, or refused.
 */
export function applyAuthFile(users: AuthFileUser[]): void {
  const before = authFileRound++;
  sleepingUsers = new Map();
  for (const { name, passwd } of users) {
    const user = usersByName.get(name);
    if (user === undefined) sleepingUsers.set(name, passwd);
    else takeFromAuthFile(user, passwd);
  }
  if (before === 0) return;
  for (let user = userList.head; user !== null; user = nextOf(user)) {
    if (user.authFileRound !== before) continue;
    user.authFileRound = 0;
    replacePassword(user, '');
  }
}

function takeFromAuthFile(user: PgGlobalUser, passwd: string): void {
  if (user.credentials.passwd !== passwd) replacePassword(user, detach(passwd));
  // an empty password in the file is a decision, not a gap for auth_query to fill
  user.credentials.dynamicPasswd = false;
  user.provisional = false;
  user.authFileRound = authFileRound;
}

/** Keys learnt with the old secret say nothing about the new one. */
function replacePassword(user: PgGlobalUser, passwd: string): void {
  updateGlobalUserPasswd(user, passwd);
  user.credentials.scramPassthroughValid = false;
  user.credentials.scramClientKey = null;
  user.credentials.scramServerKey = null;
  user.credentials.scramVerifier = null;
}

/** Forgets a user that has no pool and no client. */
export function forgetGlobalUser(user: PgGlobalUser): void {
  userOrder.remove(user);
  usersByName.delete(user.name);
  pamCredentials.delete(user.name);
}

/** The credentials of a PAM user, made when missing; the user is provisional then. @param passwd null leaves the known one */
export function addPamCredentials(name: string, passwd: string | null): PgCredentials {
  let credentials = pamCredentials.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddLoginUser(name));
    pamCredentials.set(name, credentials);
  }
  if (passwd !== null) credentials.passwd = passwd;
  return credentials;
}
