/*
 * Records of what clients listen on by a shared connection (listen_mode = share), of each client and of each pool. See
 * listening.ts.
 */

import type { PktBuf } from '../wire/pktbuf';

/** LISTEN or UNLISTEN. */
export interface ChannelStatement {
  readonly listen: boolean;
  /** as PostgreSQL sends it, bytes; null = UNLISTEN of all */
  readonly channel: string | null;
}

/** What a client that has used LISTEN listens on. */
export class ClientListening {
  readonly channels = new Set<string>();
  /** the statements of its outstanding requests, in order: their tags do not name the channel */
  expected: ChannelStatement[] = [];
  /** executed in the open transaction */
  changes: ChannelStatement[] = [];
  /** so many of these, from the first on, may have been undone by a ROLLBACK, which may be one TO SAVEPOINT */
  doubtful = 0;
  /** the statement of the unnamed portal */
  bound: ChannelStatement | null = null;
  /** a channel was added that the listening connection does not listen on yet */
  missing = false;
  /** its ReadyForQuery is withheld until the LISTEN is in force */
  waiting = false;
  /** usec */
  waitStart = 0;
  /** the client knows that it listens, so it relies on being notified */
  told = false;
  /** it has to be told that notifications may have been lost */
  noticeDue = false;
  /** notifications that have to wait until its transaction has ended; null = never any */
  queue: PktBuf | null = null;
  /** the queue may have notifications on channels that the client does not listen on any more */
  narrowed = false;
  /** why it must be disconnected */
  refusal: { readonly reason: string; readonly sqlstate: string } | null = null;
}

/** The listening server connection of a pool. The types of the sockets are parameters, because these have this record. */
export class Listening<Client, Server> {
  server: Server | null = null;
  /** the clients of each channel */
  readonly channels = new Map<string, Set<Client>>();
  /** all of them */
  readonly listeners = new Set<Client>();
  /** clients whose ReadyForQuery is withheld */
  readonly waiting = new Set<Client>();
  /** clients that end as soon as they have no server, because notifications may have been lost */
  readonly ending = new Set<Client>();
  /** what the server listens on */
  readonly inForce = new Set<string>();
  /** channels that have got their first client or lost their last */
  readonly dirty = new Set<string>();
  /** the channels of the LISTENs under way; null = the server owes no answer */
  sending: string[] | null = null;
  /** the server's error in answer to them */
  failure: string | null = null;
  /** the server connection has ended, and the clients do not know yet */
  lost = false;
  /** clients are to be told when all channels are in force again */
  noticeDue = false;
  /** client_encoding of the first client, which the notifications have; bytes */
  encoding = '';
  /** an UNLISTEN may have failed: the server is not used for anything else */
  tainted = false;
  /** so many connections in a row have ended before they listened */
  failures = 0;
  /** usec; the next connection is not used before */
  retryAt = 0;
}
