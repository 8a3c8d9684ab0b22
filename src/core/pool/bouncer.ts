// The central records, as in PgBouncer's bouncer.h: sockets, pools, databases, users and credentials. The look-ups and
// ordered lists of each are in the files named after them.

import { type ListNode, StatList } from '../base/list';
import { Family, type SockAddr } from '../base/native';
import { getCachedTime } from '../base/time';
import { DATABASE_DEFAULTS, type DatabaseConfig, USER_DEFAULTS, type UserConfig } from '../config/records';
import { BACKENDKEY_LEN } from '../wire/packets';
import type { Batch } from './batch';
import type { ClientListening, Listening } from './channels';
import type { ConsoleSession } from './console-session';
import type { Greeting } from './greeting';
import type { Leftovers } from './leftovers';
import { ClientLogin, ServerLogin } from './login-state';
import { Dropping, Recovery } from './phases';
import type { ClientStatement, Deallocation, EarlierUnnamed, ServerStatements } from './prepare';
import { RequestQueue } from './requests';
import { newStats, type PgStats } from './stats';
import { ServerVars, VarCache, type VarsUndo } from './varcache';

export class PgCredentials {
  name: string;
  passwd = '';
  /** the user does not exist: authentication has the usual steps and always fails */
  mockAuth = false;
  /** the password must be fetched again for every login */
  dynamicPasswd = false;
  /** PAM or LDAP has accepted the password; auth_file may have another one */
  externalPasswd = false;
  /** found by auth_query for a login that has not succeeded yet: only this client refers to them */
  provisional = false;
  globalUser: PgGlobalUser | null;
  /** keys for SCRAM pass-through to servers, from the client's login */
  scramClientKey: Buffer | null = null;
  scramServerKey: Buffer | null = null;
  scramPassthroughValid = false;
  /** verifier made from a plain password, cached so that not every login must derive it */
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
  /** created for logins that have not succeeded yet: removed with the last client that asks for the user */
  provisional = false;
  credentials: PgCredentials;
  /** pools of this user */
  pools: PgPool[] = [];
  config: Readonly<UserConfig> = USER_DEFAULTS;
  /** number of server connections */
  connectionCount = 0;
  clientConnectionCount = 0;
  /** number of the auth_file load that last contained this user, 0 = none; see applyAuthFile() */
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
  /** null in a peer's pool */
  user: PgCredentials | null;

  /** logged in; the pooler reads from them */
  activeClientList = new StatList<ClientSocket>('active_client_list');
  /** have sent a query, or are logging in, and wait for a server */
  waitingClientList = new StatList<ClientSocket>('waiting_client_list');
  /** cancel requests that wait for a server connection */
  waitingCancelReqList = new StatList<ClientSocket>('waiting_cancel_req_list');
  /** cancel requests that have been sent and are not finished yet */
  activeCancelReqList = new StatList<ClientSocket>('active_cancel_req_list');

  /** linked to a client */
  activeServerList = new StatList<ServerSocket>('active_server_list');
  /** used to send a cancel request */
  activeCancelServerList = new StatList<ServerSocket>('active_cancel_server_list');
  /** idle, but a cancel request for them is still in progress and could hit the next query */
  beingCanceledServerList = new StatList<ServerSocket>('being_canceled_server_list');
  /** ready for a client */
  idleServerList = new StatList<ServerSocket>('idle_server_list');
  /** idle for longer than server_check_delay: to be tested before use */
  usedServerList = new StatList<ServerSocket>('used_server_list');
  /** running the reset query or the check query */
  testedServerList = new StatList<ServerSocket>('tested_server_list');
  /** logging in; see poolLoginLimit() */
  newServerList = new StatList<ServerSocket>('new_server_list');
  /** listens for all clients (listen_mode = share); not counted for pool_size */
  listenServerList = new StatList<ServerSocket>('listen_server_list');
  /** what the clients listen on; null = nothing */
  listening: Listening<ClientSocket, ServerSocket> | null = null;

