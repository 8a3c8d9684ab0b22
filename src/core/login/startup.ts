/*
 * The startup packet of a client: its parameters, its database, its user, and the choice of an authentication method.
 */

import { PasswordType, passwordType } from '../auth/secret';
import { slogDebug, slogError, slogInfo, slogNoise, slogWarning, wantDebug } from '../base/log';
import { asciiLower, isSpace, skipBlanks, strlistContains } from '../base/strutil';
import { Tally, tally } from '../base/tallies';
import { AuthType } from '../config/choices';
import type { HbaRule } from '../config/hba';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { authUserOf, findOrRegisterLoginDatabase } from '../link/registry';
import { addrDetails } from '../net/addr';
import { sendPacket } from '../net/sbuf';
import { tlsConnectionInfo } from '../net/tls';
import { type ClientSocket, PgCredentials, PgDatabase, Replication } from '../pool/bouncer';
import { leaveLookup } from '../pool/lookups';
import { LoginPhase } from '../pool/phases';
import { uncountUser } from '../pool/provisional';
import { isDead, loginOf, replicationTypeParameters } from '../pool/socket';
import { socketCounts } from '../pool/states';
import { upcalls } from '../pool/upcalls';
import { addPamCredentials, findGlobalCredentials, findGlobalUser, findOrAddLoginUser } from '../pool/user';
import { isConfiguredVar, isValidVar } from '../pool/varcache';
import { MAX_DBNAME, MAX_USERNAME } from '../wire/limits';
import { writeNegotiateProtocolVersion } from '../wire/messages';
import { Pkt } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { PktReader } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { checkDbConnectionCount, checkUserConnectionCount, refuse } from './admit';
import { startAuthQuery } from './auth-query';
import { findHbaRule } from './hba-rules';
import { sendClientAuthReq } from './login';
import { certAllows, peerAllows } from './peer-cert';
import { finishClientLogin } from './welcome';

/** Reads one word of `options`: a backslash quotes the next character, a space ends the word. */
function readEscapedToken(text: string, start: number): { token: string; next: number } {
  let token = '';
  let i = start;
  for (; i < text.length; i++) {
    const c = text[i] as string;
    if (c === '\\') {
      i++;
      if (i < text.length) token += text[i];
    } else if (isSpace(text.charCodeAt(i))) {
      break;
    } else {
      token += c;
    }
  }
  return { token, next: i };
}

/** True if the config ignores a startup parameter. @param entry the word of ignore_startup_parameters that does so */
function isIgnored(name: string, entry = name): boolean {
  return strlistContains(cf.ignoreStartupParameters, entry) && !isConfiguredVar(name);
}

/**
 * Handles the startup parameter `options`: `-c name=value` and `--name=value`, for tracked or ignored parameters only.
 * A replication client gets a server connection of its own, to which the text is passed unchanged.
 * @returns null, or why the client is rejected
 */
function setStartupOptions(client: ClientSocket, options: string): string | null {
  if (client.replication !== Replication.NONE) {
    client.startupOptions = options;
    return null;
  }
  if (wantDebug()) slogDebug(client, `received options: ${options}`);
  const unsupported = "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed";
  let pos = 0;
  while (pos < options.length) {
    pos = skipBlanks(options, pos);
    if (options.startsWith('-c', pos)) pos = skipBlanks(options, pos + 2);
    else if (options.startsWith('--', pos)) pos += 2;
    else return unsupported;
    const { token, next } = readEscapedToken(options, pos);
    pos = next;
    const equals = token.indexOf('=');
    if (equals < 0) return unsupported;
    const key = token.slice(0, equals);
    const value = token.slice(equals + 1);
    if (isIgnored(key) || isIgnored(key, 'options')) {
      if (wantDebug()) slogDebug(client, `ignoring startup parameter from options: ${key}=${value}`);
    } else if (client.vars.setUnproven(key, value)) {
      if (!isValidVar(key, value)) return `invalid value for parameter "${key}": "${value}"`;
      if (wantDebug()) slogDebug(client, `got var from options: ${key}=${value}`);
    } else {
      slogWarning(client, `unsupported startup parameter in options: ${key}=${value}`);
      return `unsupported startup parameter in options: ${key}`;
    }
  }
  return null;
}

