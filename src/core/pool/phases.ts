/*
 * The phases of logins and of recoveries, and which packets of a client are dropped: the small states of a socket beside
 * SocketState.
 */

/** The protocol version of a server connection before the startup packet is answered. See login/server-protocol.ts. */
export const enum ProtocolTry {
  NONE = 0,
  /** requested 3.2 */
  ASKED_32 = 1,
  /** the previous connection requested 3.2 and was refused */
  TRYING_30 = 2,
}

/** Why a client's packets are dropped: it canceled its request while the request waited for a server. */
export const enum Dropping {
  NONE = 0,
  /** the next packet is the canceled request, or the first packet of it: the error is sent in answer */
  REQUEST,
  /** the error has been sent; the rest of the pipeline up to its Sync is dropped too, as PostgreSQL does */
  UNTIL_SYNC,
}

/** The phase of a client's login. */
export const enum LoginPhase {
  /** no valid startup packet yet */
  STARTUP,
  /** waits for the answer to the auth_query of another login */
  AUTH_QUERY_SHARED,
  /** waits for a server connection to run auth_query */
  AUTH_QUERY_SERVER,
  /** waits for the result of auth_query */
  AUTH_QUERY_RESULT,
  /** user and method are known; a password has been requested, unless the method needs none */
  CHALLENGED,
  /** waits for PAM or LDAP */
  EXTERNAL_AUTH,
  /** PAM or LDAP has accepted the password */
  EXTERNAL_PASSED,
  /** authenticated, but the pool has no welcome message yet: no server has logged in */
  WELCOME,
}

/** The phase of a server connection's login. */
export const enum ServerLoginPhase {
  /** connecting, or the startup packet has been sent */
  STARTUP,
  /** waits for the one-byte answer to SSLRequest */
  SSL_ANSWER,
  /** AuthenticationOk has arrived */
  AUTHENTICATED,
  /** running connect_query */
  CONNECT_QUERY,
}

/** How far the recovery of a server is whose client has left in the middle of its work: see link/recovery.ts. */
export const enum Recovery {
  NONE = 0,
  /** the answers to the client's requests are read and dropped */
  DRAIN,
  /** the transaction is being rolled back */
  ROLLBACK,
}