  stats: PgStats = newStats();
  newerStats: PgStats = newStats();
  olderStats: PgStats = newStats();
  /** histograms, see timings.ts; null until the first time is measured */
  timings: Float64Array | null = null;

  /** AuthenticationOk and the parameters that are not tracked, as sent to each new client; null = not known yet */
  welcomeMsg: Uint8Array | null = null;
  welcomeMsgReady = false;
  /** what the last client was told at its login; null = nothing that would be worth keeping */
  greeting: Greeting | null = null;
  /** ParameterStatus packets collected while the first server logs in */
  welcomeParts: [string, string][] = [];
  /** their length in bytes */
  welcomePartsLen = 0;
  /** the server's default values of the tracked variables */
  readonly origVars = new VarCache();

  /* usec */
  lastLifetimeDisconnect = 0;
  lastConnectTime = 0;
  /** when a connection for a cancel request was last opened */
  lastCancelTime = 0;
  lastActiveTime = getCachedTime();

  lastConnectFailed = false;
  lastConnectFailedMessage = '';
  lastLoginFailed = false;
  /** no host fits target_session_attrs: clients wait until one does */
  holding = false;
  /** round-robin counter over the hosts of the database */
  rrcounter = 0;
  /** number of hosts, and the addresses of the current host, that failed in this connection attempt (link/hosts.ts) */
  hostsTried = 0;
  failedAddresses: readonly string[] = [];
  /** when the last of them failed, usec */
  targetFailedAt = 0;
  /** number of the target, to tell failures of earlier targets from those of this one */
  attempt = 0;
  /** a server has reached its lifetime, and waits to be replaced because of min_pool_size */
  replacing = false;

  /** the pool is in the list of pools to be handled at the end of this turn */
  touched = false;
  /** the next marked pool */
  nextTouched: PgPool | null = null;
  /** the pool is among those whose figures have changed (changes.ts) */
  noted = false;
  /** the pool was removed: a remaining reference must not revive it */
  dead = false;
  /** unique within the process */
  serial = ++poolSerial;
  /** its positions in db.pools and in the global user's pools */
  indexInDb = -1;
  indexInUser = -1;

  constructor(db: PgDatabase, user: PgCredentials | null) {
    this.db = db;
    this.user = user;
  }
}

/** The state of knowledge about the protocol version of a database's servers. See login/server-protocol.ts. */
export const enum ServerProtocol {
  /** no server has refused 3.2 */
  ASK_32 = 0,
  /** a server refused 3.2: the next connection requests 3.0 */
  TRY_30 = 1,
  /** the version was the reason: the servers accept 3.0 only */
  ONLY_30 = 2,
}

export class PgDatabase implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  name: string;
  /** > 0: this is a peer, not a database */
  peerId = 0;
  /** this is a peer that peers_dns has found; its name is its address */
  fromDns = false;
  /** the pool of a peer */
  peerPool: PgPool | null = null;

  /** its line in the config; a peer uses only host, port and poolSize */
  config: Readonly<DatabaseConfig> = DATABASE_DEFAULTS;
  /** config.user and config.authUser as credentials */
  forcedUser: PgCredentials | null = null;
  authUser: PgCredentials | null = null;

  /** the version that the next server connection requests */
  serverProtocol: ServerProtocol = ServerProtocol.ASK_32;
  /** its pools whose clients wait for room under max_db_connections; see link/shares.ts */
  claims: Set<PgPool> | null = null;
  paused = false;
  /** a console waits for WAIT_CLOSE of it */
  waitClose = false;
  /** absent from the config that is being loaded */
  dead = false;
  /** auto-database: created from the `*` entry */
  auto = false;
  /** created for logins that have not succeeded yet: removed with the last client that asks for the database */
  provisional = false;
  disabled = false;
  /** the console */
  admin = false;
  /** does not exist: for mock authentication only */
  fake = false;
  /** usec; since when an auto-database has had no connection, 0 = active */
  inactiveTime = 0;
  /** number of the janitor's run that last found it active */
  activeStamp = 0;
  /** usec; when its connections to a host were last replaced because the host's role had changed */
  recycledAt = 0;
  /** number of server connections in all pools */
  connectionCount = 0;
  clientConnectionCount = 0;
  /** pools of this database */
  pools: PgPool[] = [];
  /** sums of the counters of its pools that were removed; null = none */
  removedStats: PgStats | null = null;
  /** users that auth_query found in this database */
  dynamicUsers = new Map<string, PgCredentials>();

  constructor(name: string) {
    this.name = name;
  }
}

