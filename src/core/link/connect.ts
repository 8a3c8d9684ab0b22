// Opens the socket of a server connection: looks the host up if it is a name, then connects.

import { logError, logNoise, slogDebug, slogNoise } from '../base/log';
import { Family, native, type SockAddr } from '../base/native';
import { cf } from '../config/settings';
import { inetAddr, isUnixAddr, unixAddr } from '../net/addr';
import { dnsRemember, dnsResolve } from '../net/dnslookup';
import { attachHandle } from '../net/sbuf';
import { tuneSocket } from '../net/tune';
import { type ServerSocket, SocketState } from '../pool/bouncer';
import { disconnectServer, LoginOutcome } from './objects';

const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}$/;
/** Only an IPv6 address has a colon; not every text with a colon is an IPv6 address. */
const IPV6 = /^(?=.*:)[0-9a-fA-F:.]+(?:%.+)?$/;

export function connectToHost(server: ServerSocket, host: string | null, port: number): void {
  server.host = host;
  server.port = port;
  if (host === null || host.startsWith('/') || host.startsWith('@')) {
    const dir = host ?? cf.unixSocketDir;
    if (dir === '') {
      logError(`unix socket dir not configured: ${server.pool.db.name}`);
      disconnectServer(server, false, 'cannot connect');
      return;
    }
    connectServer(server, { family: Family.UNIX, host: `${dir}/.s.PGSQL.${port}`, port: 0 });
  } else if (IPV6.test(host)) {
    connectServer(server, { family: Family.INET6, host, port });
  } else if (IPV4.test(host)) {
    connectServer(server, { family: Family.INET, host, port });
  } else {
    slogNoise(server, `dns socket: ${host}`);
    // `done` may be called before dnsResolve() returns: then there is no look-up to cancel
    const token = dnsResolve(host, (addr) => onServerResolved(server, addr), server.pool.failedAddresses);
    if (server.state === SocketState.SV_LOGIN && server.login !== null && server.handle < 0)
      server.login.dnsToken = token;
  }
}

/**
 * A server connection has been taken over: if its host is a name that loses this address, it is closed when it is idle.
 * @param host null = not known, or a Unix socket
 */
export function rememberAddress({ remoteAddr }: ServerSocket, host: string | null): void {
  if (host === null || isUnixAddr(remoteAddr) || IPV4.test(host) || IPV6.test(host)) return;
  dnsRemember(host, { family: remoteAddr.family, host: remoteAddr.host, port: 0 });
}

/** Connects to the other end of a connection, whatever the name of its host stands for by now. */
export function connectBeside(server: ServerSocket, other: ServerSocket): void {
  const { host, remoteAddr } = other;
  if (isUnixAddr(remoteAddr)) {
    connectToHost(server, host, remoteAddr.port);
    return;
  }
  server.host = host;
  server.port = remoteAddr.port;
  connectServer(server, remoteAddr);
}

/** True if both connections have the same other end. */
export function sameEnd(a: ServerSocket, b: ServerSocket): boolean {
  const { remoteAddr: one } = a;
  const { remoteAddr: two } = b;
  return a.host === b.host && one.family === two.family && one.host === two.host && one.port === two.port;
}

function onServerResolved(server: ServerSocket, addr: SockAddr | null): void {
  if (server.login !== null) server.login.dnsToken = -1;
  if (addr === null) {
    disconnectServer(server, true, 'server DNS lookup failed', LoginOutcome.HOST_FAILED);
    return;
  }
  connectServer(server, { family: addr.family, host: addr.host, port: server.port });
}

function connectServer(server: ServerSocket, addr: SockAddr): void {
  const isUnix = addr.family === Family.UNIX;
  server.remoteAddr = isUnix ? unixAddr(server.port, 0, 0) : inetAddr(addr);
  slogDebug(server, 'launching new connection to server');
  // set the options first: the receive window is negotiated while connecting
  const fd = native.socket(addr.family);
  const tuned = fd >= 0 && tuneSocket(fd, isUnix);
  if (fd >= 0 && !tuned) native.closeFd(fd);
  const handle = tuned ? native.connect(addr.family, addr.host, addr.port, fd) : Math.min(fd, -1);
  if (handle < 0) {
    logNoise(`failed to launch new connection: ${native.strerror(-handle)}`);
    disconnectServer(server, false, 'connect failed', LoginOutcome.HOST_FAILED);
    return;
  }
  attachHandle(server, handle);
}
