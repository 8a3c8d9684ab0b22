/*
 * The listening sockets (PgBouncer's pooler.c): opens, suspends and resumes them, and accepts connections.
 */

import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { getShutdownMode, ownsListeners, ShutdownMode } from '../base/lifecycle';
import { atExit, die, logDebug, logError, logInfo, logNoise, logWarning, wantNoise } from '../base/log';
import { Family, native, type SockAddr } from '../base/native';
import { parseWordList } from '../base/strutil';
import { LISTEN_FDS_START, listenFdCount } from '../base/systemd';
import { USEC } from '../base/time';
import { newTimer, timerStart } from '../base/timer';
import { cf } from '../config/settings';
import { parseUint32 } from '../config/values';
import type { PgAddr } from '../pool/bouncer';
import { addrString, inetAddr, isUnixAddr, unixAddr } from './addr';
import { errorText, tuneSocket, tuneState } from './tune';

interface ListenSocket {
  fd: number;
  handle: number;
  addr: PgAddr;
  active: boolean;
  /** passed by the service manager: the pooler must not choose its address or remove its file */
  inherited: boolean;
}

const sockets: ListenSocket[] = [];
const socketsByHandle = new Map<number, ListenSocket>();

/** usec; pause after accept() failed, usually for lack of file descriptors, when an immediate retry would fail too */
const ACCEPT_PAUSE = 5 * USEC;
const acceptTimer = newTimer(() => {
  if (ownsListeners()) resumePooler();
});

function unixSocketPath(): string {
  return `${cf.unixSocketDir}/.s.PGSQL.${cf.listenPort}`;
}

function fsPath(path: string): Buffer {
  return Buffer.from(path, 'latin1');
}

function addSocket(fd: number, addr: PgAddr, inherited = false): void {
  const handle = native.listenOpen(fd);
  const ls: ListenSocket = { fd, handle, addr, active: false, inherited };
  sockets.push(ls);
  socketsByHandle.set(handle, ls);
}

function closeSocket(ls: ListenSocket): void {
  socketsByHandle.delete(ls.handle);
  native.close(ls.handle);
}

/**
 * Closes the TCP listeners, so that another process can use the port; not while suspended, when a new process uses
 * them.
 */
export function cleanupTcpSockets(): void {
  if (!ownsListeners()) return;
  for (let i = sockets.length - 1; i >= 0; i--) {
    const ls = sockets[i] as ListenSocket;
    if (isUnixAddr(ls.addr)) continue;
    closeSocket(ls);
    sockets.splice(i, 1);
  }
}

/** Closes the remaining listeners and removes the socket file. */
export function cleanupUnixSockets(): void {
  if (!ownsListeners()) return;
  for (const ls of sockets) {
    closeSocket(ls);
    if (ls.inherited || !isUnixAddr(ls.addr) || cf.unixSocketDir.startsWith('@') || cf.unixSocketDir === '') continue;
    try {
      unlinkSync(fsPath(unixSocketPath()));
    } catch {
      // already removed
    }
  }
  sockets.length = 0;
}

function listenName(addr: SockAddr): string {
  if (addr.family === Family.UNIX) return `unix:${addr.host}`;
  return addrString(inetAddr(addr));
}

function addListenTcp(addr: SockAddr): void {
  logDebug(`add_listen: ${listenName(addr)}`);
  let fd: number;
  try {
    fd = native.listenTcp(addr, cf.listenBacklog, cf.soReuseport ? 1 : 0);
  } catch (err) {
    const { syscall = 'socket', message } = errorText(err);
    logWarning(`cannot listen on ${listenName(addr)}: ${syscall}(): ${message}`);
    return;
  }
  if (!tuneSocket(fd, false)) {
    logWarning(`cannot listen on ${listenName(addr)}: tune_socket(): ${tuneState.error}`);
    native.closeFd(fd);
    return;
  }
  tuneAccept(fd, cf.tcpDeferAccept !== 0);
  logInfo(`listening on ${listenName(addr)}`);
  addSocket(fd, inetAddr(addr));
}

/** For chown(): leave the owner as it is; PgBouncer prints it as this number. */
const NO_UID = 0xffffffff;
/** The bits that chmod() changes. */
const MODE_BITS = 0o7777;

/** An abstract socket has no file. @param failed called with what has failed; it may end the process */
function changeFileMode(path: string, failed: (reason: string) => void): void {
  if (path.startsWith('@')) return;
  if (cf.unixSocketGroup !== '') {
    const gid = parseUint32(cf.unixSocketGroup) ?? native.getgrnam(cf.unixSocketGroup);
    const res = gid < 0 ? 0 : native.chown(path, -1, gid);
    if (gid < 0) failed(`could not find group '${cf.unixSocketGroup}': ${native.strerror(0)}`);
    if (res < 0) failed(`chown(${path}, ${NO_UID}, ${gid}) failed: ${native.strerror(-res)}`);
  }
  try {
    chmodSync(fsPath(path), cf.unixSocketMode & MODE_BITS);
  } catch (err) {
    failed(`failure to chmod(${path}, 0${(cf.unixSocketMode >>> 0).toString(8)}): ${errorText(err).message}`);
  }
}

