/*
 * Addresses of sockets, and their text forms.
 */

import { hostname } from 'node:os';
import { logError, logNoise } from '../base/log';
import type { LogFields } from '../base/log-json';
import { acceptedNames, Family, native, type SockAddr } from '../base/native';
import { cf } from '../config/settings';
import type { AnySocket, ClientSocket, PgAddr } from '../pool/bouncer';
import { isServerSocket, shownDatabase } from '../pool/socket';

export function isUnixAddr(addr: SockAddr): boolean {
  return addr.family === Family.UNIX;
}

/** In the place of a uid: the system user at the other end is not known. */
export const UNKNOWN_UID = -1;

/** The address of a Unix socket; its port is the number in the socket file's name. */
export function unixAddr(port: number, uid: number, pid: number): PgAddr {
  return { family: Family.UNIX, host: 'unix', port, uid, pid };
}

export function inetAddr(addr: SockAddr): PgAddr {
  return { family: addr.family, host: addr.host, port: addr.port, uid: 0, pid: 0 };
}

/** Sets the remote address of an open socket. */
function fillRemoteAddr(sk: AnySocket, fd: number, isUnix: boolean): void {
  if (isUnix) {
    const cred = native.peerCred(fd);
    if (cred !== null) logNoise(`unix peer uid: ${cred[0]}`);
    sk.remoteAddr = unixAddr(cf.listenPort, cred === null ? UNKNOWN_UID : cred[0], cred === null ? 0 : cred[2]);
    return;
  }
  try {
    sk.remoteAddr = inetAddr(native.peerName(fd));
  } catch (err) {
    logError(`fill_remote_addr: getpeername(${fd}) = ${(err as Error).message}`);
  }
}

/** The local address of the last socket. Most clients have the same, so they share the object. */
let lastLocalAddr: PgAddr = unixAddr(0, 0, 0);

/** Sets the local address of an open socket. */
export function fillLocalAddr(sk: AnySocket, fd: number, isUnix: boolean): void {
  let addr: PgAddr;
  if (isUnix) {
    addr = unixAddr(cf.listenPort, process.geteuid?.() ?? 0, process.pid);
  } else {
    try {
      addr = inetAddr(native.sockName(fd));
    } catch (err) {
      logError(`fill_local_addr: getsockname(${fd}) = ${(err as Error).message}`);
      return;
    }
  }
  setLocalAddr(sk, addr);
}

function setLocalAddr(sk: AnySocket, addr: PgAddr): void {
  const last = lastLocalAddr;
  const same =
    addr.family === last.family && addr.port === last.port && addr.host === last.host && addr.uid === last.uid;
  if (!same) lastLocalAddr = addr;
  sk.localAddr = same ? last : addr;
}

/** Texts of IPv4 addresses by their number: most clients come from few hosts. */
const inet4Texts = new Map<number, string>();
const INET4_TEXTS_MAX = 1024;

function inet4Text(address: number): string {
  const known = inet4Texts.get(address);
  if (known !== undefined) return known;
  if (inet4Texts.size >= INET4_TEXTS_MAX) inet4Texts.clear();
  const text = `${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}`;
  inet4Texts.set(address, text);
  return text;
}

/** One of the two addresses of acceptedNames. */
function inet4Addr(at: number): PgAddr {
  const host = inet4Text(acceptedNames[at] as number);
  return { family: Family.INET, host, port: acceptedNames[at + 1] as number, uid: 0, pid: 0 };
}

/** Sets both addresses of an open socket. */
export function fillAddrs(sk: AnySocket, fd: number, isUnix: boolean): void {
  fillRemoteAddr(sk, fd, isUnix);
  fillLocalAddr(sk, fd, isUnix);
}

/** Likewise, of the connection that native.openAccepted() has just opened. */
export function fillAcceptedAddrs(client: ClientSocket, fd: number, isUnix: boolean): void {
  if (isUnix || acceptedNames[1] === 0) {
    fillAddrs(client, fd, isUnix);
    return;
  }
  client.remoteAddr = inet4Addr(0);
  setLocalAddr(client, inet4Addr(2));
}

