/*
 * The PROXY protocol, version 2: a load balancer that forwards TCP connections puts the client's address in front of
 * its bytes. It is taken from the networks of proxy_protocol_networks only, and has to be there: otherwise a client
 * behind the load balancer could send a header of its own. The source is HAProxy's proxy-protocol.txt, chapter 2.2.
 */

import { formatInet } from '../base/inet';
import { slogDebug, wantDebug } from '../base/log';
import { Family } from '../base/native';
import { inNetworks } from '../config/networks';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { addrString, isUnixAddr, UNKNOWN_UID, unixAddr } from '../net/addr';
import type { ClientSocket, PgAddr } from '../pool/bouncer';
import { loginOf } from '../pool/socket';

const SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
const FIXED_LEN = 16;
/** Longest variable part that is accepted, in bytes: addresses and extensions. */
const VARIABLE_MAX = 4096;

const VERSION_2 = 2;
const enum Command {
  /** the load balancer's own connection, such as a health check */
  LOCAL = 0,
  PROXY = 1,
}
/** Address family and transport in one byte. Others say nothing that could be shown: the connection keeps its address. */
const TCP4 = 0x11;
const TCP6 = 0x21;

/** What was found at the start of a connection. */
type ProxyHeader =
  /** more bytes are needed */
  | { readonly kind: 'partial' }
  /** not a header that is accepted */
  | { readonly kind: 'bad'; readonly reason: string }
  | ProxyAddresses;

interface ProxyAddresses {
  readonly kind: 'header';
  /** in bytes */
  readonly length: number;
  /** without addresses, the connection keeps its own */
  readonly remote: PgAddr | null;
  readonly local: PgAddr | null;
  /** the load balancer has forwarded the connection of a client */
  readonly forwarded: boolean;
}

/** True if the connection has to begin with a header. */
export function expectsProxyHeader(client: ClientSocket): boolean {
  const networks = cf.proxyProtocolNetworks;
  if (networks === '') return false;
  const addr = client.remoteAddr;
  return inNetworks(networks, isUnixAddr(addr) ? null : addr.host);
}

function addrAt(buf: Buffer, at: number, size: number, portAt: number): PgAddr {
  const host = formatInet(buf.subarray(at, at + size));
  return { family: size === 4 ? Family.INET : Family.INET6, host, port: buf.readUInt16BE(portAt), uid: 0, pid: 0 };
}

/** Reads the header at the start of buf[off, end). */
export function readProxyHeader(buf: Buffer, off: number, end: number): ProxyHeader {
  const there = Math.min(end - off, SIGNATURE.length);
  if (SIGNATURE.compare(buf, off, off + there, 0, there) !== 0) {
    const first = buf.toString('latin1', off, Math.min(end, off + 6));
    const old = 'PROXY '.startsWith(first);
    return {
      kind: 'bad',
      reason: old ? 'PROXY protocol version 1 is not supported' : 'PROXY protocol header expected',
    };
  }
  if (end - off < FIXED_LEN) return { kind: 'partial' };
  const version = (buf[off + 12] as number) >> 4;
  const command = (buf[off + 12] as number) & 15;
  const kind = buf[off + 13] as number;
  const length = buf.readUInt16BE(off + 14);
  if (version !== VERSION_2 || command > Command.PROXY) return { kind: 'bad', reason: 'bad PROXY protocol header' };
  if (length > VARIABLE_MAX) return { kind: 'bad', reason: 'PROXY protocol header too long' };
  const size = kind === TCP4 ? 4 : 16;
  const told = command === Command.PROXY && (kind === TCP4 || kind === TCP6);
  if (told && length < 2 * size + 4) return { kind: 'bad', reason: 'bad PROXY protocol header' };
  if (end - off < FIXED_LEN + length) return { kind: 'partial' };
  const at = off + FIXED_LEN;
  return {
    kind: 'header',
    length: FIXED_LEN + length,
    remote: told ? addrAt(buf, at, size, at + 2 * size) : null,
    local: told ? addrAt(buf, at + size, size, at + 2 * size + 2) : null,
    forwarded: command === Command.PROXY,
  };
}

/**
 * Takes the header from the start of a connection, and gives the client the addresses in it.
 * @returns its length in bytes; 0 = more bytes are needed, or the client was disconnected
 */
export function takeProxyHeader(client: ClientSocket, buf: Buffer, off: number, end: number): number {
  const found = readProxyHeader(buf, off, end);
  if (found.kind === 'partial') return 0;
  if (found.kind === 'bad') {
    disconnectClient(client, false, found.reason);
    return 0;
  }
  loginOf(client).proxyHeaderDue = false;
  if (found.remote !== null && found.local !== null) {
    if (wantDebug()) slogDebug(client, `P: the client is ${addrString(found.remote)}`);
    client.remoteAddr = found.remote;
    client.localAddr = found.local;
  } else if (found.forwarded && isUnixAddr(client.remoteAddr)) {
    // the process at the other end of the socket is the load balancer, not the client
    client.remoteAddr = unixAddr(client.remoteAddr.port, UNKNOWN_UID, 0);
  }
  return found.length;
}