function listenUnix(path: string): number {
  try {
    return native.listenUnix(path, cf.listenBacklog);
  } catch (err) {
    const { syscall = 'socket', message } = errorText(err);
    logWarning(`cannot listen on unix:${path}: ${syscall}(): ${message}`);
    return die('failed to create unix socket');
  }
}

/**
 * Opens the Unix socket. A path that cannot be used ends the process: the socket is configured, and cancel requests
 * forwarded to a missing socket would fail silently.
 */
function createUnixSocket(): void {
  const path = unixSocketPath();
  const abstract = path.startsWith('@');
  if (!abstract) {
    let locked = true;
    try {
      lstatSync(fsPath(`${path}.lock`));
    } catch {
      locked = false;
    }
    if (locked) die(`unix port ${cf.listenPort} is in use`);
    try {
      unlinkSync(fsPath(path));
    } catch {
      // normal: there is no old socket file
    }
  }
  const fd = listenUnix(path);
  changeFileMode(path, die);
  tuneSocket(fd, true);
  logInfo(`listening on unix:${path}`);
  addSocket(fd, unixAddr(cf.listenPort, 0, 0));
}

function tuneAccept(fd: number, on: boolean): void {
  const action = on ? 'install' : 'uninstall';
  logNoise(`${action} TCP_DEFER_ACCEPT on ${fd}`);
  const res = native.deferAccept(fd, on ? 1 : 0);
  if (res < 0) logWarning(`tune_accept: ${action} TCP_DEFER_ACCEPT: ${native.strerror(-res)}`);
}

/** Applies tcp_defer_accept to the open listening sockets. */
export function poolerTuneAccept(on: boolean): void {
  for (const ls of sockets) if (!isUnixAddr(ls.addr)) tuneAccept(ls.fd, on);
}

/** Applies the other TCP settings to the open listening sockets: new connections have the options of these. */
export function poolerTuneSockets(): void {
  for (const ls of sockets) if (!isUnixAddr(ls.addr)) tuneSocket(ls.fd, false);
}

/** The words of listen_addr. */
function listenNames(): string[] {
  return parseWordList(cf.listenAddr).filter((name) => name !== '');
}

/** The addresses of one of them. Dies if there are none. */
function listenAddrs(name: string): SockAddr[] {
  try {
    return native.getaddrinfoPassive(name === '*' ? null : name, cf.listenPort);
  } catch (err) {
    const { message, errno } = err as NodeJS.ErrnoException;
    return die(`getaddrinfo('${name}', '${cf.listenPort}') = ${message} [${errno}]`);
  }
}

function registerCleanup(): void {
  atExit(cleanupUnixSockets);
  atExit(cleanupTcpSockets);
}

/** Default value; ignoring it needs no warning. */
const DEFAULT_UNIX_SOCKET_DIR = '/tmp';

/** The address of a listening socket; null if the descriptor is no socket. */
function addrOfListener(fd: number): PgAddr | null {
  try {
    const name = native.sockName(fd);
    return name.family === Family.UNIX ? unixAddr(cf.listenPort, 0, 0) : inetAddr(name);
  } catch {
    return null;
  }
}

/** Uses the listening sockets passed by the service manager, which then determines the addresses. */
function useInheritedSockets(count: number): void {
  if (cf.listenAddr !== '') logWarning('sockets passed from service manager, cf_listen_addr ignored');
  if (cf.unixSocketDir !== '' && cf.unixSocketDir !== DEFAULT_UNIX_SOCKET_DIR) {
    logWarning('sockets passed from service manager, cf_unix_socket_dir ignored');
  }
  for (let fd = LISTEN_FDS_START; fd < LISTEN_FDS_START + count; fd++) {
    const addr = addrOfListener(fd);
    if (addr === null || !tuneSocket(fd, isUnixAddr(addr))) {
      die(`failed to set up socket passed from service manager (fd ${fd})`);
    }
    if (!isUnixAddr(addr)) tuneAccept(fd, cf.tcpDeferAccept !== 0);
    logInfo(`socket passed from service manager (fd ${fd})`);
    addSocket(fd, addr, true);
  }
}

