/*
 * TLS: makes the contexts for clients and servers from the settings, at start and again on RELOAD, SIGHUP and SET, and
 * starts TLS on connections. If a change could not be applied, the current modes differ from `cf`; so other modules
 * read `tlsState`, not `cf`. The loop encrypts and decrypts (native/tls/tls.h).
 */

import { logError, logNoise, logWarning } from '../base/log';
import { native, TlsRole } from '../base/native';
import { SslMode } from '../config/choices';
import { fileMark } from '../config/password-source';
import { cf } from '../config/settings';
import type { Settings } from '../config/settings-table';
import {
  missingTlsSettings,
  newTlsContext,
  readClientTlsConfig,
  readServerTlsConfig,
  type TlsConfig,
} from '../config/tls-config';
import type { AnySocket, ClientSocket, PgDatabase, ServerSocket } from '../pool/bouncer';

/** Longest text about a connection: PgBouncer's buffer has 96 bytes. */
const INFO_MAX = 95;

/** The current modes. */
export const tlsState: { clientAcceptSslmode: SslMode; serverConnectSslmode: SslMode } = {
  clientAcceptSslmode: SslMode.DISABLED,
  serverConnectSslmode: SslMode.DISABLED,
};

/** The outcome of applying changed settings. */
interface TlsSetup {
  /** false if they cannot be used: the reason has been logged, and nothing changed */
  ok: boolean;
  /** server connections made with the previous settings must be replaced */
  serversOutdated: boolean;
}

const SETUP_FAILED: TlsSetup = { ok: false, serversOutdated: false };

/** The loop's contexts, 0 = none. */
let clientContext = 0;
/** what clientContext was made from */
let clientConfig: TlsConfig | null = null;
let serverConfig: TlsConfig | null = null;
/** the settings that are in use, for databases that have some of their own */
let current: Readonly<Settings> = cf;

/** A context for connections to servers, and the state of its files when it was made. */
interface ServerContext {
  id: number;
  files: string;
}

/** by the text of their TlsConfig: one for the settings, and one for each combination that databases have of their own */
const serverContexts = new Map<string, ServerContext>();

function sameConfig(a: TlsConfig | null, b: TlsConfig | null): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Server connections must be replaced if they might be less secure than the new settings require. */
function changeRequiresReconnect(config: TlsConfig | null): boolean {
  if (tlsState.serverConnectSslmode !== cf.serverTlsSslmode) {
    logNoise('new server_tls_sslmode detected');
    return true;
  }
  if (serverConfig === null) {
    logNoise('no existing server tls config detected');
    return true;
  }
  const same = sameConfig(config, serverConfig);
  logNoise(same ? 'no server tls config change detected' : 'server tls config change detected');
  return !same;
}

/** A new context for clients, 0 if the settings need none. @returns null after logging an error */
function newClientContext(config: TlsConfig | null): number | null {
  if (config === null) return 0;
  const context = newTlsContext(TlsRole.ACCEPT, config);
  if (typeof context !== 'string') return context;
  logError(`TLS setup failed: ${context}`);
  return null;
}

/**
 * Checks the TLS settings of a config before a reload applies it. The files of unchanged settings are not read: if one
 * of them has become unusable, sbufTlsSetup() keeps what it has read before.
 * @returns false after logging an error
 */
export function checkTlsSettings(settings: Readonly<Settings>): boolean {
  const missing = missingTlsSettings(settings);
  if (missing !== null) {
    logError(missing);
    return false;
  }
  if (settings.serverTlsSslmode !== SslMode.DISABLED && readServerTlsConfig(settings) === null) return false;
  if (settings.clientTlsSslmode === SslMode.DISABLED) return true;
  const config = readClientTlsConfig(settings);
  if (config === null) return false;
  if (sameConfig(config, clientConfig)) return true;
  const context = newClientContext(config);
  if (context === null) return false;
  native.tlsCtxFree(context);
  return true;
}

/**
 * Applies the TLS settings and reads the certificates: at start, and after every change of the config. PgBouncer's
 * sbuf_tls_setup().
 */
export function sbufTlsSetup(): TlsSetup {
  const missing = missingTlsSettings();
  if (missing !== null) {
    logError(missing);
    return SETUP_FAILED;
  }
  let newServerConfig: TlsConfig | null = null;
  if (cf.serverTlsSslmode !== SslMode.DISABLED) {
    newServerConfig = readServerTlsConfig();
    if (newServerConfig === null) return SETUP_FAILED;
  }
  let newClientConfig: TlsConfig | null = null;
  if (cf.clientTlsSslmode !== SslMode.DISABLED) {
    newClientConfig = readClientTlsConfig();
    if (newClientConfig === null) return SETUP_FAILED;
  }
  const context = newClientContext(newClientConfig);
  if (context === null) return SETUP_FAILED;

  const had = serverConfig !== null || newServerConfig !== null;
  const serversOutdated = had && changeRequiresReconnect(newServerConfig);
  native.tlsCtxFree(clientContext);
  clientContext = context;
  clientConfig = newClientConfig;
  tlsState.clientAcceptSslmode = cf.clientTlsSslmode;
  for (const { id } of serverContexts.values()) native.tlsCtxFree(id);
  serverContexts.clear();
  serverConfig = newServerConfig;
  current = { ...cf };
  tlsState.serverConnectSslmode = cf.serverTlsSslmode;
  return { ok: true, serversOutdated };
}

