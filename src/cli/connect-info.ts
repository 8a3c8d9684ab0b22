/*
 * The connection parameters of mkauth: reads a connection string as libpq does (`key=value …` or a URI), libpq's
 * environment variables and the password file. Strings are byte strings; error texts are libpq's. Called by mkauth.ts.
 */

import { existsSync, readFileSync, statSync } from 'node:fs';
import { homedir, userInfo } from 'node:os';
import { join } from 'node:path';

/** One server to try. */
export interface Target {
  /** as the user names the server: a host name, an address, or the folder of a Unix socket */
  host: string;
  /** the address to connect to: hostaddr if given, else host */
  address: string;
  port: number;
  /** path of the Unix socket, null for TCP; an abstract name starts with a zero byte */
  socketPath: string | null;
  password: string | null;
  /** the password is a line of auth_file, which may have an md5 hash instead */
  storedSecret?: boolean;
}

type SslMode = 'disable' | 'allow' | 'prefer' | 'require' | 'verify-ca' | 'verify-full';

export interface ConnInfo {
  /** in the order in which they are tried */
  targets: Target[];
  user: string;
  sslmode: SslMode;
  /** file of CA certificates, 'system' for Node's own, '' for none */
  sslrootcert: string;
  /** client certificate and its key, '' for none */
  sslcert: string;
  sslkey: string;
  /** 0: no limit */
  connectTimeoutMs: number;
  /** parameters of the startup packet */
  startup: Record<string, string>;
}

/** Keywords that mkauth supports, each with the environment variable that sets its default. */
const OPTIONS: Record<string, string | null> = {
  host: 'PGHOST',
  hostaddr: 'PGHOSTADDR',
  port: 'PGPORT',
  user: 'PGUSER',
  password: 'PGPASSWORD',
  dbname: 'PGDATABASE',
  passfile: 'PGPASSFILE',
  sslmode: 'PGSSLMODE',
  sslrootcert: 'PGSSLROOTCERT',
  sslcert: 'PGSSLCERT',
  sslkey: 'PGSSLKEY',
  connect_timeout: 'PGCONNECT_TIMEOUT',
  options: 'PGOPTIONS',
  application_name: 'PGAPPNAME',
  fallback_application_name: null,
  client_encoding: 'PGCLIENTENCODING',
};

/** Keywords of libpq that have no effect on one short query. */
const INERT = [
  'keepalives',
  'keepalives_idle',
  'keepalives_interval',
  'keepalives_count',
  'tcp_user_timeout',
  'sslcompression',
  'sslsni',
  'krbsrvname',
  'gsslib',
  'gssdelegation',
];

/** Keywords of libpq that mkauth does not support, with the values that have no effect; other values are errors. */
const REFUSED: Record<string, { env: string; harmless: string[] }> = {
  channel_binding: { env: 'PGCHANNELBINDING', harmless: ['disable', 'prefer'] },
  gssencmode: { env: 'PGGSSENCMODE', harmless: ['disable', 'prefer'] },
  load_balance_hosts: { env: 'PGLOADBALANCEHOSTS', harmless: ['disable'] },
  require_auth: { env: 'PGREQUIREAUTH', harmless: [] },
  requirepeer: { env: 'PGREQUIREPEER', harmless: [] },
  service: { env: 'PGSERVICE', harmless: [] },
  // Node supports no version older than 1.2
  ssl_min_protocol_version: { env: 'PGSSLMINPROTOCOLVERSION', harmless: ['TLSv1', 'TLSv1.1', 'TLSv1.2'] },
  ssl_max_protocol_version: { env: 'PGSSLMAXPROTOCOLVERSION', harmless: ['TLSv1.3'] },
  sslcertmode: { env: 'PGSSLCERTMODE', harmless: ['allow'] },
  sslcrl: { env: 'PGSSLCRL', harmless: [] },
  sslcrldir: { env: 'PGSSLCRLDIR', harmless: [] },
  sslnegotiation: { env: 'PGSSLNEGOTIATION', harmless: ['postgres'] },
  target_session_attrs: { env: 'PGTARGETSESSIONATTRS', harmless: ['any'] },
};

const SSL_MODES: readonly string[] = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'];
const DEFAULT_PORT = 5432;
/** Node's timers end at once if they are longer. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Default folders of the Unix socket in common builds of PostgreSQL. */
const SOCKET_DIRS = ['/var/run/postgresql', '/tmp'];

type Options = Map<string, string>;

function isSpace(char: string | undefined): boolean {
  return char !== undefined && ' \t\n\v\f\r'.includes(char);
}

function setOption(options: Options, key: string, value: string): void {
  if (!(Object.hasOwn(OPTIONS, key) || Object.hasOwn(REFUSED, key) || INERT.includes(key))) {
    throw new Error(`invalid connection option "${key}"`);
  }
  options.set(key, value);
}

