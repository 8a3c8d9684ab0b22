/*
 * The keys of a connect string for TLS towards the servers of its database. They have the names of settings, over which
 * they take precedence.
 */

import { type SslMode, sslModeMap } from './choices';
import { parseLookup } from './values';

/** null = the setting of this name */
export interface DatabaseTls {
  sslmode: SslMode | null;
  keyFile: string | null;
  certFile: string | null;
  caFile: string | null;
}

interface WithTls {
  tls: DatabaseTls | null;
}

function setTls(config: WithTls, given: Partial<DatabaseTls>): null {
  config.tls = { sslmode: null, keyFile: null, certFile: null, caFile: null, ...config.tls, ...given };
  return null;
}

function setSslmode(config: WithTls, value: string): string | null {
  const sslmode = parseLookup(sslModeMap, value);
  return sslmode === null ? `invalid server_tls_sslmode: ${value}` : setTls(config, { sslmode });
}

/** Each stores a value. @returns null, or the error */
export const tlsParams: readonly [key: string, store: (config: WithTls, value: string) => string | null][] = [
  ['server_tls_sslmode', setSslmode],
  ['server_tls_key_file', (config, keyFile) => setTls(config, { keyFile })],
  ['server_tls_cert_file', (config, certFile) => setTls(config, { certFile })],
  ['server_tls_ca_file', (config, caFile) => setTls(config, { caFile })],
];
