/*
 * The fields that the records of clients and servers have in common.
 */

import type { WallTime } from '../../core/base/time';
import type { AnySocket, PgAddr, PgCredentials, PgDatabase } from '../../core/pool/bouncer';
import { isServerSocket } from '../../core/pool/socket';
import { bytesText } from './bytes';
import { type CredentialsRef, credentialsRef, readCredentials } from './credentials';
import type { Frame } from './frame';
import { flagBits, numbersOf, setFlags, setNumbers } from './socket-fields';

/** family, host, port, uid, pid */
type AddrTuple = [number, string, number, number, number];

/** What the writer of the records knows about a socket. */
export interface Described {
  /** its name in a handover */
  state: string;
  /** number of its pool, -1 = none yet */
  pool: number;
  /** lengths of the raw bytes behind the text: buffered input, unsent output */
  kept: number;
  unsent: number;
  /** from format 2 on: length of the state of its TLS connection, behind all other raw bytes; 0 = a plain connection */
  tls?: number;
}

export interface SocketRecord extends Described {
  /** `ahead`: sent while the old process still serves; valid unless a later record replaces it */
  k: 'socket' | 'ahead';
  /** false: the descriptor came with the record sent ahead, which this record replaces */
  fd: boolean;
  id: number;
  /** bits of flagNames */
  f: number;
  n: (number | WallTime)[];
  v: readonly (string | null)[];
  /** raw bytes */
  cancelKey: string;
  remote: AddrTuple;
  local: AddrTuple;
  /** length of the raw bytes behind `unsent`: the partial packet of a client */
  collected: number;
  link?: number;
  /** the user who logged in; left out = the user of the pool, null = not known yet */
  user?: CredentialsRef | null;
}

function addrTuple(addr: PgAddr): AddrTuple {
  return [addr.family, addr.host, addr.port, addr.uid, addr.pid];
}

function addrOf([family, host, port, uid, pid]: AddrTuple): PgAddr {
  return { family, host, port, uid, pid };
}

export function socketRecord(sk: AnySocket, { state, pool, kept, unsent, tls }: Described): SocketRecord {
  const record: SocketRecord = {
    k: 'socket',
    fd: true,
    id: sk.id,
    state,
    pool,
    f: flagBits(sk),
    n: numbersOf(sk),
    v: sk.vars.values,
    cancelKey: bytesText(sk.cancelKey),
    remote: addrTuple(sk.remoteAddr),
    local: addrTuple(sk.localAddr),
    kept,
    unsent,
    collected: 0,
  };
  if (tls) record.tls = tls;
  if (sk.link !== null) record.link = sk.link.id;
  if (sk.loginUser !== (sk.pool?.user ?? null)) {
    const db = isServerSocket(sk) ? null : sk.db;
    record.user = sk.loginUser === null ? null : credentialsRef(sk.loginUser, db);
  }
  return record;
}

/** Restores the fields before those that only clients or only servers have. */
export function readSocket(record: SocketRecord, sk: AnySocket, frame: Frame): void {
  setFlags(sk, frame.flags, record.f);
  setNumbers(sk, frame.numbers, record.n);
  frame.varsOf(record.v, sk.vars);
  sk.remoteAddr = addrOf(record.remote);
  sk.localAddr = addrOf(record.local);
}

/** The user who logged in. @param db the database of the client; null for a server */
export function readLoginUser(
  record: SocketRecord,
  poolUser: PgCredentials | null,
  db: PgDatabase | null,
  frame: Frame,
): PgCredentials | null {
  if (record.user === undefined) return poolUser;
  return record.user === null ? null : readCredentials(record.user, db, frame);
}
