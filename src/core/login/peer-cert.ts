/*
 * Authentication without a password: by the system user that opened a Unix socket (peer), or by the client certificate
 * of the TLS connection (cert). Either may use an ident map. Called once the user is known.
 */

import { logDebug, slogError, slogNoise } from '../base/log';
import { native } from '../base/native';
import type { HbaRule } from '../config/hba';
import type { IdentMap } from '../config/ident';
import { clientUid, isUnixAddr } from '../net/addr';
import { tlsPeerCertContainsName, tlsPeerCertProvided, tlsPeerCertSubject } from '../net/tls';
import type { ClientSocket, PgCredentials } from '../pool/bouncer';

/** True if the map has a line for this database user and a system user accepted by `isPeer`. */
function mapAllows(map: IdentMap, username: string, isPeer: (systemUser: string) => boolean): boolean {
  return map.mappings.some(
    ({ systemUser, postgresUser }) => (postgresUser === null || postgresUser === username) && isPeer(systemUser),
  );
}

/** Name of the system user that opened a Unix socket; null if unknown. */
function unixPeerName(client: ClientSocket): string | null {
  const uid = clientUid(client);
  return uid === null ? null : native.getpwuid(uid);
}

/** Auth method peer. @returns false if the login must be rejected with "unix socket login rejected" */
export function peerAllows(client: ClientSocket, rule: HbaRule | null): boolean {
  const user = client.loginUser as PgCredentials;
  if (!isUnixAddr(client.remoteAddr) || user.mockAuth) return false;
  const peer = unixPeerName(client);
  const map = rule?.identMap ?? null;
  if (map === null) return peer === user.name;
  if (peer !== null && mapAllows(map, user.name, (name) => name === peer)) {
    slogNoise(client, `ident map '${map.name}' is applied`);
    return true;
  }
  slogError(client, `ident map ${map.name} cannot be matched`);
  return false;
}

/** Auth method cert. @returns false if the login must be rejected with "certificate authentication failed" */
export function certAllows(client: ClientSocket, rule: HbaRule | null): boolean {
  const user = client.loginUser as PgCredentials;
  if (!client.tls) {
    slogError(client, 'TLS connection required');
    return false;
  }
  if (!tlsPeerCertProvided(client)) {
    slogError(client, 'TLS client certificate required');
    return false;
  }
  if (user.mockAuth) return false;
  logDebug(`TLS cert login: ${tlsPeerCertSubject(client) ?? ''}`);

  const map = rule?.identMap ?? null;
  if (map === null) {
    if (tlsPeerCertContainsName(client, user.name)) return true;
    slogError(client, 'TLS certificate name mismatch');
    return false;
  }
  if (mapAllows(map, user.name, (name) => tlsPeerCertContainsName(client, name))) {
    slogNoise(client, `ident map: ${map.name} is applied`);
    return true;
  }
  slogError(client, `ident map: ${map.name} does not have a match`);
  return false;
}
