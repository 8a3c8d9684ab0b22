/*
 * Calls from a lower floor to an upper one. Each is declared here, assigned once, in src/wire.ts, and does nothing
 * until then, so that tests can run the lower floors alone.
 */

import type { SockAddr } from '../base/native';
import { Verdict } from '../wire/verdict';
import type { ClientSocket, ServerSocket } from './bouncer';

/** The console (src/admin) as the handler of the admin database. */
interface AdminCalls {
  /** A login to the admin database, before the user is looked up. @returns true when the console has set the user */
  preLogin: (client: ClientSocket, username: string) => boolean;
  /** The user is known. @returns false when the client was disconnected */
  postLogin: (client: ClientSocket) => boolean;
  /** One complete packet, body in buf[off, end). */
  handleClient: (client: ClientSocket, type: number, body: Buffer, off: number, end: number) => Verdict;
  /** A cancel request for a console client: its command stops waiting. */
  handleCancel: (client: ClientSocket) => void;
  /** PAUSE or SUSPEND is complete. */
  pauseDone: () => void;
  /** WAIT_CLOSE is complete. */
  waitCloseDone: () => void;
}

/** The old process's side of a handover (src/takeover/give.ts). */
interface HandoverCalls {
  /** The console's HANDOVER. @returns null when the handover begins, or the reason why not */
  command: (admin: ClientSocket, arg: string) => string | null;
  /** The end of each turn, where a handover goes on. */
  turnEnd: () => void;
  /** SHUTDOWN while frozen. @returns true when the new process owns the sockets */
  shutdown: (admin: ClientSocket) => boolean;
  /** Ends the handover and resumes work. */
  abort: (reason: string) => void;
  /** Remembers a reload until the handover has failed. */
  laterReload: () => void;
}

export const upcalls: {
  admin: AdminCalls;
  handover: HandoverCalls;
  /** A server connection of the admin database has logged in to the old process. */
  takeoverLoggedIn: (server: ServerSocket) => Verdict;
  /** A host name lost an address: servers connected to it are to be closed when they become idle. */
  addressGone: (name: string, addr: SockAddr) => void;
  signal: (signum: number) => void;
} = {
  admin: {
    preLogin: () => false,
    postLogin: () => true,
    handleClient: () => Verdict.DISCONNECTED,
    handleCancel: () => {},
    pauseDone: () => {},
    waitCloseDone: () => {},
  },
  handover: {
    command: () => 'handover is not possible',
    turnEnd: () => {},
    shutdown: () => false,
    abort: () => {},
    laterReload: () => {},
  },
  takeoverLoggedIn: () => Verdict.DISCONNECTED,
  addressGone: () => {},
  signal: () => {},
};
