// The records that everything else works on, as in PgBouncer's bouncer.h: sockets, pools, databases, users and
// credentials. The finders and the ordered lists of each are in the files named after it.

import type { ScramState } from '../auth/scram';
import { type ListNode, StatList } from '../base/list';
import { Family, type SockAddr } from '../base/native';
import { getCachedTime } from '../base/time';
import { DATABASE_DEFAULTS, type DatabaseConfig, USER_DEFAULTS, type UserConfig } from '../config/records';
import { BACKENDKEY_LEN } from '../wire/packets';
import type { Batch } from './batch';
import type { ConsoleSession } from './console-session';
import type { ClientStatement, Deallocation, ServerStatements } from './prepare';
import { RequestQueue } from './requests';
import { newStats, type PgStats } from './stats';
import { newVarCache } from './varcache';

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
  config: Readonly<UserConfig> = USER_DEFAULTS;
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

let poolSerial = 0;

export class PgPool implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  db: PgDatabase;
  /** null in the pool of a peer */
  user: PgCredentials | null;

  /** logged in and listened to */
  activeClientList = new StatList<ClientSocket>('active_client_list');
  /** have a query, or a login, and no server for it */
  waitingClientList = new StatList<ClientSocket>('waiting_client_list');
  /** cancel requests that wait for a connection to be sent on */
  waitingCancelReqList = new StatList<ClientSocket>('waiting_cancel_req_list');
  /** cancel requests sent, not finished yet */
  activeCancelReqList = new StatList<ClientSocket>('active_cancel_req_list');

  /** linked with a client */
  activeServerList = new StatList<ServerSocket>('active_server_list');
  /** carry a cancel request */
  activeCancelServerList = new StatList<ServerSocket>('active_cancel_server_list');
  /** free, but a cancel request aimed at them is still under way, so that it may hit the next query */
  beingCanceledServerList = new StatList<ServerSocket>('being_canceled_server_list');
  /** ready for the next client */
  idleServerList = new StatList<ServerSocket>('idle_server_list');
  /** just unlinked, to be checked before reuse */
  usedServerList = new StatList<ServerSocket>('used_server_list');
  /** running the reset query or the check query */
  testedServerList = new StatList<ServerSocket>('tested_server_list');
  /** logging in; one at a time, see launchNewConnection */
  newServerList = new StatList<ServerSocket>('new_server_list');

  stats: PgStats = newStats();
  newerStats: PgStats = newStats();
  olderStats: PgStats = newStats();

  /** AuthenticationOk and the parameters that are not tracked, as sent to each new client; null = not known yet */
  welcomeMsg: Uint8Array | null = null;
  welcomeMsgReady = false;
  /** ParameterStatus packets collected while the first server logs in */
  welcomeParts: [string, string][] = [];
  /** bytes of them */
  welcomePartsLen = 0;
  /** tracked variables as the server has them by default */
  origVars: (string | null)[] = newVarCache();

  /* usec */
  lastLifetimeDisconnect = 0;
  lastConnectTime = 0;
  lastActiveTime = getCachedTime();

  lastConnectFailed = false;
  lastConnectFailedMessage = '';
  lastLoginFailed = false;
  /** round-robin counter over the hosts of the database */
  rrcounter = 0;
  /** hosts, and addresses of the present host, that failed in this attempt to connect (link/hosts.ts) */
  hostsTried = 0;
  addressesTried = 0;

  /** in the list of pools that something happened to in this turn */
  touched = false;
  /** killed: a reference that is left somewhere must not bring it back */
  dead = false;
  serial = ++poolSerial;
  /** its places in db.pools and in the global user's pools */
  indexInDb = -1;
  indexInUser = -1;

  constructor(db: PgDatabase, user: PgCredentials | null) {
    this.db = db;
    this.user = user;
  }
}

/** What is known of the protocol versions of a database's servers. See login/server-protocol.ts. */
export const enum ServerProtocol {
  /** nothing against 3.2 */
  ASK_32 = 0,
  /** a server refused 3.2: the next one is asked for 3.0 */
  TRY_30 = 1,
  /** it is just the version: 3.0 is taken */
  ONLY_30 = 2,
}

export class PgDatabase implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  name: string;
  /** > 0: this is a peer, not a database */
  peerId = 0;
  /** the pool of a peer */
  peerPool: PgPool | null = null;

  /** its line of the config; of a peer only host, port and poolSize count */
  config: Readonly<DatabaseConfig> = DATABASE_DEFAULTS;
  /** config.user and config.authUser as credentials */
  forcedUser: PgCredentials | null = null;
  authUser: PgCredentials | null = null;

  /* --- run time --- */
  /** which version the next server is asked for */
  serverProtocol: ServerProtocol = ServerProtocol.ASK_32;
  paused = false;
  waitClose = false;
  /** not seen in the config that is being loaded */
  dead = false;
  /** made from the `*` entry */
  auto = false;
  /** made for logins that have not succeeded yet: forgotten with the last client that asks for it */
  provisional = false;
  disabled = false;
  /** the console */
  admin = false;
  /** not a real database: mock authentication only */
  fake = false;
  /** usec since an auto-database has no connection, 0 = active */
  inactiveTime = 0;
  /** number of the janitor's round that saw it active */
  activeStamp = 0;
  /** server connections in all pools */
  connectionCount = 0;
  clientConnectionCount = 0;
  /** its pools */
  pools: PgPool[] = [];
  /** users found by auth_query here */
  dynamicUsers = new Map<string, PgCredentials>();

  constructor(name: string) {
    this.name = name;
  }
}

