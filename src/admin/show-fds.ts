/*
 * SHOW FDS: one row per socket of the pooler. For the process owner on a Unix socket, each row is a message that
 * carries the descriptor (SCM_RIGHTS), for the classic takeover exchange.
 */

import { constants } from 'node:os';
import { nextOf, type StatList } from '../core/base/list';
import { logError, slogDebug, wantDebug } from '../core/base/log';
import { native } from '../core/base/native';
import { AuthType } from '../core/config/choices';
import { cf } from '../core/config/settings';
import { addrHost, isUnixAddr } from '../core/net/addr';
import { forEachPoolerFd } from '../core/net/pooler';
import { sendPacket } from '../core/net/sbuf';
import { type AnySocket, type ClientSocket, type PgAddr, type PgPool, SocketState } from '../core/pool/bouncer';
import { poolList } from '../core/pool/pool';
import { consoleSession, isServerSocket, shownDatabase } from '../core/pool/socket';
import { clientStates, loginClientList, serverStates } from '../core/pool/states';
import { Var } from '../core/pool/varcache';
import { type ColumnValue, writeDataRow, writeRowDescription } from '../core/wire/messages';
import { pktbufTemp } from '../core/wire/pktbuf';
import { showColumns } from './columns';
import { accessError, adminReady, extendedSession, sendResult } from './reply';

/** A receiver that reads nothing for this long is disconnected. */
const STALL_MAX_MS = 10_000;
/** Interval between two attempts. */
const NAP_MS = 1;

const { EAGAIN, EINTR } = constants.errno;
const napCell = new Int32Array(new SharedArrayBuffer(4));

/**
 * Sends all bytes, waiting for a slow receiver. Rows with descriptors cannot be queued, so this blocks the loop, as in
 * PgBouncer.
 * @param fd descriptor sent with the first byte, -1 = none
 * @returns false if the socket failed or the receiver stalls (logged)
 */
function sendNow(admin: ClientSocket, bytes: Uint8Array, fd: number): boolean {
  const socket = native.fdOf(admin.handle);
  let sent = 0;
  let stalledMs = 0;
  while (sent < bytes.length) {
    const res = native.sendFds(socket, bytes.subarray(sent), fd >= 0 && sent === 0 ? [fd] : []);
    if (res > 0) {
      sent += res;
      stalledMs = 0;
    } else if (res !== -EINTR) {
      if (res !== -EAGAIN || stalledMs >= STALL_MAX_MS) {
        logError(`send_one_fd: sendmsg error: ${native.strerror(-res)}`);
        return false;
      }
      Atomics.wait(napCell, 0, 0, NAP_MS);
      stalledMs += NAP_MS;
    }
  }
  return true;
}

/** True if the rows carry the descriptors. */
function mayHaveFds(admin: ClientSocket): boolean {
  return isUnixAddr(admin.remoteAddr) && consoleSession(admin).owner && !admin.tls;
}

/** Sends the queued output first, because sendNow() bypasses the queue. */
function flushQueue(admin: ClientSocket): boolean {
  return native.unsent(admin.handle) === 0 || sendNow(admin, native.takeUnsent(admin.handle), -1);
}

/** Adds one row: the descriptor and the remaining columns. @returns false to stop */
type PutFd = (fd: number, row: ColumnValue[]) => boolean;

function sendOneFd(admin: ClientSocket, fd: number, row: ColumnValue[]): boolean {
  const buf = pktbufTemp();
  writeDataRow(buf, showColumns.fds.types, [fd, ...row]);
  if (buf.failed) return false;
  const withFd = mayHaveFds(admin);
  if (wantDebug()) slogDebug(admin, `sending socket list: fd=${fd}, len=${withFd ? 1 : 0}`);
  return withFd ? sendNow(admin, buf.written(), fd) : sendPacket(admin, buf);
}

/** The secret if the new process cannot read it from auth_file: of users found by auth_query, and of PAM users. */
function passwordOf(sk: AnySocket): string | null {
  const user = sk.loginUser;
  if (user === null || user.globalUser?.credentials === user) return null;
  const fromAuthQuery = (shownDatabase(sk)?.authUser ?? null) !== null;
  return fromAuthQuery || cf.authType === AuthType.PAM ? user.passwd : null;
}

/** The row of a connection, without its descriptor. */
function fdRow(sk: AnySocket): ColumnValue[] {
  const link = sk.link;
  const keys = sk.pool?.user?.scramPassthroughValid ? sk.pool.user : null;
  return [
    isServerSocket(sk) ? 'server' : 'client',
    sk.loginUser?.name ?? null,
    shownDatabase(sk)?.name ?? null,
    addrHost(sk.remoteAddr),
    sk.remoteAddr.port,
    sk.cancelKey.readBigUInt64BE(0),
    link !== null && link.handle >= 0 ? native.fdOf(link.handle) : 0,
    sk.vars.get(Var.CLIENT_ENCODING),
    sk.vars.get(Var.STD_STRINGS),
    sk.vars.get(Var.DATESTYLE),
    sk.vars.get(Var.TIMEZONE),
    passwordOf(sk),
    keys?.scramClientKey ?? null,
    keys?.scramServerKey ?? null,
  ];
}

function socketFd(put: PutFd, sk: AnySocket): boolean {
  // a connection that is not open yet has no descriptor, and these rows cannot carry TLS state
  if (sk.handle < 0 || sk.tls || sk.link?.tls === true) return true;
  // the rows cannot carry channels either
  if (isServerSocket(sk) ? sk.state === SocketState.SV_LISTEN : (sk.listening?.channels.size ?? 0) > 0) return true;
  return put(native.fdOf(sk.handle), fdRow(sk));
}

function poolerFd(put: PutFd, fd: number, addr: PgAddr): boolean {
  const row: ColumnValue[] = ['pooler', null, null, addrHost(addr), addr.port, 0, 0];
  while (row.length < showColumns.fds.names.length - 1) row.push(null);
  return put(fd, row);
}

function listFds(put: PutFd, list: StatList<AnySocket>): boolean {
  for (let sk = list.head; sk !== null; sk = nextOf(sk)) if (!socketFd(put, sk)) return false;
  return true;
}

/** Adds a row for each socket of a pool that SHOW SOCKETS prints. */
function poolFds(put: PutFd, pool: PgPool): boolean {
  const lists = [...clientStates, ...serverStates].filter(({ showSockets }) => showSockets !== null);
  return lists.every(({ list }) => listFds(put, list(pool)));
}

function everyFd(put: PutFd): boolean {
  if (!forEachPoolerFd((fd, addr) => poolerFd(put, fd, addr))) return false;
  if (!listFds(put, loginClientList)) return false;
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (!pool.db.admin && !poolFds(put, pool)) return false;
  }
  return true;
}

/** SHOW FDS, for administrators only: it shows cancel keys and secrets, and blocks the loop. */
export function showFds(admin: ClientSocket): boolean {
  if (!consoleSession(admin).admin) return accessError(admin);
  // without descriptors: a new process, which needs them, uses the simple protocol
  if (extendedSession(admin) !== null) {
    return sendResult(admin, showColumns.fds, (putRow) => {
      everyFd((fd, row) => {
        putRow(fd, ...row);
        return true;
      });
    });
  }

  const buf = pktbufTemp();
  writeRowDescription(buf, showColumns.fds.types, showColumns.fds.names);
  if (!sendPacket(admin, buf)) return false;
  if (mayHaveFds(admin) && !flushQueue(admin)) return false;
  if (!everyFd((fd, row) => sendOneFd(admin, fd, row))) return false;
  return adminReady(admin, 'SHOW');
}
