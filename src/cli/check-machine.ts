/*
 * The part of --check about the machine and the network: who can reach the pooler and what they send unencrypted, and
 * ports that are taken or that the user may not open. It reads /proc, and opens no socket.
 */

import { readFileSync } from 'node:fs';
import { native } from '../core/base/native';
import { AuthType, PoolMode, SslMode } from '../core/config/choices';
import type { ParsedConfig } from '../core/config/loader';
import { cf } from '../core/config/settings';
import { allDatabases, findLimitWarnings, general, type Warning } from './check-limits';
import { pidfileIsLive } from './pidfile';

const LISTEN_STATE = '0A';
/** The bit of CAP_NET_BIND_SERVICE. */
const MAY_BIND_BIT = 10n;
const UNPRIVILEGED_PORTS = 1024;
const DEFAULT_RESET_QUERY = 'DISCARD ALL';

/** The file's text; '' if there is none, as on other systems than Linux. */
function readProc(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    // absent, or not permitted: nothing is known
    return '';
  }
}

function listenAddresses(): string[] {
  const addresses = cf.listenAddr.split(',').map((address) => address.trim());
  return addresses.filter((address) => address !== '');
}

function isLoopback(address: string): boolean {
  return address === 'localhost' || address === '::1' || /^127(\.\d+){3}$/.test(address);
}

function findOpenDoors(): Warning[] {
  const reachable = listenAddresses().find((address) => !isLoopback(address));
  if (reachable === undefined) return [];
  const key = general('auth_type');
  const asksNoPassword = cf.authType === AuthType.TRUST || cf.authType === AuthType.ANY;
  if (asksNoPassword && cf.clientTlsSslmode < SslMode.VERIFY_CA) {
    const name = cf.authType === AuthType.TRUST ? 'trust' : 'any';
    return [{ key, text: `auth_type=${name} asks for no password on listen_addr ${reachable}` }];
  }
  const plain = new Map([
    [AuthType.PLAIN, 'plain'],
    [AuthType.PAM, 'pam'],
    [AuthType.LDAP, 'ldap'],
  ]).get(cf.authType);
  if (plain === undefined || cf.clientTlsSslmode >= SslMode.REQUIRE) return [];
  const text = `auth_type=${plain} lets passwords cross the network unencrypted, unless client_tls_sslmode is require`;
  return [{ key, text }];
}

function findPoolModeWarnings(parsed: ParsedConfig): Warning[] {
  const modes = [cf.poolMode, ...allDatabases(parsed).map((db) => db.poolMode)];
  modes.push(...parsed.users.map((user) => user.poolMode));
  const query = cf.serverResetQuery;
  const ignored = query !== '' && query !== DEFAULT_RESET_QUERY && cf.serverResetQueryAlways === 0;
  if (!ignored || modes.includes(PoolMode.SESSION)) return [];
  const text = 'server_reset_query has no effect without session pooling, unless server_reset_query_always is 1';
  return [{ key: general('server_reset_query'), text }];
}

function findPeerWarnings(parsed: ParsedConfig): Warning[] {
  const found: Warning[] = [];
  if (cf.soReuseport !== 0 && (cf.peerId === 0 || parsed.peers.length === 0)) {
    const text = 'so_reuseport without peer_id and [peers] lets cancel requests reach the wrong process';
    found.push({ key: general('so_reuseport'), text });
  } else if (cf.peerId > 0 && parsed.peers.length === 0) {
    found.push({ key: general('peer_id'), text: 'peer_id has no effect without [peers]' });
  } else if (cf.peerId === 0 && parsed.peers.length > 0) {
    found.push({ key: general('peer_id'), text: '[peers] has no effect without peer_id' });
  }
  return found;
}

