// The records that everything else works on, as in PgBouncer's bouncer.h: sockets, pools, databases, users and
// credentials. The finders and the ordered lists of each are in the files named after it.

import type { ScramState } from '../auth/scram';
import { type ListNode, StatList } from '../base/list';
import { Family, type SockAddr } from '../base/native';
import { getCachedTime } from '../base/time';
import { LoadBalanceHosts, PoolMode } from '../config/settings';
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

let poolSerial = 0;

export class PgPool implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  db: PgDatabase;
  /** null in the pool of a peer */
  user: PgCredentials | null;

  /** logged in and listened to */
  activeClientList = new StatList<PgSocket>('active_client_list');
  /** have a query, or a login, and no server for it */
  waitingClientList = new StatList<PgSocket>('waiting_client_list');
  /** cancel requests that wait for a connection to be sent on */
  waitingCancelReqList = new StatList<PgSocket>('waiting_cancel_req_list');
  /** cancel requests sent, not finished yet */
  activeCancelReqList = new StatList<PgSocket>('active_cancel_req_list');

  /** linked with a client */
  activeServerList = new StatList<PgSocket>('active_server_list');
  /** carry a cancel request */
  activeCancelServerList = new StatList<PgSocket>('active_cancel_server_list');
  /** free, but a cancel request aimed at them is still under way, so that it may hit the next query */
  beingCanceledServerList = new StatList<PgSocket>('being_canceled_server_list');
  /** ready for the next client */
  idleServerList = new StatList<PgSocket>('idle_server_list');
  /** just unlinked, to be checked before reuse */
  usedServerList = new StatList<PgSocket>('used_server_list');
  /** running the reset query or the check query */
  testedServerList = new StatList<PgSocket>('tested_server_list');
  /** logging in; one at a time, see launchNewConnection */
  newServerList = new StatList<PgSocket>('new_server_list');

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

  /* --- configuration; -1, 0 or null = take the general setting --- */
  host: string | null = null;
  port = 5432;
  poolSize = -1;
  minPoolSize = -1;
  resPoolSize = -1;
  /** usec */
  queryWaitTimeout = 0;
  queryWaitTimeoutSet = false;
  poolMode: PoolMode = PoolMode.INHERIT;
  maxDbClientConnections = -1;
  maxDbConnections = -1;
  /** usec */
  serverLifetime = 0;
  connectQuery: string | null = null;
  loadBalanceHosts: LoadBalanceHosts = LoadBalanceHosts.ROUND_ROBIN;
  /** name and value pairs of the startup packet, without user */
  startupParams: [string, string][] = [];
  /** name on the server */
  dbname = '';
  authDbname: string | null = null;
  forcedUser: PgCredentials | null = null;
  authUser: PgCredentials | null = null;
  authQuery: string | null = null;
  /** max_protocol_version is 3.2, not 3.0 */
  maxProtocol32 = true;

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

