/*
 * Users. The global user, one per name, has the settings and counts; credentials have a secret. Credentials exist per
 * user of auth_file, per forced user of a database, and per database for users found by auth_query.
 */

import { nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { compareNames, detach } from '../base/strutil';
import type { AuthFileUser } from '../config/authfile';
import { PgCredentials, PgGlobalUser } from './bouncer';

/** All users that have been asked for, sorted by name. */
export const userList = new StatList<PgGlobalUser>('user_list');
const usersByName = new Map<string, PgGlobalUser>();
/** The other users of auth_file, with their passwords: most users of a large file never log in. */
let sleepingUsers = new Map<string, string>();
/** PAM users are kept apart: their names may clash with those of other methods. */
const pamCredentials = new Map<string, PgCredentials>();

const userOrder = new OrderedIndex(userList, (a: PgGlobalUser, b: PgGlobalUser) => compareNames(a.name, b.name));

export function findGlobalUser(name: string): PgGlobalUser | null {
  return usersByName.get(name) ?? wakeUser(name);
}

export function findGlobalCredentials(name: string): PgCredentials | null {
  return findGlobalUser(name)?.credentials ?? null;
}

/** Number of all users, including users of auth_file that have not been asked for. */
export function userCount(): number {
  return userList.count + sleepingUsers.size;
}

/** Adds all users of auth_file to the list, before a command that lists every user. */
export function wakeAllUsers(): void {
  for (const name of [...sleepingUsers.keys()]) wakeUser(name);
}

function wakeUser(name: string): PgGlobalUser | null {
  const passwd = sleepingUsers.get(name);
  if (passwd === undefined) return null;
  sleepingUsers.delete(name);
  const user = addGlobalUser(detach(name));
  takeFromAuthFile(user, passwd);
  return user;
}

/** Changes a password, and drops what belongs to the old one: SCRAM keys and verifier, and failures of server logins. */
export function changePassword(credentials: PgCredentials, passwd: string): void {
  if (credentials.passwd === passwd) return;
  for (const pool of credentials.globalUser?.pools ?? [])
    if (pool.user === credentials) pool.lastLoginFailed = pool.lastConnectFailed = false;
  credentials.passwd = passwd;
  credentials.externalPasswd = false;
  credentials.scramPassthroughValid = false;
  credentials.scramClientKey = null;
  credentials.scramServerKey = null;
  credentials.scramVerifier = null;
}

/** The secret of a user without a password must be fetched at every login. */
function addGlobalUser(name: string): PgGlobalUser {
  const user = new PgGlobalUser(name);
  usersByName.set(name, user);
  userOrder.insert(user);
  user.credentials.dynamicPasswd = true;
  return user;
}

/** The user of that name, created if missing. */
export function findOrAddGlobalUser(name: string): PgGlobalUser {
  const user = findGlobalUser(name) ?? addGlobalUser(name);
  user.provisional = false;
  return user;
}

/**
 * The user of that name for a login. If it is created here, it is provisional until the login succeeds. The client must
 * be counted for it.
 */
export function findOrAddLoginUser(name: string): PgGlobalUser {
  const known = findGlobalUser(name);
  if (known !== null) return known;
  const user = addGlobalUser(name);
  user.provisional = true;
  return user;
}

/** Number of auth_file loads so far. */
let authFileRound = 0;

/**
 * Applies the users of auth_file. Users that are no longer in it become unknown: auth_query looks them up, or they are
 * rejected.
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
    changePassword(user.credentials, '');
    user.credentials.dynamicPasswd = true;
  }
}

function takeFromAuthFile(user: PgGlobalUser, passwd: string): void {
  if (user.credentials.passwd !== passwd) changePassword(user.credentials, detach(passwd));
  // an empty password in the file is intended: auth_query must not replace it
  user.credentials.dynamicPasswd = false;
  user.provisional = false;
  user.authFileRound = authFileRound;
}

/** Removes a user that has no pools and no clients. */
export function forgetGlobalUser(user: PgGlobalUser): void {
  userOrder.remove(user);
  usersByName.delete(user.name);
  pamCredentials.delete(user.name);
}

/**
 * The credentials of a PAM user, created if missing; the user is then provisional.
 * @param passwd null = keep the known one
 */
export function addPamCredentials(name: string, passwd: string | null): PgCredentials {
  let credentials = pamCredentials.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddLoginUser(name));
    pamCredentials.set(name, credentials);
  }
  if (passwd !== null) changePassword(credentials, passwd);
  return credentials;
}