function setAppname(client: ClientSocket, given: string | null): void {
  let name = given;
  if (cf.applicationNameAddHost) name = `${name ?? 'app'} - ${addrDetails(client.remoteAddr)}`;
  if (name === null) return;
  if (wantDebug()) slogDebug(client, `using application_name: ${name}`);
  client.vars.setUnproven('application_name', name);
}

const TRUE_WORDS = ['true', 'yes', 'on', '1'];
const FALSE_WORDS = ['false', 'no', 'off', '0'];

/** A boolean as PostgreSQL parses it: any unique prefix of a word. null = not a boolean */
function parseBool(text: string): boolean | null {
  const word = asciiLower(text);
  if (word === '' || word === 'o') return null;
  if (TRUE_WORDS.some((full) => full.startsWith(word))) return true;
  if (FALSE_WORDS.some((full) => full.startsWith(word))) return false;
  return null;
}

function setReplication(client: ClientSocket, value: string): void {
  if (value === 'database') {
    client.replication = Replication.LOGICAL;
    return;
  }
  const on = parseBool(value);
  if (on !== null) client.replication = on ? Replication.PHYSICAL : Replication.NONE;
}

/** The contents of a startup packet. */
interface StartupRequest {
  user: string;
  database: string;
  appname: string | null;
  /** names of protocol extensions (_pq_.…); none is supported */
  extensions: string[];
}

/** Reads pairs of names and values. @returns null if the terminator is missing */
function readPairs(buf: Buffer, off: number, end: number): [string, string][] | null {
  const reader = new PktReader(buf, off, end);
  const pairs: [string, string][] = [];
  for (;;) {
    const key = reader.name();
    if (key === null) return null;
    if (key === '') break;
    const value = reader.name();
    if (value === null) return null;
    pairs.push([key, value]);
  }
  return reader.pos === end ? pairs : null;
}

/** Applies all parameters. @returns the request, or why the client is rejected */
function readStartup(client: ClientSocket, pairs: [string, string][]): StartupRequest | string {
  const request: StartupRequest = { user: '', database: '', appname: null, extensions: [] };
  // `options` is parsed differently for replication clients, so look for `replication` first, wherever it is
  for (const [key, value] of pairs) if (key === 'replication') setReplication(client, value);
  for (const [key, value] of pairs) {
    if (key === 'database') {
      request.database = value;
    } else if (key === 'user') {
      request.user = value;
    } else if (key === 'options') {
      const error = setStartupOptions(client, value);
      if (error !== null) return error;
    } else if (key === 'application_name') {
      setAppname(client, value);
      request.appname = value;
    } else if (key === 'replication') {
      // already handled
    } else if (key.startsWith('_pq_.')) {
      if (wantDebug()) slogDebug(client, `ignoring protocol extension parameter: ${key}=${value}`);
      request.extensions.push(key);
    } else if (isIgnored(key)) {
      if (wantDebug()) slogDebug(client, `ignoring startup parameter: ${key}=${value}`);
    } else if (client.vars.setUnproven(key, value)) {
      if (!isValidVar(key, value)) return `invalid value for parameter "${key}": "${value}"`;
      if (wantDebug()) slogDebug(client, `got var: ${key}=${value}`);
    } else {
      slogWarning(client, `unsupported startup parameter: ${key}=${value}`);
      return `unsupported startup parameter: ${key}`;
    }
  }
  if (request.user === '') return 'no username supplied';
  if (request.database === '') request.database = request.user;
  if (request.appname === null) setAppname(client, null);
  return request;
}

/** Tells the client which version is used: the newest supported version, or the client's if that is older. */
function negotiateProtocol(client: ClientSocket, extensions: string[]): boolean {
  loginOf(client).protocolNegotiated = true;
  const buf = pktbufTemp();
  writeNegotiateProtocolVersion(buf, client.protocol32 ? Pkt.STARTUP_V32 : Pkt.STARTUP_V3, extensions);
  return sendPacket(client, buf);
}

