/*
 * The TLS part of --check: creates the contexts that a start and the first server connection would create, and reports
 * their errors. It also checks the dates of certificates, which otherwise first show in a failed handshake.
 */

import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { native, TlsRole } from '../core/base/native';
import { SslMode } from '../core/config/choices';
import type { DatabaseTls } from '../core/config/database-tls';
import { cf } from '../core/config/settings';
import {
  missingTlsSettings,
  newTlsContext,
  Protocol,
  readClientTlsConfig,
  readServerTlsConfig,
  type TlsConfig,
} from '../core/config/tls-config';

interface TlsProblem {
  /** the setting that is wrong, or that names a wrong file */
  setting: string;
  text: string;
  /** it works, but not as one may expect */
  isWarning?: boolean;
}

/** Protocols whose connections no other process can continue. */
const OLD_PROTOCOLS: readonly [bit: number, name: string][] = [
  [Protocol.TLS1_0, 'TLS 1.0'],
  [Protocol.TLS1_1, 'TLS 1.1'],
];
/** Most names of suites in one warning. */
const NAMES_MAX = 4;

/** The setting, without its prefix, that an error of a context concerns. */
const ABOUT: readonly [text: RegExp, setting: string][] = [
  [/^failed to load certificate file/, 'cert_file'],
  [/^failed to load private key file|key mismatch$/, 'key_file'],
  [/^failed to load CA/, 'ca_file'],
  [/^failed to set ciphers/, 'ciphers'],
  [/TLSv1\.3 cipher/, '13_ciphers'],
  [/curve/, 'ecdhcurve'],
];

function settingName(prefix: string, error: string): string {
  const about = ABOUT.find(([text]) => text.test(error))?.[1] ?? 'sslmode';
  return about === '13_ciphers' ? `${prefix.replace('_tls', '')}_tls13_ciphers` : `${prefix}_${about}`;
}

/** @returns why the context cannot be created, or null */
function contextError(role: TlsRole, config: TlsConfig): string | null {
  const context = newTlsContext(role, config);
  if (typeof context === 'string') return context;
  native.tlsCtxFree(context);
  return null;
}

/**
 * A context reports only its first error: checks again without key and certificate, whose errors could hide another.
 */
function contextErrors(role: TlsRole, config: TlsConfig): string[] {
  const error = contextError(role, config);
  if (error === null) return [];
  if (!/certificate|key/.test(error)) return [error];
  const other = contextError(TlsRole.CONNECT, { ...config, keyFile: '', certFile: '', curve: '' });
  return other === null ? [error] : [error, other];
}

/** Checks the validity period of the first certificate in a file that could be loaded. */
function checkDates(setting: string, path: string): TlsProblem[] {
  if (path === '') return [];
  try {
    const { validFrom, validTo } = new X509Certificate(readFileSync(Buffer.from(path, 'latin1')));
    if (Date.parse(validTo) < Date.now()) return [{ setting, text: `the certificate expired on ${validTo}` }];
    if (Date.parse(validFrom) > Date.now())
      return [{ setting, text: `the certificate is not valid before ${validFrom}` }];
  } catch {
    // an unreadable file is reported elsewhere
  }
  return [];
}

/** Settings that allow connections that an online reboot closes. */
function closedByReboot(prefix: string, { protocols, ciphers }: TlsConfig): TlsProblem[] {
  const warnings: TlsProblem[] = [];
  const warn = (name: string, what: string): void => {
    const text = `an online reboot closes connections with ${what}`;
    warnings.push({ setting: `${prefix}_${name}`, text, isWarning: true });
  };
  const old = OLD_PROTOCOLS.filter(([bit]) => (protocols & bit) !== 0).map(([, name]) => name);
  if (old.length > 0) warn('protocols', old.join(' and '));
  const suites = (protocols & ~Protocol.TLS1_3) === 0 ? [] : native.tlsSuitesThatStay(ciphers);
  const others = suites.length > NAMES_MAX ? ` and ${suites.length - NAMES_MAX} other suites` : '';
  if (suites.length > 0) warn('ciphers', suites.slice(0, NAMES_MAX).join(', ') + others);
  return warnings;
}

interface Side {
  prefix: 'client_tls' | 'server_tls';
  mode: SslMode;
  role: TlsRole;
  read: () => TlsConfig | null;
  /** the log's prefix to a context's error */
  failure: string;
  keyFile: string;
  certFile: string;
  caFile: string;
}

function checkSide(side: Side, captureLog: (act: () => void) => string[]): TlsProblem[] {
  const { prefix, role } = side;
  if (side.mode === SslMode.DISABLED) return [];
  const dates = [...checkDates(`${prefix}_cert_file`, side.certFile), ...checkDates(`${prefix}_ca_file`, side.caFile)];
  const read: { config: TlsConfig | null } = { config: null };
  const words = captureLog(() => {
    read.config = side.read();
  }).map((text) => {
    const name = /^invalid (\w+):/.exec(text)?.[1]?.replace('ecdhecurve', 'ecdhcurve');
    return { setting: name ?? `${prefix}_sslmode`, text };
  });
  if (read.config === null) return [...words, ...dates];
  dates.push(...closedByReboot(prefix, read.config));
  // a listener without a key is reported already
  if (role === TlsRole.ACCEPT && (side.keyFile === '' || side.certFile === '')) return [...words, ...dates];
  const files = contextErrors(role, read.config).map((error) => {
    return { setting: settingName(prefix, error), text: `${side.failure}: ${error}` };
  });
  return [...words, ...files, ...dates];
}

/**
 * All problems of the TLS keys of a database; they name the settings that the keys stand for.
 * @param captureLog runs a function and returns what it logged
 */
export function findDatabaseTlsProblems(
  own: DatabaseTls | null,
  captureLog: (act: () => void) => string[],
): TlsProblem[] {
  if (own === null) return [];
  const side: Side = {
    prefix: 'server_tls',
    mode: own.sslmode ?? cf.serverTlsSslmode,
    role: TlsRole.CONNECT,
    read: () => readServerTlsConfig(cf, own),
    failure: 'TLS connect error',
    keyFile: own.keyFile ?? cf.serverTlsKeyFile,
    certFile: own.certFile ?? cf.serverTlsCertFile,
    caFile: own.caFile ?? cf.serverTlsCaFile,
  };
  return checkSide(side, captureLog).filter(({ isWarning }) => isWarning !== true);
}

/** All problems of the TLS settings. @param captureLog runs a function and returns what it logged */
export function findTlsProblems(captureLog: (act: () => void) => string[]): TlsProblem[] {
  const missing = missingTlsSettings();
  const setting = missing?.startsWith('auth_type') ? 'auth_type' : 'client_tls_sslmode';
  return [
    ...(missing === null ? [] : [{ setting, text: missing }]),
    ...checkSide(
      {
        prefix: 'client_tls',
        mode: cf.clientTlsSslmode,
        role: TlsRole.ACCEPT,
        read: readClientTlsConfig,
        failure: 'TLS setup failed',
        keyFile: cf.clientTlsKeyFile,
        certFile: cf.clientTlsCertFile,
        caFile: cf.clientTlsCaFile,
      },
      captureLog,
    ),
    ...checkSide(
      {
        prefix: 'server_tls',
        mode: cf.serverTlsSslmode,
        role: TlsRole.CONNECT,
        read: readServerTlsConfig,
        failure: 'TLS connect error',
        keyFile: cf.serverTlsKeyFile,
        certFile: cf.serverTlsCertFile,
        caFile: cf.serverTlsCaFile,
      },
      captureLog,
    ),
  ];
}