/** The settings that new connections to servers have, in a form that two processes can compare. */
export function serverTlsSettings(): string {
  return JSON.stringify([tlsState.serverConnectSslmode, serverConfig]);
}

/** The mode of connections to the servers of a database. */
export function serverSslmode(db: PgDatabase): SslMode {
  return db.config.tls?.sslmode ?? tlsState.serverConnectSslmode;
}

/**
 * The context for a connection to a server of a database. As in PgBouncer, its files are read when connecting: a
 * certificate renewed in place applies to the next connection, and an unreadable file fails only that connection.
 * @returns a context, or the error
 */
function serverTlsContext(db: PgDatabase): number | string {
  const config = db.config.tls === null ? serverConfig : readServerTlsConfig(current, db.config.tls);
  if (config === null) return 'no TLS settings';
  const key = JSON.stringify(config);
  const files = [config.keyFile, config.certFile, config.caFile].map(fileMark).join(' ');
  const known = serverContexts.get(key);
  if (known?.files === files) return known.id;
  const id = newTlsContext(TlsRole.CONNECT, config);
  if (typeof id === 'string') return id;
  if (known !== undefined) native.tlsCtxFree(known.id);
  serverContexts.set(key, { id, files });
  return id;
}

/**
 * Starts TLS with a client; Ev.TLS follows.
 * @param off position in the arena of handshake bytes that have already arrived
 * @returns false if that is not possible
 */
export function sbufTlsAccept(sk: AnySocket, off: number, length: number): boolean {
  const res = native.tlsAccept(sk.handle, clientContext, off, length);
  if (res < 0) {
    logWarning(`TLS accept error: ${native.strerror(-res)}`);
    return false;
  }
  sk.tls = true;
  return true;
}

/**
 * Starts TLS with a server; Ev.TLS follows.
 * @param host the host as configured: a name is announced (SNI), and verify-full compares it
 * @returns false if that is not possible
 */
export function sbufTlsConnect(sk: ServerSocket, host: string | null): boolean {
  const { db } = sk.pool;
  const nameless = host === null && serverSslmode(db) === SslMode.VERIFY_FULL;
  const context = nameless ? 'server name not specified' : serverTlsContext(db);
  if (typeof context === 'string') {
    logWarning(`TLS connect error: ${context}`);
    return false;
  }
  const res = native.tlsConnect(sk.handle, context, host ?? '');
  if (res < 0) {
    logWarning(`TLS connect error: ${native.strerror(-res)}`);
    return false;
  }
  sk.tls = true;
  return true;
}

/** Protocol, cipher suite and key exchange in one word, for the log and SHOW; '' without TLS. */
export function tlsConnectionInfo(sk: AnySocket): string {
  const info = sk.tls && sk.handle >= 0 ? native.tlsInfo(sk.handle) : null;
  if (info === null) return '';
  const exchange = info.exchange === '' ? '' : `/${info.exchange}`;
  return `${info.version}/${info.cipher}${exchange}`.slice(0, INFO_MAX);
}

/* The peer's certificate. It is always valid: the handshake would have failed otherwise. */

export function tlsPeerCertProvided(sk: AnySocket): boolean {
  return sk.tls && native.tlsPeerCertProvided(sk.handle);
}

/** The subject in one line, `/C=…/O=…/CN=…`; null without a certificate. */
export function tlsPeerCertSubject(sk: AnySocket): string | null {
  return sk.tls ? native.tlsPeerCertSubject(sk.handle) : null;
}

/** True if the certificate contains the name of a user. Unlike those of hosts, the names must be the same in every byte. */
export function tlsPeerCertContainsName(sk: AnySocket, name: string): boolean {
  return sk.tls && native.tlsPeerCertContainsName(sk.handle, name);
}

/** The hash of a certificate for channel binding; null without TLS, or if it has none. @param own the pooler's own */
export function tlsCertHash(sk: AnySocket, own: boolean): Buffer | null {
  const hash = sk.tls && sk.handle >= 0 ? native.tlsCertHash(sk.handle, own ? 1 : 0) : '';
  return hash === '' ? null : Buffer.from(hash, 'latin1');
}

/**
 * The hash of the certificate that a client in login has seen, or null: the login may be bound to it. It is remembered,
 * because the certificate itself stays in the process that made the handshake.
 */
export function seenCertHash(client: ClientSocket): Buffer | null {
  const { login } = client;
  if (login !== null) login.certHash ??= tlsCertHash(client, true);
  return login?.certHash ?? null;
}