/** Each state corresponds to a list. */
export const enum SocketState {
  CL_FREE = 0,
  /** closed in this turn; must not be used any more */
  CL_JUSTFREE,
  /** loginClientList */
  CL_LOGIN,
  /** pool.waitingClientList */
  CL_WAITING,
  /** in the same list, but returns to CL_LOGIN instead of CL_ACTIVE */
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
  /** pool.listenServerList */
  SV_LISTEN,
}

export const enum Replication {
  NONE = 0,
  LOGICAL = 1,
  PHYSICAL = 2,
}

/** The address of a socket, with the peer's credentials if it is a Unix socket. */
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

/** A client or server connection: PgBouncer's PgSocket. Exactly two classes extend it, see AnySocket. */
export abstract class PgSocket implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  abstract readonly kind: SocketKind;

  /** the loop's handle, -1 = closed or not connected yet */
  handle = -1;
  state: SocketState;
  /** unique within the process; printed by SHOW as id and ptr */
  readonly id = ++lastSocketId;

  loginUser: PgCredentials | null = null;
  abstract readonly vars: VarCache;
  cancelKey: Buffer = noKey;
  remoteAddr: PgAddr = noAddr;
  localAddr: PgAddr = noAddr;
  /** TLS is active, or its handshake is in progress */
  tls = false;
  replication: Replication = Replication.NONE;
  /** number of the Parse that made the unnamed statement; 0 = none, or unknown */
  unnamedSeq = 0;

  /* usec */
  connectTime = 0;
  requestTime = 0;

  /* the packet in transit (PgBouncer's sbuf) */
  /** bytes of the current packet that have not arrived yet */
  pktRemain = 0;
  /** drop the rest of the packet instead of forwarding it */
  pktSkip = false;
  /** the loop reads from this socket */
  reading = false;
  /** reading is off because the linked socket has unsent output */
  blocked = false;
  /** the loop holds buffered input of this socket */
  hasKept = false;
  /** in the queue of sockets whose buffered input is processed at the end of this event */
  queued = false;
  /** reading is off for SUSPEND */
  suspended = false;
  /** the other process of a handover has the descriptor, too, as long as it runs */
  shared = false;

  constructor(state: SocketState) {
    this.state = state;
  }
}

/** A packet that is reassembled in its own memory because it must be handled as a whole. */
export interface PartialPacket {
  buf: Buffer;
  /** bytes that have arrived; another pktRemain bytes are missing */
  length: number;
}

export class ClientSocket extends PgSocket {
  readonly kind: SocketKind.CLIENT = SocketKind.CLIENT;
  vars = new VarCache();
  /** VarCache.startup() of its login */
  startupVars: readonly (string | null)[] | null = null;
  link: ServerSocket | null = null;
  /** null while the client logs in, except that it is the pool for auth_query while the login waits for that */
  pool: PgPool | null = null;
  /** may be a fake database during mock authentication */
  db: PgDatabase | null = null;
  /** the next client whose cancel key has the same hash */
  nextByKey: ClientSocket | null = null;
  /** null once the welcome message has been sent */
  login: ClientLogin<ClientSocket> | null = new ClientLogin();
  /** uses protocol 3.2 */
  protocol32 = false;
  /** the startup parameter `options`, for replication connections */
  startupOptions: string | null = null;
  /** the database and the user whose client counts include this client */
  countedDb: PgDatabase | null = null;
  countedUser: PgGlobalUser | null = null;
  /** the address whose client count includes this client; null = none, or a Unix socket */
  countedHost: string | null = null;