export class PgSocket implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;

  /** handle of the loop, -1 = closed or not connected yet */
  handle = -1;
  state: SocketState;
  /** unique for the life of the process; what SHOW prints as id and ptr */
  id: number;

  /** the other end of the packets */
  link: PgSocket | null = null;
  /** parent pool; null while a client logs in, but for that on which auth_query runs or which it waits for */
  pool: PgPool | null = null;
  /** client: its database (may be a fake one during mock authentication) */
  db: PgDatabase | null = null;
  loginUser: PgCredentials | null = null;

  /* --- the packet that is passing through (the original's sbuf) --- */
  /** bytes of the current packet that are still to come */
  pktRemain = 0;
  /** drop the rest of the packet instead of forwarding it */
  pktSkip = false;
  /** reading is on */
  reading = false;
  /** reading is off because the other end has unsent bytes */
  blocked = false;
  /** the loop keeps received bytes of this socket that are not processed yet */
  hasKept = false;
  /** waits in the queue of sockets whose kept bytes are processed at the end of this event */
  queued = false;

  /** server: requests whose answers are still to come */
  requests: RequestQueue | null;
  /** client: its prepared statements by name, null until it has one */
  clientStatements: Map<string, ClientStatement> | null = null;
  /** server: the prepared statements it has, null until it has one */
  serverStatements: ServerStatements | null = null;
  /** client: a packet that is put together here because it is handled as a whole; pktRemain bytes are still to come */
  collect: Buffer | null = null;
  /** bytes of it that are here */
  collectLen = 0;
  /**
   * client: the body of its last Parse of the unnamed statement, in front of other bytes; null = it is not kept. See
   * session/unnamed.ts.
   */
  unnamed: Buffer | null = null;
  /** bytes of it; 0 = it is not kept */
  unnamedLen = 0;
  /** client, server: number of the Parse that its unnamed statement comes from; 0 = none, or not known which */
  unnamedSeq = 0;
  /** server: the part of the pipeline (RequestQueue.segment) that this Parse is in */
  unnamedSegment = 0;
  /** client: its unnamed statement is a DEALLOCATE that is handled here */
  deallocating: Deallocation | null = null;
  /** server: the batch of packets that may have to be sent again, null until there was one */
  batch: Batch | null = null;
  /** server: its client's next packet waits for answers of this server */
  holding = false;
  /** server: RequestQueue.total when a Flush asked for these answers */
  flushTotal = -1;

  clientAuthType = -1;
  contributesDbClientCount = false;
  userConnectionCounted = false;

  /** client: what of its input is dropped (Dropping) */
  dropping: number = Dropping.NONE;
  /** client: its connection ended or broke, without Terminate */
  vanished = false;

  /** server: accepts a new query */
  ready = false;
  /** server: idle inside a transaction */
  idleTx = false;
  /** server: must be closed as soon as possible */
  closeNeeded = false;
  /** server: is setting the client's variables */
  settingVars = false;
  /** server: has said that its session is over; the end of the stream follows */
  dying = false;
  /** server: runs connect_query */
  execOnConnect = false;
  /** server: release on flush although the pool mode is session (auth_query) */
  resetting = false;
  /** server: inside COPY; client: has to send CopyData, CopyDone or CopyFail */
  copyMode = false;
  /** server: an ErrorResponse came, ReadyForQuery clears the requests up to Sync */
  queryFailed = false;
  /** server: said to be in a failed transaction */
  failedTx = false;
  /** server: waits for the one-byte answer to SSLRequest */
  waitSslchar = false;
  /** TLS is on, or its handshake is under way */
  tls = false;

  /** client: no server in the pool yet, so no welcome message to send */
  waitForWelcome = false;
  startupMessageReceived = false;
  welcomeSent = false;
  protocolNegotiated = false;
  /** client: speaks protocol 3.2 */
  protocol32 = false;
  /** server: what is open about its protocol version */
  protocolTry: ProtocolTry = ProtocolTry.NONE;
  /** client: waits for a server to run auth_query on */
  waitForUserConn = false;
  /** client: waits for the result of auth_query */
  waitForUser = false;
  /** client: waits for PAM or LDAP */
  waitForAuth = false;
  /** client: PAM or LDAP has said yes; server: AuthenticationOk has come */
  authPassed = false;
  suspended = false;
  sentWaitNotification = false;
  /** console: may change things */
  adminUser = false;
  /** console: same uid on a Unix socket */
  ownUser = false;
  /** console: waits for PAUSE, SUSPEND or WAIT_CLOSE to complete */
  waitForResponse = false;
  /** console: its extended protocol, null until the client uses that */
  console: ConsoleSession | null = null;

  replication: Replication = Replication.NONE;
  startupOptions: string | null = null;

  /* usec */
  connectTime = 0;
  requestTime = 0;
  queryStart = 0;
  xactStart = 0;
  waitStart = 0;
  /** server: when its answers to a pipeline without Sync were asked for */
  flushTime = 0;

  cancelKey: Buffer = noKey;
  /** server: cancel requests aimed at its query */
  cancelingClients: PgSocket[] | null = null;
  /** cancel request: the server whose query it cancels */
  canceledServer: PgSocket | null = null;

  remoteAddr: PgAddr = noAddr;
  localAddr: PgAddr = noAddr;
  /** server: host as configured, for TLS verification and SHOW */
  host: string | null = null;
  /** server: id of a name resolution in progress, -1 = none */
  dnsToken = -1;

  /** client: the random bytes of an md5 challenge */
  loginSalt: Buffer | null = null;
  scram: ScramState | null = null;
  /** client: how to ask the directory, from auth_ldap_options or its HBA rule */
  ldapOptions = '';
  vars: (string | null)[];

  /** @param state SV_FREE makes a server, CL_FREE a client */
  constructor(state: SocketState) {
    this.state = state;
    this.id = ++lastSocketId;
    this.requests = state >= SocketState.SV_FREE ? new RequestQueue() : null;
    this.vars = newVarCache();
  }
}