/** Each state corresponds to a list. */
export const enum SocketState {
  CL_FREE = 0,
  /** closed in this turn; nobody may touch it any more */
  CL_JUSTFREE,
  /** loginClientList */
  CL_LOGIN,
  /** pool.waitingClientList */
  CL_WAITING,
  /** likewise, but goes back to CL_LOGIN instead of CL_ACTIVE */
  CL_WAITING_LOGIN,
  /** pool.activeClientList */
  CL_ACTIVE,
  /** pool.waitingCancelReqList */
  CL_WAITING_CANCEL,
  /** pool.activeCancelReqList */
  CL_ACTIVE_CANCEL,

  SV_FREE,
  SV_JUSTFREE,
  /** pool.newServerList */
  SV_LOGIN,
  /** pool.beingCanceledServerList */
  SV_BEING_CANCELED,
  /** pool.idleServerList */
  SV_IDLE,
  /** pool.activeServerList */
  SV_ACTIVE,
  /** pool.activeCancelServerList */
  SV_ACTIVE_CANCEL,
  /** pool.usedServerList */
  SV_USED,
  /** pool.testedServerList */
  SV_TESTED,
}

export const enum Replication {
  NONE = 0,
  LOGICAL = 1,
  PHYSICAL = 2,
}

/** A server that has not answered the startup packet yet. See login/server-protocol.ts. */
export const enum ProtocolTry {
  NONE = 0,
  /** asked for 3.2 */
  ASKED_32 = 1,
  /** the connection before this one asked for 3.2 and was refused */
  TRYING_30 = 2,
}

/** What a client's packets are dropped for: it cancelled its request while that waited for a server. */
export const enum Dropping {
  NONE = 0,
  /** the next packet is the cancelled request, or its first: it is answered with the error */
  REQUEST,
  /** the error is said; the rest of the pipeline up to its Sync goes too, as on a server */
  UNTIL_SYNC,
}

/** An endpoint, with the peer's credentials when it is a Unix socket. */
export interface PgAddr extends SockAddr {
  uid: number;
  pid: number;
}

const noAddr: PgAddr = { family: Family.INET, host: '', port: 0, uid: 0, pid: 0 };
const noKey = Buffer.alloc(BACKENDKEY_LEN);

let lastSocketId = 0;

export const enum SocketKind {
  CLIENT,
  SERVER,
}

/** A connection of a client or to a server: PgBouncer's PgSocket. Exactly two classes extend it, see AnySocket. */
export abstract class PgSocket implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  abstract readonly kind: SocketKind;

  /** handle of the loop, -1 = closed or not connected yet */
  handle = -1;
  state: SocketState;
  /** unique for the life of the process; what SHOW prints as id and ptr */
  readonly id = ++lastSocketId;

  loginUser: PgCredentials | null = null;
  vars: (string | null)[] = newVarCache();
  cancelKey: Buffer = noKey;
  remoteAddr: PgAddr = noAddr;
  localAddr: PgAddr = noAddr;
  /** TLS is on, or its handshake is under way */
  tls = false;
  replication: Replication = Replication.NONE;
  /** server: inside COPY; client: has to send CopyData, CopyDone or CopyFail */
  copyMode = false;
  /** number of the Parse that the unnamed statement comes from; 0 = none, or not known which */
  unnamedSeq = 0;

  /* usec */
  connectTime = 0;
  requestTime = 0;

  /* --- the packet that is passing through (PgBouncer's sbuf) --- */
  /** bytes of the current packet that are still to come */
  pktRemain = 0;
  /** drop the rest of the packet instead of forwarding it */
  pktSkip = false;
  /** reading is on */
  reading = false;
  /** reading is off because the linked socket has unsent bytes */
  blocked = false;
  /** the loop keeps received bytes of this socket that are not processed yet */
  hasKept = false;
  /** in the queue of sockets whose kept bytes are processed at the end of this event */
  queued = false;
  /** reading is off for SUSPEND */
  suspended = false;

  constructor(state: SocketState) {
    this.state = state;
  }
}

/** How far a client's login is. */
export const enum LoginPhase {
  /** no usable startup packet yet */
  STARTUP,
  /** waits for a server to run auth_query on */
  AUTH_QUERY_SERVER,
  /** waits for the result of auth_query */
  AUTH_QUERY_RESULT,
  /** user and method are known; a password is asked for, unless the method needs none */
  CHALLENGED,
  /** waits for PAM or LDAP */
  EXTERNAL_AUTH,
  /** PAM or LDAP has accepted the password */
  EXTERNAL_PASSED,
  /** authenticated; the pool has no server yet, so there is no welcome message to send */
  WELCOME,
}

