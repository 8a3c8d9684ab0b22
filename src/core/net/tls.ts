/*
 * TLS as the settings say it: contexts for accepting clients and for connecting to servers, made at start and again on
 * RELOAD, SIGHUP and SET, and TLS put on a connection. What is in force may differ from `cf` when a change could not be
 * applied; so sessions ask `tlsState`, not `cf`. The bytes themselves are the loop's business (native/tls.h).
 */
import { statSync } from 'node:fs';
import { logError, logNoise, logWarning } from '../base/log';
import { native, TlsRole, TlsVerify } from '../base/native';
import { AuthType, cf, SslMode } from '../config/settings';
import type { PgSocket } from '../pool/socket';

/** Longest text about a connection: the original formats it into a buffer of 96. */
const INFO_MAX = 95;

const enum Protocol {
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

/** One side's settings, checked as far as that needs no file. */
interface TlsConfig {
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

/** The modes in force. */
export const tlsState: { clientAcceptSslmode: SslMode; serverConnectSslmode: SslMode } = {
  clientAcceptSslmode: SslMode.DISABLED,
  serverConnectSslmode: SslMode.DISABLED,
};

/** Filled by session/: connections to servers that were made with other TLS settings have to go. */
export const tlsChangeSlot: { serverSettingsChanged: () => void } = { serverSettingsChanged: () => {} };

/** Contexts of the loop, 0 = none. */
let clientContext = 0;
let serverContext = 0;
let serverConfig: TlsConfig | null = null;
/** what the files of serverContext looked like when it was made */
let serverFiles = '';

/* ---- settings ---- */

/**
 * A list of protocols: words separated by commas or colons, `!` takes one out again.
 * @returns bits of Protocol, or null when a word is unknown
 */
export function parseTlsProtocols(text: string): number | null {
  let protocols = 0;
  for (const part of text.split(/[,:]/)) {
    const word = part.replace(/^[ \t]+/, '');
    const negate = word.startsWith('!');
    const bits = protocolWords.get((negate ? word.slice(1) : word).toLowerCase());
    if (bits === undefined) return null;
    if (!negate) protocols |= bits;
    else protocols = (protocols === 0 ? Protocol.ALL : protocols) & ~bits;
  }
  return protocols;
}

/** Values as they stand in the ini; what is empty was not set. */
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

/** Checks the words; files are looked at later. @returns null after an error in the log */
function checkSettings(settings: TlsSettings): TlsConfig | null {
  const protocols = settings.protocols === '' ? Protocol.DEFAULT : parseTlsProtocols(settings.protocols);
  if (protocols === null) return invalid(settings, 'protocols', settings.protocols);
  if (!native.tlsKnown('ciphers', settings.ciphers)) return invalid(settings, 'ciphers', settings.ciphers);
  const dheparams = settings.dheparams.toLowerCase();
  if (!['', 'none', 'auto'].includes(dheparams)) return invalid(settings, 'dheparams', settings.dheparams);
  // the original has its own spelling of this name
  if (!native.tlsKnown('curve', settings.ecdhcurve)) return invalid(settings, 'ecdhecurve', settings.ecdhcurve);
  return {
    protocols,
    verify: settings.verify,
    ciphers: settings.ciphers,
    ciphers13: settings.ciphers13 ?? '',
    curve: settings.ecdhcurve,
    dhAuto: dheparams === 'auto' ? 1 : 0,
    keyFile: settings.keyFile,
    certFile: settings.certFile,
    caFile: settings.caFile,
  };
}

function readServerConfig(): TlsConfig | null {
  return checkSettings({
    prefix: 'server_tls',
    verify: serverVerify(cf.serverTlsSslmode),
    protocols: cf.serverTlsProtocols,
    ciphers: cf.serverTlsCiphers,
    ciphers13: cf.serverTls13Ciphers,
    keyFile: cf.serverTlsKeyFile,
    certFile: cf.serverTlsCertFile,
    caFile: cf.serverTlsCaFile,
    dheparams: '',
    ecdhcurve: '',
  });
}

function readClientConfig(): TlsConfig | null {
  return checkSettings({
    prefix: 'client_tls',
    verify: clientVerify(cf.clientTlsSslmode),
    protocols: cf.clientTlsProtocols,
    ciphers: cf.clientTlsCiphers,
    ciphers13: cf.clientTls13Ciphers,
    keyFile: cf.clientTlsKeyFile,
    certFile: cf.clientTlsCertFile,
    caFile: cf.clientTlsCaFile,
    dheparams: cf.clientTlsDheparams,
    ecdhcurve: cf.clientTlsEcdhcurve,
  });
}

/** What the settings must have together. @returns why they cannot be used, or null */
function missingSettings(): string | null {
  if (cf.clientTlsSslmode !== SslMode.DISABLED && (cf.clientTlsKeyFile === '' || cf.clientTlsCertFile === '')) {
    return 'To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.';
  }
  if (cf.authType === AuthType.CERT) {
    if (cf.clientTlsSslmode !== SslMode.VERIFY_FULL)
      return 'auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL';
    if (cf.clientTlsCaFile === '') return 'auth_type=cert requires client_tls_ca_file';
  } else if (cf.clientTlsSslmode > SslMode.VERIFY_CA && cf.clientTlsCaFile === '') {
    return 'client_tls_sslmode requires client_tls_ca_file';
  }
  return null;
}

/** @returns a context, or why there is none */
function newContext(role: TlsRole, config: TlsConfig): number | string {
  try {
    return native.tlsCtxNew(role, config);
  } catch (err) {
    return err instanceof Error ? err.message : String(err);
  }
}

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
 * @returns false when they cannot be used: the reason is in the log, and everything stays as it was
 */
export function sbufTlsSetup(): boolean {
  const missing = missingSettings();
  if (missing !== null) {
    logError(missing);
    return false;
  }
  let newServerConfig: TlsConfig | null = null;
  if (cf.serverTlsSslmode !== SslMode.DISABLED) {
    newServerConfig = readServerConfig();
    if (newServerConfig === null) return false;
  }
  let newClientContext = 0;
  if (cf.clientTlsSslmode !== SslMode.DISABLED) {
    const config = readClientConfig();
    if (config === null) return false;
    const context = newContext(TlsRole.ACCEPT, config);
    if (typeof context === 'string') {
      logError(`TLS setup failed: ${context}`);
      return false;
    }
    newClientContext = context;
  }

  const had = serverConfig !== null || newServerConfig !== null;
  if (had && changeRequiresReconnect(newServerConfig)) tlsChangeSlot.serverSettingsChanged();
  native.tlsCtxFree(clientContext);
  clientContext = newClientContext;
  tlsState.clientAcceptSslmode = cf.clientTlsSslmode;
  native.tlsCtxFree(serverContext);
  serverContext = 0;
  serverConfig = newServerConfig;
  tlsState.serverConnectSslmode = cf.serverTlsSslmode;
  return true;
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
export function serverTlsContext(): number | string {
  if (serverConfig === null) return 'no TLS settings';
  const files = [serverConfig.keyFile, serverConfig.certFile, serverConfig.caFile].map(fileMark).join(' ');
  if (serverContext !== 0 && files === serverFiles) return serverContext;
  const context = newContext(TlsRole.CONNECT, serverConfig);
  if (typeof context === 'string') return context;
  native.tlsCtxFree(serverContext);
  serverContext = context;
  serverFiles = files;
  return context;
}

/** Puts the settings in force for a look at them, both sides; what is wrong with them is in the log. For --check. */
export function tryTls(): void {
  if (!sbufTlsSetup() || serverConfig === null) return;
  const context = serverTlsContext();
  if (typeof context === 'string') logError(`server_tls_sslmode: ${context}`);
}

/**
 * Waits for a client's handshake; Ev.TLS follows.
 * @param off bytes of the handshake that have arrived already, in the arena
 * @returns false when that is not possible
 */
export function sbufTlsAccept(sk: PgSocket, off: number, length: number): boolean {
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
export function sbufTlsConnect(sk: PgSocket, host: string | null): boolean {
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
export function tlsConnectionInfo(sk: PgSocket): string {
  const info = sk.tls && sk.handle >= 0 ? native.tlsInfo(sk.handle) : null;
  if (info === null) return '';
  const exchange = info.exchange === '' ? '' : `/${info.exchange}`;
  return `${info.version}/${info.cipher}${exchange}`.slice(0, INFO_MAX);
}

/* ---- the peer's certificate: valid in any case, or the handshake would have failed ---- */

export function tlsPeerCertProvided(sk: PgSocket): boolean {
  return sk.tls && native.tlsPeerCertProvided(sk.handle);
}

/** Its subject in one line, `/C=…/O=…/CN=…`; null without one. */
export function tlsPeerCertSubject(sk: PgSocket): string | null {
  return sk.tls ? native.tlsPeerCertSubject(sk.handle) : null;
}

/** Whether a name (as the original compares it: of a host, an address or a user) stands in it. */
export function tlsPeerCertContainsName(sk: PgSocket, name: string): boolean {
  return sk.tls && native.tlsPeerCertContainsName(sk.handle, name);
}
