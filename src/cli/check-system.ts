/*
 * The part of --check about the machine's files and names: what a start would open or look up, and could not. Called as the
 * user that the pooler will run as.
 */

import { accessSync, constants, type Stats, statSync } from 'node:fs';
import { posix } from 'node:path';
import { createSecureContext } from 'node:tls';
import { strerror } from '../core/base/log';
import { native } from '../core/base/native';
import { parseWordList } from '../core/base/strutil';
import { readMetricsSecrets } from '../core/config/metrics-secrets';
import { cf } from '../core/config/settings';
import { parseUint32 } from '../core/config/values';
import { general, type Warning } from './check-limits';
import { hasCapability } from './check-machine';
import { pidfileProblem } from './pidfile';

/** The bit of CAP_CHOWN. */
const MAY_CHOWN_BIT = 0n;
/** The kernel's limit for the path of a Unix socket, in bytes; an abstract name needs no NUL behind it. */
const SOCKET_PATH_MAX = 107;

function osPath(path: string): Buffer {
  return Buffer.from(path, 'latin1');
}

function problem(setting: string, text: string): Warning {
  return { key: general(setting), text };
}

/** What keeps the pooler from making files in a folder. */
function findFolderProblems(setting: string, path: string): Warning[] {
  try {
    if (!statSync(osPath(path)).isDirectory()) return [problem(setting, `${path} is not a directory`)];
    accessSync(osPath(path), constants.W_OK | constants.X_OK);
    return [];
  } catch (err) {
    return [problem(setting, `cannot write to ${path}: ${strerror(err)}`)];
  }
}

/** A log file that exists is only written to, in whatever folder it is: it may be a device or a pipe. */
function findLogProblems(path: string): Warning[] {
  if (path === '') return [];
  let stat: Stats | undefined;
  try {
    stat = statSync(osPath(path), { throwIfNoEntry: false });
    if (stat !== undefined) accessSync(osPath(path), constants.W_OK);
  } catch (err) {
    return [problem('logfile', `Cannot open logfile: '${path}': ${strerror(err)}`)];
  }
  if (stat === undefined) return findFolderProblems('logfile', posix.dirname(path));
  return stat.isDirectory() ? [problem('logfile', `Cannot open logfile: '${path}': it is a directory`)] : [];
}

function findPidfileProblems(path: string): Warning[] {
  if (path === '') return [];
  const text = pidfileProblem(path);
  return text === null ? findFolderProblems('pidfile', posix.dirname(path)) : [problem('pidfile', text)];
}

/** Whether this user may give a file to a group. */
function mayGiveTo(gid: number): boolean {
  return hasCapability(MAY_CHOWN_BIT) || process.getegid?.() === gid || (process.getgroups?.() ?? []).includes(gid);
}

/** What keeps the pooler from giving its socket to a group. A start looks the group up only for a socket that is a file. */
function findGroupProblems(group: string): Warning[] {
  if (group === '') return [];
  const gid = parseUint32(group) ?? native.getgrnam(group);
  if (gid < 0) return [problem('unix_socket_group', `could not find group '${group}'`)];
  if (mayGiveTo(gid)) return [];
  return [problem('unix_socket_group', `the user of the pooler may not give a socket to group '${group}'`)];
}

function findSocketProblems(dir: string): Warning[] {
  if (dir === '') return [];
  const path = `${dir}/.s.PGSQL.${cf.listenPort}`;
  const abstract = dir.startsWith('@');
  const most = SOCKET_PATH_MAX + (abstract ? 1 : 0);
  const found: Warning[] = [];
  if (path.length > most) found.push(problem('unix_socket_dir', `${path} is longer than ${most} bytes`));
  if (abstract) return found;
  return [...found, ...findGroupProblems(cf.unixSocketGroup), ...findFolderProblems('unix_socket_dir', dir)];
}

/** Names in listen_addr that cannot be looked up: with one of them, the pooler does not start. */
function findListenProblems(): Warning[] {
  // with sockets of the service manager, listen_addr is ignored
  if (process.env.LISTEN_FDS !== undefined) return [];
  const names = parseWordList(cf.listenAddr).filter((name) => name !== '');
  return names.flatMap((name) => {
    let reason = 'no address';
    try {
      if (native.getaddrinfoPassive(name === '*' ? null : name, cf.listenPort).length > 0) return [];
    } catch (err) {
      reason = (err as Error).message;
    }
    return [problem('listen_addr', `could not look up '${name}': ${reason}`)];
  });
}

/** Files without which the metrics port is not opened. */
function findMetricsProblems(): Warning[] {
  if (cf.metricsPort === 0 && !cf.metricsAddr.startsWith('/')) return [];
  const found: Warning[] = [];
  const secrets = readMetricsSecrets((setting, text) => found.push(problem(setting, text)));
  try {
    if (secrets !== null && secrets.tls !== null) createSecureContext(secrets.tls);
  } catch (err) {
    found.push(problem('metrics_tls_cert_file', `certificate and key cannot be used: ${(err as Error).message}`));
  }
  return found;
}

function findNameServerProblems(path: string): Warning[] {
  try {
    if (path !== '') accessSync(osPath(path), constants.R_OK);
    return [];
  } catch (err) {
    return [problem('resolv_conf', `could not open resolv_conf ${path}: ${strerror(err)}`)];
  }
}

/** All problems of this kind. */
export function findSystemProblems(): Warning[] {
  return [
    ...findLogProblems(cf.logfile),
    ...findPidfileProblems(cf.pidfile),
    ...findSocketProblems(cf.unixSocketDir),
    ...findListenProblems(),
    ...findMetricsProblems(),
    ...findNameServerProblems(cf.resolvConf),
  ];
}
