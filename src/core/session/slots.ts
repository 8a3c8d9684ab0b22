/*
 * Where upper floors register themselves, so that the session code need not import them: the console, the handover, and
 * whoever loads the config.
 */
import type { PgSocket } from '../pool/socket';

/** The console (src/admin) as the handler of the admin database. */
export interface AdminHandler {
  /** A login to the admin database, before the user is looked up. True: the console decided who it is. */
  preLogin: (client: PgSocket, username: string) => boolean;
  /** After the user is known. False: the client was disconnected. */
  postLogin: (client: PgSocket) => boolean;
  /** One complete packet, body in buf[off, end). False: the client was disconnected. */
  handleClient: (client: PgSocket, type: number, body: Buffer, off: number, end: number) => boolean;
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
  handleClient: () => false,
  handleCancel: () => {},
  pauseDone: () => {},
  waitCloseDone: () => {},
};

/** What RELOAD and SIGHUP call; returns whether the new config is in force. */
export const reloadSlot: { loadConfig: () => boolean } = { loadConfig: () => false };