  /** prepared statements by name; null until the first */
  statements: Map<string, ClientStatement> | null = null;
  partial: PartialPacket | null = null;
  /** body of the last Parse of the unnamed statement, then unused bytes; null = not kept. See session/unnamed.ts. */
  unnamed: Buffer | null = null;
  /** length of the body; 0 = not kept */
  unnamedLen = 0;
  /** the unnamed statement is a DEALLOCATE that the pooler handles itself */
  deallocating: Deallocation | null = null;
  /** the unnamed statement before a request that replaces it and may be skipped; null = no such request */
  earlierUnnamed: EarlierUnnamed | null = null;
  /** which of the client's packets are dropped */
  dropping: Dropping = Dropping.NONE;
  /** the connection ended or broke without Terminate */
  vanished = false;
  /** all packets that it has sent have been forwarded, and no more will follow */
  leaving = false;
  /** the client has been notified that it is waiting (query_wait_notify) */
  waitNotified = false;

  /* usec */
  queryStart = 0;
  xactStart = 0;
  waitStart = 0;

  /** cancel request: the server running the query to be canceled */
  canceledServer: ServerSocket | null = null;
  /** what it listens on by the listening connection of its pool; null = it has never used LISTEN */
  listening: ClientListening | null = null;
  /** only for a console client */
  console: ConsoleSession | null = null;
}

export class ServerSocket extends PgSocket {
  readonly kind: SocketKind.SERVER = SocketKind.SERVER;
  link: ClientSocket | null = null;
  /** changed by joinPools() only */
  pool: PgPool;
  /** null after the login */
  login: ServerLogin<ClientSocket> | null = new ServerLogin();
  readonly vars = new ServerVars();
  /** host as configured, for TLS verification and SHOW */
  host: string | null = null;
  /** port as configured */
  port = 0;
  /** the values of in_hot_standby, and of default_transaction_read_only at the login; null = not reported */
  hotStandby: boolean | null = null;
  readOnly: boolean | null = null;

  /** outstanding requests */
  readonly requests = new RequestQueue();
  /** inside a COPY from or with the client */
  copyMode = false;
  /** prepared statements on the server; null until the first */
  statements: ServerStatements | null = null;
  /** the segment of the pipeline (RequestQueue.segment) with the Parse of `unnamedSeq` */
  unnamedSegment = 0;
  /** packets that may have to be sent again; null until the first batch */
  batch: Batch | null = null;
  /** the client's next packet waits for outstanding requests of this server */
  holding = false;
  /** RequestQueue.total when a Flush last requested the outstanding answers */
  flushTotal = -1;
  /** usec; when the answers to a pipeline without Sync were last requested */
  flushTime = 0;

  /** can take a new query */
  ready = false;
  /** idle in a transaction */
  idleTx = false;
  /** in a failed transaction */
  failedTx = false;
  /** must be closed as soon as it is idle */
  closeNeeded = false;
  /** is setting the client's variables */
  settingVars = false;
  /** while it does: it gets the client's encoding first, and then the other variables */
  recoding = false;
  /** varBit(), or'ed, of what it has reported to its client since it was last idle */
  changedVars = 0;
  /** its client has run RESET or DISCARD ALL since then */
  afterReset = false;
  /** while it does: its variables before; null after a takeover in the middle of it */
  varsUndo: VarsUndo | null = null;
  /** to be released when idle even in session mode (reset query, auth_query) */
  resetting = false;
  /** an ErrorResponse arrived; ReadyForQuery then clears the requests up to Sync */
  queryFailed = false;
  /** has announced the end of its session; the end of the stream follows */
  dying = false;
  /** what clients have left behind in its session; null = not watched */
  leftovers: Leftovers | null = null;
  /** its client is in session mode, or was when it got this server: it may leave anything behind */
  sessionClient = false;
  /** its client has left, and it is being made usable again */
  recovery: Recovery = Recovery.NONE;
  /** usec */
  recoveryStart = 0;

  /** cancel requests for its query */
  cancelingClients: ClientSocket[] | null = null;

  constructor(state: SocketState, pool: PgPool) {
    super(state);
    this.pool = pool;
  }
}

export type AnySocket = ClientSocket | ServerSocket;