/** What a client needs only until its login is complete. */
export class ClientLogin {
  phase: LoginPhase = LoginPhase.STARTUP;
  /** AuthType, -1 = not decided yet */
  method = -1;
  /** NegotiateProtocolVersion has been sent */
  protocolNegotiated = false;
  /** the random bytes of an md5 challenge */
  salt: Buffer | null = null;
  scram: ScramState | null = null;
  /** how to query the LDAP server: auth_ldap_options, or the options of the HBA rule */
  ldapOptions = '';
}

/** A packet that is put together in memory of its own because it is handled as a whole. */
export interface PartialPacket {
  buf: Buffer;
  /** bytes of it that have arrived; pktRemain are still to come */
  length: number;
}

export class ClientSocket extends PgSocket {
  readonly kind: SocketKind.CLIENT = SocketKind.CLIENT;
  link: ServerSocket | null = null;
  /** null while the client logs in, but for the pool on which auth_query runs or that it waits for */
  pool: PgPool | null = null;
  /** may be a fake one during mock authentication */
  db: PgDatabase | null = null;
  /** null once the welcome message has been sent */
  login: ClientLogin | null = new ClientLogin();
  /** speaks protocol 3.2 */
  protocol32 = false;
  /** the startup parameter `options`, for replication connections */
  startupOptions: string | null = null;
  /** the database and the user among whose clients this one is counted */
  countedDb: PgDatabase | null = null;
  countedUser: PgGlobalUser | null = null;

  /** prepared statements by name, null until there is one */
  statements: Map<string, ClientStatement> | null = null;
  partial: PartialPacket | null = null;
  /** the body of the last Parse of the unnamed statement, before unused bytes; null = not kept. See session/unnamed.ts. */
  unnamed: Buffer | null = null;
  /** bytes of it; 0 = not kept */
  unnamedLen = 0;
  /** the unnamed statement is a DEALLOCATE that is handled here */
  deallocating: Deallocation | null = null;
  /** which of its input is dropped */
  dropping: Dropping = Dropping.NONE;
  /** the connection ended or broke, without Terminate */
  vanished = false;
  /** was told that it waits (query_wait_notify) */
  waitNotified = false;

  /* usec */
  queryStart = 0;
  xactStart = 0;
  waitStart = 0;

  /** cancel request: the server whose query it cancels */
  canceledServer: ServerSocket | null = null;
  /** a client of the console has one */
  console: ConsoleSession | null = null;
}

/** How far the login on a server is. */
export const enum ServerLoginPhase {
  /** connecting, or the startup packet has been sent */
  STARTUP,
  /** waits for the one-byte answer to SSLRequest */
  SSL_ANSWER,
  /** AuthenticationOk has come */
  AUTHENTICATED,
  /** runs connect_query */
  CONNECT_QUERY,
}

/** What a server connection needs only until its login is complete. */
export class ServerLogin {
  phase: ServerLoginPhase = ServerLoginPhase.STARTUP;
  /** id of a name resolution in progress, -1 = none */
  dnsToken = -1;
  scram: ScramState | null = null;
  /** what is not known yet about its protocol version */
  protocolTry: ProtocolTry = ProtocolTry.NONE;
}

export class ServerSocket extends PgSocket {
  readonly kind: SocketKind.SERVER = SocketKind.SERVER;
  link: ClientSocket | null = null;
  readonly pool: PgPool;
  /** null once it is logged in */
  login: ServerLogin | null = new ServerLogin();
  /** host as configured, for TLS verification and SHOW */
  host: string | null = null;

  /** requests whose answers are still to come */
  readonly requests = new RequestQueue();
  /** prepared statements that it has, null until there is one */
  statements: ServerStatements | null = null;
  /** the part of the pipeline (RequestQueue.segment) that the Parse of `unnamedSeq` is in */
  unnamedSegment = 0;
  /** packets that may have to be sent again, null until there was one */
  batch: Batch | null = null;
  /** its client's next packet waits for answers of this server */
  holding = false;
  /** RequestQueue.total when a Flush asked for these answers */
  flushTotal = -1;
  /** usec; when its answers to a pipeline without Sync were asked for */
  flushTime = 0;

  /** accepts a new query */
  ready = false;
  /** idle inside a transaction */
  idleTx = false;
  /** has reported a failed transaction */
  failedTx = false;
  /** to be closed as soon as it is idle */
  closeNeeded = false;
  /** is setting the client's variables */
  settingVars = false;
  /** released on flush although the pool mode is session (reset query, auth_query) */
  resetting = false;
  /** an ErrorResponse came, ReadyForQuery clears the requests up to Sync */
  queryFailed = false;
  /** has reported the end of its session; the end of the stream follows */
  dying = false;

  /** cancel requests for its query */
  cancelingClients: ClientSocket[] | null = null;

  constructor(state: SocketState, pool: PgPool) {
    super(state);
    this.pool = pool;
  }
}

export type AnySocket = ClientSocket | ServerSocket;
