/*
 * Upcalls from a lower layer to an upper layer. Each is declared here and assigned once, in src/wire.ts. Until then an
 * upcall does nothing, so that tests can run the lower layers alone.
 */

import type { SockAddr } from '../base/native';
import { Verdict } from '../wire/verdict';
import type { ClientSocket, ServerSocket } from './bouncer';

/** The console (src/admin), which handles the clients of the admin database. */
interface AdminCalls {
  /** A login to the admin database, before the user is looked up. @returns true if the console has set the user */
  preLogin: (client: ClientSocket, username: string) => boolean;
  /** The user is known. @returns false if the client was disconnected */
  postLogin: (client: ClientSocket) => boolean;
  /** Handles one complete packet, body in buf[off, end). */
  handleClient: (client: ClientSocket, type: number, body: Buffer, off: number, end: number) => Verdict;
  /** A cancel request for a console client: its command stops waiting. */
  handleCancel: (client: ClientSocket) => void;
  /** Answers the consoles whose PAUSE, SUSPEND or WAIT_CLOSE is complete or no longer can be. */
  answerWaiting: (modeReached: boolean) => void;
}

/** The old process in a handover (src/takeover/give.ts). */
interface HandoverCalls {
  /** The console's HANDOVER. @returns null if the handover begins, else the reason why not */
  command: (admin: ClientSocket, arg: string) => string | null;
  /** Continues a handover at the end of each turn. */
  turnEnd: () => void;
  /** SHUTDOWN while frozen. @returns true if the new process owns the sockets */
  shutdown: (admin: ClientSocket) => boolean;
  /** Ends the handover and resumes work. */
  abort: (reason: string) => void;
  /** Postpones a reload until the handover has failed. */
  laterReload: () => void;
}

export const upcalls: {
  admin: AdminCalls;
  handover: HandoverCalls;
  /** A server connection of the admin database has logged in to the old process. */
  takeoverLoggedIn: (server: ServerSocket) => Verdict;
  /** A host name lost an address: servers connected to it must be closed when they become idle. */
  addressGone: (name: string, addr: SockAddr) => void;
  signal: (signum: number) => void;
  /** RELOAD has applied the config: files that it names may have changed too. */
  reloaded: () => void;
} = {
  admin: {
    preLogin: () => false,
    postLogin: () => true,
    handleClient: () => Verdict.DISCONNECTED,
    handleCancel: () => {},
    answerWaiting: () => {},
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
  reloaded: () => {},
};