/** The addresses, in the kernel's hexadecimal form, on which a process listens at a port. */
function listeners(port: number): string[] {
  const lines = `${readProc('/proc/net/tcp')}\n${readProc('/proc/net/tcp6')}`.split('\n');
  const found: string[] = [];
  for (const line of lines) {
    const [, local = '', , state] = line.trim().split(/\s+/);
    const [address = '', hexPort = ''] = local.split(':');
    if (state === LISTEN_STATE && Number.parseInt(hexPort, 16) === port) found.push(address);
  }
  return found;
}

/** An IPv4 address as in /proc/net/tcp, whose four bytes are in the byte order of the machine. */
function kernelForm(address: string): string {
  const bytes = address.split('.').map((part) => Number(part).toString(16).padStart(2, '0').toUpperCase());
  return bytes.reverse().join('');
}

/** True if a listener at that address keeps another from listening at `wanted`. */
function excludes(listener: string, wanted: string): boolean {
  if (wanted === '*' || /^0+$/.test(listener)) return true;
  const address = wanted === 'localhost' ? '127.0.0.1' : wanted;
  return /^\d+(\.\d+){3}$/.test(address) && (address === '0.0.0.0' || listener === kernelForm(address));
}

/** True if the pooler of this config seems to run: then the ports are in use by itself. */
function ownPoolerRuns(): boolean {
  if (pidfileIsLive(cf.pidfile)) return true;
  const { unixSocketDir } = cf;
  if (unixSocketDir === '') return false;
  return readProc('/proc/net/unix').includes(` ${unixSocketDir}/.s.PGSQL.${cf.listenPort}\n`);
}

/** Whether this process has a capability. @param bit its number */
export function hasCapability(bit: bigint): boolean {
  const capabilities = /^CapEff:\s*([0-9a-f]+)/m.exec(readProc('/proc/self/status'))?.[1];
  if (capabilities === undefined) return process.geteuid?.() === 0;
  return ((BigInt(`0x${capabilities}`) >> bit) & 1n) === 1n;
}

function findPortWarnings(): Warning[] {
  if (process.env.LISTEN_FDS !== undefined) return [];
  const ports: [setting: string, port: number, addresses: string[]][] = [
    ['listen_port', cf.listenPort, listenAddresses()],
    ['metrics_port', cf.metricsPort, cf.metricsAddr.startsWith('/') ? [] : [cf.metricsAddr]],
  ];
  const first = Number(readProc('/proc/sys/net/ipv4/ip_unprivileged_port_start') || UNPRIVILEGED_PORTS);
  const found: Warning[] = [];
  for (const [setting, port, addresses] of ports) {
    if (port <= 0 || addresses.length === 0) continue;
    const key = general(setting);
    if (port < first && !hasCapability(MAY_BIND_BIT)) {
      found.push({ key, text: `${setting} ${port} is below ${first} and needs the capability CAP_NET_BIND_SERVICE` });
    }
    const busy = addresses.find((address) => listeners(port).some((listener) => excludes(listener, address)));
    if (busy !== undefined && cf.soReuseport === 0 && !ownPoolerRuns()) {
      found.push({ key, text: `port ${port} of ${busy} is in use by another process` });
    }
  }
  if (cf.listenAddr.trim() === '' && cf.unixSocketDir === '') {
    const text = 'listen_addr and unix_socket_dir are empty, so a start needs sockets of systemd';
    found.push({ key: general('unix_socket_dir'), text });
  }
  if (cf.metricsPort > 0 && cf.metricsPort === cf.listenPort && !cf.metricsAddr.startsWith('/')) {
    found.push({ key: general('metrics_port'), text: 'metrics_port is the same as listen_port' });
  }
  return found;
}

/**
 * All warnings of a config that is usable. Called as the user that the pooler will run as.
 * @param users how many users auth_file has
 */
export function findWarnings(parsed: ParsedConfig, users: number): Warning[] {
  const [softLimit] = native.rlimitNofile();
  return [
    ...findLimitWarnings(parsed, users, softLimit),
    ...findPoolModeWarnings(parsed),
    ...findPeerWarnings(parsed),
    ...findOpenDoors(),
    ...findPortWarnings(),
  ];
}