/**
 * Handles a complete StartupMessage.
 * @param type Pkt.STARTUP_V3, STARTUP_V32, or STARTUP_V3_LATER for a later minor version
 * @param off start of the packet's body, which ends at `end`
 */
export function decideStartupPool(client: ClientSocket, type: number, buf: Buffer, off: number, end: number): Verdict {
  const pairs = readPairs(buf, off, end);
  if (pairs === null) return refuse(client, 'invalid startup packet layout: expected terminator as last byte');
  const request = readStartup(client, pairs);
  if (typeof request === 'string') return refuse(client, request);

  // the client itself is already counted; the console stays reachable
  if (socketCounts.clients - socketCounts.ownRequests > cf.maxClientConn && request.database !== 'pgbouncer') {
    tally(Tally.REFUSED_BY_PROCESS);
    return refuse(client, 'no more connections allowed (max_client_conn)');
  }
  client.protocol32 = type !== Pkt.STARTUP_V3;
  const newer = type === Pkt.STARTUP_V3_LATER || request.extensions.length > 0;
  if (newer && !loginOf(client).protocolNegotiated && !negotiateProtocol(client, request.extensions)) {
    disconnectClient(client, false, 'unable to send protocol negotiation packet');
    return Verdict.DISCONNECTED;
  }
  return setPool(client, request.database, request.user);
}

function failLogin(client: ClientSocket, dbname: string, username: string, reason: string): Verdict {
  disconnectClient(client, true, reason);
  if (cf.logConnections) slogInfo(client, `login failed: db=${dbname} user=${username}`);
  return Verdict.DISCONNECTED;
}

/** Starts mock authentication: an unknown user gets the same exchange as a known user, which fails at its end. */
function useMockUser(client: ClientSocket, username: string): boolean {
  slogInfo(client, `no such user: ${username}`);
  const mock = new PgCredentials(username, findGlobalUser(username));
  mock.mockAuth = true;
  client.loginUser = mock;
  return checkDbConnectionCount(client) && checkUserConnectionCount(client);
}

/** Finds the database and the user, then continues with authentication, at once or after auth_query. */
function setPool(client: ClientSocket, dbname: string, username: string): Verdict {
  let db = findOrRegisterLoginDatabase(client, dbname);
  if (db === null) {
    // do not reveal before authentication whether a database exists
    db = new PgDatabase(dbname.slice(0, MAX_DBNAME - 1));
    db.fake = true;
  }
  client.db = db;
  if (db.admin && upcalls.admin.preLogin(client, username)) return finishSetPool(client);
  if (isDead(client)) return Verdict.DISCONNECTED;
  if (username.length >= MAX_USERNAME) return failLogin(client, dbname, username, 'username too long');

  if (cf.authType === AuthType.ANY) {
    if (db.forcedUser === null) {
      slogError(client, 'auth_type=any requires forced user');
      return refuse(client, 'bouncer config error');
    }
    client.loginUser = db.forcedUser;
    if (!checkDbConnectionCount(client) || !checkUserConnectionCount(client)) return Verdict.DISCONNECTED;
    return finishSetPool(client);
  }

  const external = externalAuthType(client, db, username);
  if (external !== null) return setExternalUser(client, db, username, external);

  client.loginUser = findGlobalCredentials(username);
  if (!checkDbConnectionCount(client) || !checkUserConnectionCount(client)) return Verdict.DISCONNECTED;
  if (client.loginUser !== null && !client.loginUser.dynamicPasswd) return finishSetPool(client);

  if (authUserOf(db) !== null) {
    if (db.fake) {
      slogDebug(client, 'not running auth_query because database is fake');
    } else {
      uncountUser(client);
      client.loginUser = null;
      const verdict = startAuthQuery(client, username);
      return verdict ?? finishSetPool(client);
    }
  }
  if (!useMockUser(client, username)) return Verdict.DISCONNECTED;
  return finishSetPool(client);
}

