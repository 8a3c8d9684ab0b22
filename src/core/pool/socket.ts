/*
 * A client or server connection (the original's PgSocket) and its states. The state names the list the socket is in;
 * changeClientState and changeServerState (state.ts) are the only ones that move it.
 */

import type { ScramState } from '../auth/scram';
import type { ListNode, StatList } from '../base/list';
import { Family, type SockAddr } from '../base/native';
import { BACKENDKEY_LEN } from '../wire/packets';
import type { Batch } from './batch';
import type { ConsoleSession } from './consolesession';
import type { PgDatabase } from './database';
import type { PgPool } from './pool';
import type { ClientStatement, Deallocation, ServerStatements } from './prepare';
import { RequestQueue } from './requests';
import type { PgCredentials } from './user';
import { newVarCache } from './varcache';

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

/** A server that has not answered the startup packet yet. See session/serverprotocol.ts. */
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

/** The value of the startup parameter `replication`, by Replication. */
export const replicationTypeParameters = ['no', 'database', 'yes'];

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

export function isServerSocket(sk: PgSocket): boolean {
  return sk.state >= SocketState.SV_FREE;
}

/** True once a socket was disconnected: its handle is gone and no event of it may be handled any more. */
export function isDead(sk: PgSocket): boolean {
  return sk.state === SocketState.CL_JUSTFREE || sk.state === SocketState.SV_JUSTFREE;
}

/**
 * The database in whose name a socket is shown: that of its pool, or, as it has none while it logs in, the one that it
 * proves itself for. Null for one that is only pretended to be asked for its password.
 */
export function shownDatabase(sk: PgSocket): PgDatabase | null {
  if (sk.pool !== null) return sk.pool.db;
  if (!sk.startupMessageReceived || sk.db === null || sk.db.fake || sk.loginUser === null) return null;
  return sk.loginUser.mockAuth ? null : sk.db;
}

/** True while a client's login waits for auth_query (its server connection or its result). */
export function sendingAuthQuery(client: PgSocket): boolean {
  return client.waitForUserConn || client.waitForUser;
}