/** The uid of the system user whose process is the client, on a Unix socket; null if that is not known. */
export function clientUid(client: ClientSocket): number | null {
  if (!isUnixAddr(client.remoteAddr) || client.remoteAddr.uid === UNKNOWN_UID) return null;
  return native.peerCred(native.fdOf(client.handle))?.[0] ?? null;
}

/** False if the kernel did not know the address of a TCP connection, which is broken then. */
export function hasRemoteAddr({ remoteAddr }: AnySocket): boolean {
  return isUnixAddr(remoteAddr) || remoteAddr.host !== '';
}

/** The host part, as printed by SHOW and in a handover. */
export function addrHost(addr: PgAddr): string {
  return addr.family === Family.UNIX ? 'unix' : addr.host;
}

/** `host:port`, IPv6 in brackets, `unix:port$pid`. */
export function addrString(addr: PgAddr): string {
  if (addr.family === Family.INET6) return `[${addr.host}]:${addr.port}`;
  if (addr.family === Family.UNIX) return addr.pid > 0 ? `unix:${addr.port}$${addr.pid}` : `unix:${addr.port}`;
  return `${addr.host}:${addr.port}`;
}

let ownHostname = '';

/** Like addrString(), with the pid and host of a Unix peer: for application_name_add_host. */
export function addrDetails(addr: PgAddr): string {
  if (addr.family !== Family.UNIX || addr.pid === 0) return addrString(addr);
  if (ownHostname === '') ownHostname = hostname();
  return `unix(${addr.pid}@${ownHostname}):${addr.port}`;
}

/** `from -> to` of a connection, in the direction in which it was opened. */
export function connInfo(sk: AnySocket): string {
  const from = isServerSocket(sk) ? sk.localAddr : sk.remoteAddr;
  const to = isServerSocket(sk) ? sk.remoteAddr : sk.localAddr;
  if (isUnixAddr(from)) return 'unix->unix';
  return `${from.host}:${from.port} -> ${to.host}:${to.port}`;
}

/** The prefix of log messages about a socket: `C-0x2a: db/user@host:port `. */
export function logSocketPrefix(sock: unknown): string {
  const sk = sock as AnySocket;
  const kind = isServerSocket(sk) ? 'S' : 'C';
  const addr = sk.remoteAddr;
  let host = addr.host;
  if (addr.family === Family.UNIX) host = addr.pid > 0 ? `unix(${addr.pid})` : 'unix';
  else if (addr.family === Family.INET6) host = `[${addr.host}]`;
  const peerId = sk.pool?.db.peerId ?? 0;
  const who =
    peerId > 0 ? `peer-${peerId}` : `${shownDatabase(sk)?.name ?? '(nodb)'}/${sk.loginUser?.name ?? '(nouser)'}`;
  return `${kind}-0x${sk.id.toString(16)}: ${who}@${host}:${addr.port} `;
}

/** The same as fields of a line in JSON. */
export function logSocketFields(sock: unknown): LogFields {
  const sk = sock as AnySocket;
  const addr = sk.remoteAddr;
  const fields: Record<string, string | number> = { socket: isServerSocket(sk) ? 'server' : 'client', id: sk.id };
  if (sk.link !== null) fields.linked_id = sk.link.id;
  const peerId = sk.pool?.db.peerId ?? 0;
  const database = shownDatabase(sk)?.name;
  if (peerId > 0) fields.peer = peerId;
  else if (database !== undefined) fields.database = database;
  if (sk.loginUser !== null) fields.user = sk.loginUser.name;
  fields.address = addrHost(addr);
  fields.port = addr.port;
  if (addr.pid > 0) fields.pid_of_peer = addr.pid;
  return fields;
}

/** True if the client is connected over a Unix socket. */
export function isUnixClient(client: ClientSocket): boolean {
  return isUnixAddr(client.remoteAddr);
}
