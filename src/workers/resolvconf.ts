/*
 * Parses resolv.conf and the hosts file as c-ares does. These functions take texts; src/workers/names.ts reads the
 * files.
 */
import { isIP, isIPv6, SocketAddress } from 'node:net';
import type { NameAddress } from '../core/base/worker-messages';

export interface ResolvConf {
  /** `address:port` or `[address]:port`, in the order in which they are queried */
  servers: string[];
  /** domains appended to a name */
  search: string[];
  /** a name with at least this many dots is first tried as it is */
  ndots: number;
  /** of the first try; each further try waits longer */
  timeoutMs: number;
  tries: number;
  /** the servers take turns */
  rotate: boolean;
  /** sources in order: 'f' = the hosts file, 'b' = the servers */
  lookups: string;
}

/** Environment variables: LOCALDOMAIN and RES_OPTIONS override the file. */
type ResolvEnv = Readonly<Record<string, string | undefined>>;

const DNS_PORT = 53;
const DEFAULT_TIMEOUT_MS = 2000;
const DEFAULT_TRIES = 3;
/** Larger values serve no purpose; resolv.conf(5) allows 30 s and 5 tries. */
const NUMBER_MAX = 60;

const words = (text: string): string[] => text.split(/[\s,]+/).filter((word) => word !== '');

/** Parses `1.2.3.4`, `1.2.3.4:5300`, `::1`, `[::1]` or `[::1]:5300`. @returns null for anything else */
function serverOf(word: string): string | null {
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(word);
  const plain = isIPv6(word) ? [word, word] : /^([^:]+)(?::(\d+))?$/.exec(word);
  const match = bracketed ?? plain;
  if (match === null) return null;
  const address = match[1] as string;
  const port = match[2] === undefined ? DNS_PORT : Number(match[2]);
  const family = isIP(address);
  if (family === 0 || (bracketed !== null && family !== 6) || port < 1 || port > 65535) return null;
  return family === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}

function applyOption(conf: ResolvConf, word: string): void {
  const [name, text] = word.split(':', 2) as [string, string | undefined];
  if (name === 'rotate') conf.rotate = true;
  if (text === undefined || !/^\d+$/.test(text)) return;
  const value = Math.min(Number(text), NUMBER_MAX);
  if (name === 'ndots') conf.ndots = value;
  else if ((name === 'timeout' || name === 'retrans') && value > 0) conf.timeoutMs = value * 1000;
  else if ((name === 'attempts' || name === 'retry') && value > 0) conf.tries = value;
}

/** `lookup file bind`: only the first letters are significant. */
function lookupsOf(value: string): string {
  const letters = words(value).map((word) => (/^[bfdr]/.exec(word)?.[0] ?? '').replace(/[dr]/, 'b'));
  return [...new Set(letters)].join('');
}

/**
 * Parses a resolv.conf; unknown lines are ignored.
 * @param hostname of this machine: its domain is searched if the file names no domain
 */
export function parseResolvConf(text: string, env: ResolvEnv, hostname: string): ResolvConf {
  const conf: ResolvConf = {
    servers: [],
    search: [],
    ndots: 1,
    timeoutMs: DEFAULT_TIMEOUT_MS,
    tries: DEFAULT_TRIES,
    rotate: false,
    lookups: 'fb',
  };
  for (const line of text.split('\n')) {
    const match = /^(\w+)[ \t]+([^#;]*)/.exec(line);
    if (match === null) continue;
    const value = match[2] as string;
    switch (match[1]) {
      case 'nameserver':
        conf.servers.push(...words(value).flatMap((word) => serverOf(word) ?? []));
        break;
      case 'search':
        conf.search = words(value);
        break;
      case 'domain':
        if (conf.search.length === 0) conf.search = words(value).slice(0, 1);
        break;
      case 'lookup':
        conf.lookups = lookupsOf(value) || conf.lookups;
        break;
      case 'options':
        for (const word of words(value)) applyOption(conf, word);
        break;
    }
  }
  if (env.LOCALDOMAIN !== undefined) conf.search = words(env.LOCALDOMAIN);
  for (const word of words(env.RES_OPTIONS ?? '')) applyOption(conf, word);
  if (conf.servers.length === 0) conf.servers.push(`127.0.0.1:${DNS_PORT}`);
  const dot = env.LOCALDOMAIN === undefined ? hostname.indexOf('.') : -1;
  if (conf.search.length === 0 && dot >= 0 && dot < hostname.length - 1) conf.search.push(hostname.slice(dot + 1));
  return conf;
}

/** The names to look up in turn until one of them exists. A name with a trailing dot is used as it is. */
export function candidates(conf: ResolvConf, name: string): string[] {
  if (name.endsWith('.')) return [name.slice(0, -1)];
  const searched = conf.search.map((domain) => `${name}.${domain.replace(/^\.+/, '')}`);
  const dots = name.split('.').length - 1;
  return dots >= conf.ndots ? [name, ...searched] : [...searched, name];
}

/**
 * An address as inet_ntop() writes it, because addresses are compared as text.
 * @returns null if it is not an address
 */
export function addressOf(text: string): NameAddress | null {
  const family = isIP(text);
  if (family === 0) return null;
  if (family === 4) return { family, host: text };
  try {
    return { family: 6, host: new SocketAddress({ address: text, family: 'ipv6' }).address };
  } catch {
    return null;
  }
}

const plainName = (name: string): string => name.replace(/\.$/, '').toLowerCase();

/** The addresses that a hosts file has for a name, its aliases included. */
export function hostsAddresses(text: string, name: string): NameAddress[] {
  const wanted = plainName(name);
  const found: NameAddress[] = [];
  for (const line of text.split('\n')) {
    const [address, ...names] = line
      .replace(/#.*/, '')
      .split(/\s+/)
      .filter((word) => word !== '');
    if (address === undefined || !names.some((each) => plainName(each) === wanted)) continue;
    const parsed = addressOf(address);
    if (parsed !== null && !found.some(({ host }) => host === parsed.host)) found.push(parsed);
  }
  return found;
}

/** True for names that mean this machine by definition (RFC 6761); no server is queried for them. */
export function isLocalhost(name: string): boolean {
  const plain = plainName(name);
  return plain === 'localhost' || plain.endsWith('.localhost');
}
