/*
 * TLS as the settings say it: contexts for accepting clients and for connecting to servers, made at start and again on
 * RELOAD, SIGHUP and SET, and TLS put on a connection. What is in force may differ from `cf` when a change could not be
 * applied; so sessions ask `tlsState`, not `cf`. The bytes themselves are the loop's business (native/tls.h).
 */

import { statSync } from 'node:fs';
import { logError, logNoise, logWarning } from '../base/log';
import { native, TlsRole } from '../base/native';
import { cf, SslMode } from '../config/settings';
import {
  missingTlsSettings,
  newTlsContext,
  readClientTlsConfig,
  readServerTlsConfig,
  type TlsConfig,
} from '../config/tls-config';
import type { AnySocket } from '../pool/bouncer';

/** Longest text about a connection: the original formats it into a buffer of 96. */
const INFO_MAX = 95;

/** The modes in force. */
export const tlsState: { clientAcceptSslmode: SslMode; serverConnectSslmode: SslMode } = {
  clientAcceptSslmode: SslMode.DISABLED,
  serverConnectSslmode: SslMode.DISABLED,
};

/** What became of changed settings. */
interface TlsSetup {
  /** false when they cannot be used: the reason is in the log, and everything stays as it was */
  ok: boolean;
  /** connections to servers that were made with the previous settings have to be replaced */
  serversOutdated: boolean;
}

const SETUP_FAILED: TlsSetup = { ok: false, serversOutdated: false };

/** Contexts of the loop, 0 = none. */
let clientContext = 0;
let serverContext = 0;
let serverConfig: TlsConfig | null = null;
/** what the files of serverContext looked like when it was made */
let serverFiles = '';

/* ---- settings ---- */

function sameConfig(a: TlsConfig | null, b: TlsConfig | null): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Connections to servers are replaced when they might be less safe than the new settings want. */
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

/**
 * Puts the TLS settings in force, certificates included: at start, and after every change of the config. The original's
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
  let newClientContext = 0;
  if (cf.clientTlsSslmode !== SslMode.DISABLED) {
    const config = readClientTlsConfig();
    if (config === null) return SETUP_FAILED;
    const context = newTlsContext(TlsRole.ACCEPT, config);
    if (typeof context === 'string') {
      logError(`TLS setup failed: ${context}`);
      return SETUP_FAILED;
    }
    newClientContext = context;
  }

  const had = serverConfig !== null || newServerConfig !== null;
  const serversOutdated = had && changeRequiresReconnect(newServerConfig);
  native.tlsCtxFree(clientContext);
  clientContext = newClientContext;
  tlsState.clientAcceptSslmode = cf.clientTlsSslmode;
  native.tlsCtxFree(serverContext);
  serverContext = 0;
  serverConfig = newServerConfig;
  tlsState.serverConnectSslmode = cf.serverTlsSslmode;
  return { ok: true, serversOutdated };
}

/* ---- connections ---- */

function fileMark(path: string): string {
  if (path === '') return '';
  const stat = statSync(Buffer.from(path, 'latin1'), { throwIfNoEntry: false });
  return stat === undefined ? 'none' : `${stat.ino}/${stat.mtimeMs}/${stat.size}`;
}

/**
 * The context for connecting to servers. As with the original its files are those of the moment of connecting: a
 * certificate that is renewed in place counts for the next connection, and one that cannot be read ends only that.
 * @returns a context, or why there is none
 */
function serverTlsContext(): number | string {
  if (serverConfig === null) return 'no TLS settings';
  const files = [serverConfig.keyFile, serverConfig.certFile, serverConfig.caFile].map(fileMark).join(' ');
  if (serverContext !== 0 && files === serverFiles) return serverContext;
  const context = newTlsContext(TlsRole.CONNECT, serverConfig);
  if (typeof context === 'string') return context;
  native.tlsCtxFree(serverContext);
  serverContext = context;
  serverFiles = files;
  return context;
}

/**
 * Waits for a client's handshake; Ev.TLS follows.
 * @param off bytes of the handshake that have arrived already, in the arena
 * @returns false when that is not possible
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
 * Begins a handshake with a server; Ev.TLS follows.
 * @param host the name it was configured with; only verify-full looks at it
 * @returns false when that is not possible
 */
export function sbufTlsConnect(sk: AnySocket, host: string | null): boolean {
  const name = tlsState.serverConnectSslmode === SslMode.VERIFY_FULL ? host : '';
  const context = name === null ? 'server name not specified' : serverTlsContext();
  if (typeof context === 'string') {
    logWarning(`TLS connect error: ${context}`);
    return false;
  }
  const res = native.tlsConnect(sk.handle, context, name ?? '');
  if (res < 0) {
    logWarning(`TLS connect error: ${native.strerror(-res)}`);
    return false;
  }
  sk.tls = true;
  return true;
}

/** Protocol, suite and key exchange in one word for the log and SHOW; '' without TLS. */
export function tlsConnectionInfo(sk: AnySocket): string {
  const info = sk.tls && sk.handle >= 0 ? native.tlsInfo(sk.handle) : null;
  if (info === null) return '';
  const exchange = info.exchange === '' ? '' : `/${info.exchange}`;
  return `${info.version}/${info.cipher}${exchange}`.slice(0, INFO_MAX);
}

/* ---- the peer's certificate: valid in any case, or the handshake would have failed ---- */

export function tlsPeerCertProvided(sk: AnySocket): boolean {
  return sk.tls && native.tlsPeerCertProvided(sk.handle);
}

/** Its subject in one line, `/C=…/O=…/CN=…`; null without one. */
export function tlsPeerCertSubject(sk: AnySocket): string | null {
  return sk.tls ? native.tlsPeerCertSubject(sk.handle) : null;
}

/** Whether a name (as the original compares it: of a host, an address or a user) stands in it. */
export function tlsPeerCertContainsName(sk: AnySocket, name: string): boolean {
  return sk.tls && native.tlsPeerCertContainsName(sk.handle, name);
}