/** PAM or LDAP, if it decides about this user; the user then need not be known to the pooler. */
function externalAuthType(client: ClientSocket, db: PgDatabase, username: string): AuthType | null {
  if (cf.authType === AuthType.PAM || cf.authType === AuthType.LDAP) return cf.authType;
  if (cf.authType !== AuthType.HBA) return null;
  return findHbaRule(client, db, username)?.method === AuthType.LDAP ? AuthType.LDAP : null;
}

/** Accepts any user name; the password is stored once PAM or LDAP accepts it. */
function setExternalUser(client: ClientSocket, db: PgDatabase, username: string, type: AuthType): Verdict {
  const pam = type === AuthType.PAM;
  // not db.authUser, which is that of the settings once auth_query has run for this database
  if (db.config.authUser !== null) {
    slogError(client, `${pam ? 'PAM' : 'LDAP'} can't be used together with database authentication`);
    return refuse(client, 'bouncer config error');
  }
  client.loginUser = pam ? addPamCredentials(username, null) : findOrAddLoginUser(username).credentials;
  if (!checkDbConnectionCount(client) || !checkUserConnectionCount(client)) return Verdict.DISCONNECTED;
  return finishSetPool(client);
}

/**
 * The user is known, or mocked: starts authentication by the method of auth_type. Called at once, or when auth_query has
 * been answered and the startup packet is handled again.
 */
export function finishSetPool(client: ClientSocket): Verdict {
  // it may have waited to run auth_query when RELOAD made that unnecessary
  leaveLookup(client);
  const login = loginOf(client);
  login.phase = LoginPhase.CHALLENGED;
  const db = client.db as PgDatabase;
  const user = client.loginUser as PgCredentials;
  // the pool of auth_query, if it ran: the client gets its own pool after authentication
  client.pool = null;

  if (cf.logConnections) {
    const replication = replicationTypeParameters[client.replication];
    const tls = client.tls ? tlsConnectionInfo(client) : 'no';
    slogInfo(client, `login attempt: db=${db.name} user=${user.name} tls=${tls} replication=${replication}`);
  }
  if (db.admin && !user.mockAuth && !upcalls.admin.postLogin(client)) return Verdict.DISCONNECTED;
  if (client.console?.owner === true) return finishClientLogin(client);

  let auth = cf.authType;
  let rule: HbaRule | null = null;
  if (auth === AuthType.LDAP) {
    if (cf.authLdapOptions === null) return refuse(client, 'auth_ldap_options is null');
    login.ldapOptions = cf.authLdapOptions;
  } else if (auth === AuthType.HBA) {
    rule = findHbaRule(client, db, user.name);
    if (rule === null) return refuse(client, 'no authentication method is found');
    auth = rule.method;
    login.ldapOptions = rule.options;
    slogNoise(client, `HBA Line ${rule.line} is matched`);
  }
  // an md5 response cannot be checked against a SCRAM secret
  if (auth === AuthType.MD5 && passwordType(user.passwd) === PasswordType.SCRAM_SHA_256) auth = AuthType.SCRAM_SHA_256;
  login.method = auth;

  switch (auth) {
    case AuthType.ANY:
      return finishClientLogin(client);
    case AuthType.TRUST:
      if (user.mockAuth) return refuse(client, '"trust" authentication failed');
      return finishClientLogin(client);
    case AuthType.PLAIN:
    case AuthType.MD5:
    case AuthType.LDAP:
    case AuthType.PAM:
    case AuthType.SCRAM_SHA_256:
      return sendClientAuthReq(client) ? Verdict.CONSUMED : Verdict.DISCONNECTED;
    case AuthType.CERT:
      if (!certAllows(client, rule)) return refuse(client, 'certificate authentication failed');
      return finishClientLogin(client);
    case AuthType.PEER:
      if (!peerAllows(client, rule)) return refuse(client, 'unix socket login rejected');
      return finishClientLogin(client);
    default:
      return refuse(client, 'login rejected');
  }
}