/** Opens all configured listening sockets and starts accepting. Dies if there are none. */
export function poolerSetup(): void {
  registerCleanup();
  const inherited = listenFdCount();
  if (inherited > 0) {
    useInheritedSockets(inherited);
    resumePooler();
    return;
  }
  const names = listenNames();
  // a failing address is only a warning, because names and families often overlap; having no address at all is fatal
  for (const name of names) for (const addr of listenAddrs(name)) addListenTcp(addr);
  if (names.length > 0 && sockets.length === 0) {
    die(`failed to listen on any address in listen_addr list: ${cf.listenAddr}`);
  }
  if (cf.unixSocketDir !== '') createUnixSocket();
  if (sockets.length === 0) die('nowhere to listen on');
  resumePooler();
}

/** True if a process accepts connections on the configured Unix socket: another instance is running. */
export function checkOldProcessUnix(): boolean {
  // the service manager's socket accepts connections even before any process serves it
  if (cf.unixSocketDir === '' || listenFdCount() > 0) return false;
  return native.unixProbe(unixSocketPath());
}

/** Stops accepting; meanwhile connections queue in the kernel. */
export function suspendPooler(): void {
  for (const ls of sockets) {
    if (!ls.active) continue;
    native.listenStart(ls.handle, 0);
    ls.active = false;
  }
}

/** Starts accepting again. */
export function resumePooler(): void {
  for (const ls of sockets) {
    if (ls.active) continue;
    native.listenStart(ls.handle, 1);
    ls.active = true;
  }
}

/**
 * Handles an Ev.ACCEPT record.
 * @param result the new descriptor, or -errno
 * @returns whether the connection came over the Unix socket; null if there is no usable connection
 */
export function onAccept(handle: number, result: number): boolean | null {
  const ls = socketsByHandle.get(handle);
  if (result < 0) {
    logError(`accept() failed: ${native.strerror(-result)}`);
    suspendPooler();
    timerStart(acceptTimer, ACCEPT_PAUSE, 0);
    return null;
  }
  if (ls === undefined) {
    native.closeFd(result);
    return null;
  }
  if (wantNoise()) logNoise(`new fd from accept=${result}`);
  return isUnixAddr(ls.addr);
}

/**
 * Calls `each` for every listening socket until it returns false.
 * @param each its last argument tells whether the service manager passed the socket
 */
export function forEachPoolerFd(each: (fd: number, addr: PgAddr, inherited: boolean) => boolean): boolean {
  for (const ls of sockets) if (!each(ls.fd, ls.addr, ls.inherited)) return false;
  return true;
}

/**
 * Adds a listening socket of the old process, without accepting on it yet.
 * @param inherited the service manager passed it
 * @returns false if it cannot be used (logged)
 */
export function usePoolerSocket(fd: number, inherited: boolean): boolean {
  const addr = addrOfListener(fd);
  if (addr === null) {
    logError('getsockname failed');
    return false;
  }
  if (!tuneSocket(fd, isUnixAddr(addr))) return false;
  // listen_backlog of this process counts, unless the service manager has set its own
  const res = inherited ? 0 : native.listenBacklog(fd, cf.listenBacklog);
  if (res < 0) logWarning(`cannot set listen_backlog of ${addrString(addr)}: ${native.strerror(-res)}`);
  logInfo(`got pooler socket: ${addrString(addr)}`);
  addSocket(fd, addr, inherited);
  return true;
}

function sameAddr(a: SockAddr, b: SockAddr): boolean {
  return a.family === b.family && a.host === b.host && a.port === b.port;
}

/** What checkListenAddr() has found. */
let checkedAddrs: SockAddr[] = [];

/**
 * Looks up listen_addr while the new process can still give up, and dies if that fails. Later a look-up could fail or make
 * clients wait.
 */
export function checkListenAddr(): void {
  checkedAddrs = listenNames().flatMap(listenAddrs);
}

/**
 * After a takeover: closes listening sockets that the config no longer names, and opens those that it names now. Gives
 * those that stay the options of this config. Clients were taken over and must be kept, so no failure here is fatal.
 */
export function settleListeners(): void {
  registerCleanup();
  poolerTuneAccept(cf.tcpDeferAccept !== 0);
  // a shutdown that came meanwhile has closed the sockets
  if (sockets.some((ls) => ls.inherited) || getShutdownMode() !== ShutdownMode.NONE) return;
  const wanted = checkedAddrs;
  for (let i = sockets.length - 1; i >= 0; i--) {
    const ls = sockets[i] as ListenSocket;
    if (isUnixAddr(ls.addr) || wanted.some((addr) => sameAddr(addr, ls.addr))) continue;
    logInfo(`not listening on ${addrString(ls.addr)} any more`);
    closeSocket(ls);
    sockets.splice(i, 1);
  }
  for (const addr of wanted) if (!sockets.some((ls) => sameAddr(addr, ls.addr))) addListenTcp(addr);
  if (sockets.some((ls) => isUnixAddr(ls.addr))) changeFileMode(unixSocketPath(), logError);
  if (sockets.length === 0) logError('nowhere to listen on');
}
