/*
 * Where upper floors register themselves, so that the session code need not import them: the console, the handover, and
 * whoever loads the config.
 */
import { tlsPeerCertContainsName, tlsPeerCertProvided, tlsPeerCertSubject } from '../net/tls';
import type { PgSocket } from '../pool/socket';
import { Act } from './act';

/** The console (src/admin) as the handler of the admin database. */
export interface AdminHandler {
  /** A login to the admin database, before the user is looked up. True: the console decided who it is. */
  preLogin: (client: PgSocket, username: string) => boolean;
  /** After the user is known. False: the client was disconnected. */
  postLogin: (client: PgSocket) => boolean;
  /** One complete packet, body in buf[off, end). @returns Act.SKIP, WAIT or DEAD */
  handleClient: (client: PgSocket, type: number, body: Buffer, off: number, end: number) => Act;
  /** A cancel request for a console client: it gives up waiting. */
  handleCancel: (client: PgSocket) => void;
  /** PAUSE or SUSPEND is complete. */
  pauseDone: () => void;
  /** WAIT_CLOSE is complete. */
  waitCloseDone: () => void;
}

export const adminSlot: AdminHandler = {
  preLogin: () => false,
  postLogin: () => true,
  handleClient: () => Act.DEAD,
  handleCancel: () => {},
  pauseDone: () => {},
  waitCloseDone: () => {},
};

/** TLS of a connection, for logins. A slot so that tests can say what a client showed. */
export const tlsSlot: {
  /** The handshake is done. */
  active: (sk: PgSocket) => boolean;
  /** The peer showed a certificate (a verified one, or nothing of it counts). */
  peerCertProvided: (sk: PgSocket) => boolean;
  /** Subject of the peer's certificate, for the log; '' without one. */
  peerCertSubject: (sk: PgSocket) => string;
  /** The certificate is for this name: one of its alternative names, or its common name. */
  peerCertContainsName: (sk: PgSocket, name: string) => boolean;
} = {
  active: (sk) => sk.tls,
  peerCertProvided: tlsPeerCertProvided,
  peerCertSubject: (sk) => tlsPeerCertSubject(sk) ?? '',
  peerCertContainsName: tlsPeerCertContainsName,
};

/** What RELOAD and SIGHUP call; returns whether the new config is in force. */
export const reloadSlot: { loadConfig: () => boolean } = { loadConfig: () => false };

/** The giving side of a handover (src/takeover): another process of ours takes every socket of this one. */
export const handoverSlot: {
  /** a handover was asked for: the end of each turn is its */
  active: boolean;
  /** nothing moves: the sockets are described, and another process may own them soon */
  frozen: boolean;
  /** The console's HANDOVER. Returns null when it begins, or why not. */
  command: (admin: PgSocket, arg: string) => string | null;
  turnEnd: () => void;
  /** SHUTDOWN: returns true when the sockets are another process's now. */
  shutdown: (admin: PgSocket) => boolean;
  /** Ends the handover; everything goes on. */
  abort: (reason: string) => void;
  /** A reload that has to wait until the handover has failed. */
  laterReload: () => void;
  /** Has the loop handle the events that came while nothing moved. */
  replay: () => void;
} = {
  active: false,
  frozen: false,
  command: () => 'handover is not possible',
  turnEnd: () => {},
  shutdown: () => false,
  abort: () => {},
  laterReload: () => {},
  replay: () => {},
};
