/*
 * The TLS settings: checks them and makes contexts from them. Separate from net/tls.ts, which makes contexts current,
 * because --check must only report what a start would report.
 */

import { logError } from '../base/log';
import { native, type TlsRole, TlsVerify } from '../base/native';
import { asciiLower, equalNoCase } from '../base/strutil';
import { AuthType, SslMode } from './choices';
import type { DatabaseTls } from './database-tls';
import { cf } from './settings';
import type { Settings } from './settings-table';

export const enum Protocol {
  TLS1_0 = 1 << 1,
  TLS1_1 = 1 << 2,
  TLS1_2 = 1 << 3,
  TLS1_3 = 1 << 4,
  ALL = TLS1_0 | TLS1_1 | TLS1_2 | TLS1_3,
  DEFAULT = TLS1_2 | TLS1_3,
}

const protocolWords = new Map<string, number>([
  ['all', Protocol.ALL],
  ['default', Protocol.DEFAULT],
  ['secure', Protocol.DEFAULT],
  ['tlsv1', Protocol.ALL],
  ['tlsv1.0', Protocol.TLS1_0],
  ['tlsv1.1', Protocol.TLS1_1],
  ['tlsv1.2', Protocol.TLS1_2],
  ['tlsv1.3', Protocol.TLS1_3],
]);

/** One side's settings, checked as far as possible without reading files. */
export interface TlsConfig {
  readonly protocols: number;
  readonly verify: TlsVerify;
  readonly ciphers: string;
  readonly ciphers13: string;
  readonly curve: string;
  readonly dhAuto: number;
  readonly keyFile: string;
  readonly certFile: string;
  readonly caFile: string;
}

/**
 * A list of protocols: words separated by commas or colons; `!` removes a protocol.
 * @returns bits of Protocol, or null if a word is unknown
 */
function parseTlsProtocols(text: string): number | null {
  let protocols = 0;
  for (const part of text.split(/[,:]/)) {
    const word = part.replace(/^[ \t]+/, '');
    const negate = word.startsWith('!');
    const bits = protocolWords.get(asciiLower(negate ? word.slice(1) : word));
    if (bits === undefined) return null;
    if (!negate) protocols |= bits;
    else protocols = (protocols === 0 ? Protocol.ALL : protocols) & ~bits;
  }
  return protocols;
}

/** Values as given in the ini file; '' = not set. */
interface TlsSettings {
  prefix: string;
  verify: TlsVerify;
  protocols: string;
  ciphers: string;
  ciphers13: string | null;
  keyFile: string;
  certFile: string;
  caFile: string;
  dheparams: string;
  ecdhcurve: string;
}

function clientVerify(mode: SslMode): TlsVerify {
  return mode >= SslMode.VERIFY_CA ? TlsVerify.REQUIRED : TlsVerify.OPTIONAL;
}

function serverVerify(mode: SslMode): TlsVerify {
  if (mode === SslMode.VERIFY_FULL) return TlsVerify.NAME;
  return mode === SslMode.VERIFY_CA ? TlsVerify.REQUIRED : TlsVerify.NONE;
}

function invalid(settings: TlsSettings, name: string, value: string): null {
  logError(`invalid ${settings.prefix}_${name}: ${value}`);
  return null;
}

/** Checks the values; files are checked later. @returns null after logging an error */
function checkSettings(settings: TlsSettings): TlsConfig | null {
  const protocols = settings.protocols === '' ? Protocol.DEFAULT : parseTlsProtocols(settings.protocols);
  if (protocols === null) return invalid(settings, 'protocols', settings.protocols);
  // documented in lower case, which OpenSSL does not know and PgBouncer does not translate
  const ciphers = equalNoCase(settings.ciphers, 'all') ? 'ALL' : settings.ciphers;
  if (!native.tlsKnown('ciphers', ciphers)) return invalid(settings, 'ciphers', settings.ciphers);
  const dheparams = asciiLower(settings.dheparams);
  if (!['', 'none', 'auto'].includes(dheparams)) return invalid(settings, 'dheparams', settings.dheparams);
  // PgBouncer's own spelling of this name
  if (!native.tlsKnown('curve', settings.ecdhcurve)) return invalid(settings, 'ecdhecurve', settings.ecdhcurve);
  return {
    protocols,
    verify: settings.verify,
    ciphers,
    ciphers13: settings.ciphers13 ?? '',
    curve: settings.ecdhcurve,
    dhAuto: dheparams === 'auto' ? 1 : 0,
    keyFile: settings.keyFile,
    certFile: settings.certFile,
    caFile: settings.caFile,
  };
}

/**
 * The server_tls_* settings.
 * @param from their values: `cf`, or a copy of an earlier state of it
 * @param own those of one database, which take precedence; null = none
 * @returns null after logging an error
 */
export function readServerTlsConfig(from: Readonly<Settings> = cf, own: DatabaseTls | null = null): TlsConfig | null {
  return checkSettings({
    prefix: 'server_tls',
    verify: serverVerify(own?.sslmode ?? from.serverTlsSslmode),
    protocols: from.serverTlsProtocols,
    ciphers: from.serverTlsCiphers,
    ciphers13: from.serverTls13Ciphers,
    keyFile: own?.keyFile ?? from.serverTlsKeyFile,
    certFile: own?.certFile ?? from.serverTlsCertFile,
    caFile: own?.caFile ?? from.serverTlsCaFile,
    dheparams: '',
    ecdhcurve: '',
  });
}

/** The client_tls_* settings. @param from as above @returns null after logging an error */
export function readClientTlsConfig(from: Readonly<Settings> = cf): TlsConfig | null {
  return checkSettings({
    prefix: 'client_tls',
    verify: clientVerify(from.clientTlsSslmode),
    protocols: from.clientTlsProtocols,
    ciphers: from.clientTlsCiphers,
    ciphers13: from.clientTls13Ciphers,
    keyFile: from.clientTlsKeyFile,
    certFile: from.clientTlsCertFile,
    caFile: from.clientTlsCaFile,
    dheparams: from.clientTlsDheparams,
    ecdhcurve: from.clientTlsEcdhcurve,
  });
}

/** Checks settings that require one another. @param from as above @returns why they cannot be used, or null */
export function missingTlsSettings(from: Readonly<Settings> = cf): string | null {
  if (from.clientTlsSslmode !== SslMode.DISABLED && (from.clientTlsKeyFile === '' || from.clientTlsCertFile === '')) {
    return 'To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.';
  }
  if (from.authType === AuthType.CERT) {
    if (from.clientTlsSslmode !== SslMode.VERIFY_FULL)
      return 'auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL';
    if (from.clientTlsCaFile === '') return 'auth_type=cert requires client_tls_ca_file';
  } else if (from.clientTlsSslmode > SslMode.VERIFY_CA && from.clientTlsCaFile === '') {
    return 'client_tls_sslmode requires client_tls_ca_file';
  }
  return null;
}

/** @returns a context, or the error */
export function newTlsContext(role: TlsRole, config: TlsConfig): number | string {
  try {
    return native.tlsCtxNew(role, config);
  } catch (err) {
    return err instanceof Error ? err.message : String(err);
  }
}