/** The value that begins at `from`: a word or a quoted string; in both, a backslash quotes the next character. */
function takeValue(text: string, from: number): { value: string; end: number } {
  const quoted = text[from] === "'";
  let value = '';
  for (let p = quoted ? from + 1 : from; ; p++) {
    const char = text[p];
    if (quoted && char === "'") return { value, end: p + 1 };
    if (char === undefined && quoted) throw new Error('unterminated quoted string in connection info string');
    if (char === undefined || (!quoted && isSpace(char))) return { value, end: p };
    if (char === '\\') p++;
    value += text[p] ?? '';
  }
}

function parsePairs(text: string): Options {
  const options: Options = new Map();
  let p = 0;
  const skipSpaces = () => {
    while (isSpace(text[p])) p++;
  };
  for (skipSpaces(); p < text.length; skipSpaces()) {
    const start = p;
    while (p < text.length && text[p] !== '=' && !isSpace(text[p])) p++;
    const key = text.slice(start, p);
    skipSpaces();
    if (text[p] !== '=') throw new Error(`missing "=" after "${key}" in connection info string`);
    p++;
    skipSpaces();
    const { value, end } = takeValue(text, p);
    p = end;
    setOption(options, key, value);
  }
  return options;
}

function percentDecoded(text: string): string {
  return text.replace(/%(.{0,2})/gs, (token, digits: string) => {
    const code = /^[0-9A-Fa-f]{2}$/.test(digits) ? Number.parseInt(digits, 16) : 0;
    if (code === 0) throw new Error(`invalid percent-encoded token: "${token}"`);
    return String.fromCharCode(code);
  });
}

/** `postgresql://user:password@host:port,host:port/dbname?key=value&…`, every part optional. */
function parseUri(uri: string): Options {
  const options: Options = new Map();
  const parts = /^postgres(?:ql)?:\/\/(?:([^:@/?]*)(?::([^@/?]*))?@)?([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(uri);
  if (parts === null) throw new Error(`invalid URI: "${uri}"`);
  const [, user = '', password = '', hosts = '', dbname = '', query = ''] = parts;
  const ends = hosts.split(',').map((end) => {
    const match = /^(\[[^\]]*\]|[^:[\]]*)(?::(.*))?$/s.exec(end);
    if (match === null) throw new Error(`unexpected host specification in URI: "${end}"`);
    return { host: (match[1] as string).replace(/^\[|\]$/g, ''), port: match[2] ?? '' };
  });
  const given: Record<string, string> = { user, password, dbname };
  given.host = ends.map(({ host }) => host).join(',');
  given.port = ends.map(({ port }) => port).join(',');
  for (const [key, value] of Object.entries(given)) {
    if (/[^,]/.test(value)) setOption(options, key, percentDecoded(value));
  }
  for (const pair of query === '' ? [] : query.split('&')) {
    const equals = pair.indexOf('=');
    if (equals < 0) throw new Error(`missing key/value separator "=" in URI query parameter: "${pair}"`);
    const key = percentDecoded(pair.slice(0, equals));
    const value = percentDecoded(pair.slice(equals + 1));
    if (key === 'ssl' && value === 'true') setOption(options, 'sslmode', 'require');
    else setOption(options, key, value);
  }
  return options;
}

function addEnvironment(options: Options, env: NodeJS.ProcessEnv): void {
  const names = Object.entries(OPTIONS).concat(Object.entries(REFUSED).map(([key, { env: name }]) => [key, name]));
  for (const [key, name] of names) {
    const value = name === null ? undefined : env[name];
    // an empty value in the string selects the default, not the environment's value
    if (!options.has(key) && value !== undefined) options.set(key, Buffer.from(value).toString('latin1'));
  }
  for (const [key, { harmless }] of Object.entries(REFUSED)) {
    const value = options.get(key) ?? '';
    if (value !== '' && !harmless.includes(value)) {
      throw new Error(`connection option "${key}" is not supported with value "${value}"`);
    }
  }
}

/** The fields of a line of the password file: `host:port:database:user:password`, others are ignored; a backslash quotes. */
function passwordFields(line: string): string[] {
  const fields = [''];
  for (let p = 0; p < line.length; p++) {
    if (line[p] === ':') {
      fields.push('');
      continue;
    }
    if (line[p] === '\\' && p + 1 < line.length) p++;
    fields.push((fields.pop() ?? '') + (line[p] ?? ''));
  }
  return fields;
}

/** The lines of the password file; none if it is missing or accessible to other users. */
function readPassfile(path: string, warn: (text: string) => void): string[][] {
  const file = Buffer.from(path, 'latin1');
  const stat = statSync(file, { throwIfNoEntry: false });
  if (stat === undefined) return [];
  if (!stat.isFile()) {
    warn(`WARNING: password file "${path}" is not a plain file`);
    return [];
  }
  if ((stat.mode & 0o077) !== 0) {
    warn(`WARNING: password file "${path}" has group or world access; permissions should be u=rw (0600) or less`);
    return [];
  }
  const lines = readFileSync(file, 'latin1').split(/\r?\n/);
  return lines.filter((line) => line !== '' && !line.startsWith('#')).map(passwordFields);
}

function listOf(options: Options, key: string): string[] {
  const text = options.get(key) ?? '';
  return text === '' ? [] : text.split(',');
}

function portNumber(text: string): number {
  if (text === '') return DEFAULT_PORT;
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65535) throw new Error(`invalid port number: "${text}"`);
  return port;
}

