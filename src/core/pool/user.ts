/*
 * Users: the global user carries settings and counts; credentials carry a secret. One global user per name; credentials
 * exist per user (auth_file), per forced user of a database, and per database for users found by auth_query.
 */
import { type ListNode, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { PoolMode } from '../config/settings';
import type { PgPool } from './pool';

/** Longest user name, as NAMEDATALEN with room for cloud services' long names. */
export const MAX_USERNAME = 128;
/** Longest password including the terminator: PostgreSQL refuses longer authentication messages. */
export const MAX_PASSWORD = 65531;

export class PgCredentials {
  name: string;
  passwd = '';
  /** not a real user: goes through the motions and always fails */
  mockAuth = false;
  /** the password must be fetched anew for every login */
  dynamicPasswd = false;
  /** found by auth_query for a login that has not succeeded yet: only its client knows them */
  provisional = false;
  globalUser: PgGlobalUser | null;
  /** for passing SCRAM through to the server: learnt at the client's login */
  scramClientKey: Buffer | null = null;
  scramServerKey: Buffer | null = null;
  scramPassthroughValid = false;
  /** verifier made from a plain password, kept so that it is not derived at each login */
  scramVerifier: string | null = null;
  scramVerifierFor = '';

  constructor(name: string, globalUser: PgGlobalUser | null) {
    this.name = name;
    this.globalUser = globalUser;
  }
}

export class PgGlobalUser implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  name: string;
  /** made for logins that have not succeeded yet: forgotten with the last client that asks for it */
  provisional = false;
  credentials: PgCredentials;
  /** pools whose user this is */
  pools: PgPool[] = [];
  poolMode: PoolMode = PoolMode.INHERIT;
  poolSize = -1;
  resPoolSize = -1;
  /* usec; 0 = not set */
  transactionTimeout = 0;
  idleTransactionTimeout = 0;
  queryTimeout = 0;
  queryWaitTimeout = 0;
  queryWaitTimeoutSet = false;
  clientIdleTimeout = 0;
  maxUserConnections = 0;
  maxUserClientConnections = 0;
  /** server connections in use now */
  connectionCount = 0;
  clientConnectionCount = 0;
  /** number of the auth_file that has this user, 0 = none; see applyAuthFile */
  authFileRound = 0;

  constructor(name: string) {
    this.name = name;
    this.credentials = new PgCredentials(name, this);
  }
}

/** All users, ordered by name. */
export const userList = new StatList<PgGlobalUser>('user_list');
const usersByName = new Map<string, PgGlobalUser>();
/** PAM users live apart: their names may clash with those of other methods. */
const pamCredentials = new Map<string, PgCredentials>();

/** Byte order, as strcmp. */
export function compareNames(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

const userOrder = new OrderedIndex(userList, (a: PgGlobalUser, b: PgGlobalUser) => compareNames(a.name, b.name));

export function findGlobalUser(name: string): PgGlobalUser | null {
  return usersByName.get(name) ?? null;
}

export function findGlobalCredentials(name: string): PgCredentials | null {
  return usersByName.get(name)?.credentials ?? null;
}

/** A user without a secret of its own has to be asked for at every login. */
export function updateGlobalUserPasswd(user: PgGlobalUser, passwd: string): void {
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
  const user = usersByName.get(name) ?? addGlobalUser(name, passwd);
  user.provisional = false;
  return user;
}

/** Likewise, for a login: one that is made is provisional until the login succeeds. The client must be counted for it. */
export function findOrAddLoginUser(name: string): PgGlobalUser {
  const known = usersByName.get(name);
  if (known !== undefined) return known;
  const user = addGlobalUser(name, '');
  user.provisional = true;
  return user;
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