/** The first default folder with a Unix socket of that port, or else the first default folder. */
function defaultSocketDir(port: number): string {
  return SOCKET_DIRS.find((dir) => existsSync(join(dir, `.s.PGSQL.${port}`))) ?? (SOCKET_DIRS[0] as string);
}

function makeTargets(options: Options): Target[] {
  const hosts = listOf(options, 'host');
  const addresses = listOf(options, 'hostaddr');
  const ports = listOf(options, 'port');
  const count = Math.max(hosts.length, addresses.length, 1);
  if (hosts.length > 0 && addresses.length > 0 && hosts.length !== addresses.length) {
    throw new Error(`could not match ${hosts.length} host names to ${addresses.length} hostaddr values`);
  }
  if (ports.length > 1 && ports.length !== count) {
    throw new Error(`could not match ${ports.length} port numbers to ${count} hosts`);
  }
  return Array.from({ length: count }, (_, at) => {
    const port = portNumber((ports.length > 1 ? ports[at] : ports[0]) ?? '');
    const address = addresses[at] || hosts[at] || defaultSocketDir(port);
    const isSocket = address.startsWith('/') || address.startsWith('@');
    const socketPath = isSocket ? `${address.replace(/^@/, '\0')}/.s.PGSQL.${port}` : null;
    return { host: hosts[at] || address, address, port, socketPath, password: null };
  });
}

function timeoutMs(text: string): number {
  if (text === '') return 0;
  if (!/^\s*[+-]?\d+\s*$/.test(text)) {
    throw new Error(`invalid integer value "${text}" for connection option "connect_timeout"`);
  }
  return Math.min(Math.max(Number(text), 0) * 1000, TIMER_MS_MAX);
}

function systemUser(): string {
  try {
    return userInfo().username;
  } catch {
    throw new Error(`local user with ID ${process.getuid?.()} does not exist`);
  }
}

/** A path in the user's home, '' if the user has none: in a container, a user id may have no entry. */
function homePath(...names: string[]): string {
  try {
    return join(homedir(), ...names);
  } catch {
    return '';
  }
}

function addPasswords(targets: Target[], options: Options, dbname: string, warn: (text: string) => void): void {
  const given = options.get('password') ?? '';
  const passfile = options.get('passfile') || homePath('.pgpass');
  const lines = given === '' && passfile !== '' ? readPassfile(passfile, warn) : [];
  for (const target of targets) {
    const host = SOCKET_DIRS.includes(target.host) ? 'localhost' : target.host;
    const asked = [host, String(target.port), dbname, options.get('user') as string];
    const line = lines.find(
      (fields) => fields.length >= 5 && asked.every((value, at) => fields[at] === '*' || fields[at] === value),
    );
    target.password = given === '' ? (line?.[4] ?? null) : given;
  }
}

/** The path of a file in ~/.postgresql, '' if it does not exist. */
function userFile(name: string): string {
  const path = homePath('.postgresql', name);
  return path !== '' && existsSync(path) ? path : '';
}

/**
 * Reads a connection string, and the environment for parameters that it does not set. Throws if they are invalid.
 * @param text byte string
 * @param warn called with the reason if the password file cannot be used
 */
export function readConnInfo(text: string, env: NodeJS.ProcessEnv, warn: (text: string) => void): ConnInfo {
  const options = /^postgres(ql)?:\/\//.test(text) ? parseUri(text) : parsePairs(text);
  addEnvironment(options, env);
  const user = options.get('user') || systemUser();
  options.set('user', user);
  const dbname = options.get('dbname') || user;
  const sslrootcert = options.get('sslrootcert') || userFile('root.crt');
  const sslmode = options.get('sslmode') || (sslrootcert === 'system' ? 'verify-full' : 'prefer');
  if (!SSL_MODES.includes(sslmode)) throw new Error(`invalid sslmode value: "${sslmode}"`);
  if (sslrootcert === 'system' && sslmode !== 'verify-full') {
    throw new Error(`weak sslmode "${sslmode}" may not be used with sslrootcert=system (use "verify-full")`);
  }
  const targets = makeTargets(options);
  addPasswords(targets, options, dbname, warn);
  const startup: Record<string, string> = { user, database: dbname };
  const name = options.get('application_name') || options.get('fallback_application_name') || '';
  if (name !== '') startup.application_name = name;
  for (const key of ['options', 'client_encoding']) {
    const value = options.get(key) ?? '';
    if (value !== '' && value !== 'auto') startup[key] = value;
  }
  const sslcert = options.get('sslcert') || userFile('postgresql.crt');
  return {
    targets,
    user,
    sslmode: sslmode as SslMode,
    sslrootcert,
    sslcert,
    sslkey: options.get('sslkey') || userFile('postgresql.key'),
    connectTimeoutMs: timeoutMs(options.get('connect_timeout') ?? ''),
    startup,
  };
}
