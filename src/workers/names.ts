/*
 * Resolves names with c-ares on a thread of its own, with the servers and options of a resolv.conf. It also reads the
 * serial numbers of zones, which the system's resolver does not offer. Started by src/core/net/name-thread.ts at the
 * first such lookup. The thread receives one message per lookup, answers each with one message, and wakes the loop. It
 * uses no other part of the pooler.
 *
 * Node's resolvers send only plain queries: c-ares's rules for the hosts file, the search list and the address family
 * are implemented here.
 */
import { Resolver } from 'node:dns/promises';
import { readFileSync, statSync, writeSync } from 'node:fs';
import { hostname } from 'node:os';
import { domainToASCII } from 'node:url';
import { parentPort, workerData } from 'node:worker_threads';
import type { NameAddress, NameAnswer, NameQuestion, NameWorkerData } from '../core/base/worker-messages';
import { oneFamily } from './families';
import { addressOf, candidates, hostsAddresses, isLocalhost, parseResolvConf, type ResolvConf } from './resolvconf';

const HOSTS = '/etc/hosts';
/** Limit of a lookup, whatever timeout and number of tries the file specifies. */
const ANSWER_MS_MAX = 60_000;

/** Texts of ares_strerror() for errors that a lookup can get. */
const TEXTS: Readonly<Record<string, string>> = {
  ENODATA: 'DNS server returned answer with no data',
  EFORMERR: 'DNS server claims query was misformatted',
  ESERVFAIL: 'DNS server returned general failure',
  ENOTFOUND: 'Domain name not found',
  ENOTIMP: 'DNS server does not implement requested operation',
  EREFUSED: 'DNS server refused query',
  EBADNAME: 'Misformatted domain name',
  EBADRESP: 'Misformatted DNS reply',
  ECONNREFUSED: 'Could not contact DNS servers',
  ETIMEOUT: 'Timeout while contacting DNS servers',
  ECANCELLED: 'DNS query cancelled',
};
/** Errors after which the next domain of the search list is tried. */
const GOES_ON = new Set(['ENODATA', 'ENOTFOUND', 'ESERVFAIL']);

class Failed extends Error {
  constructor(readonly code: string) {
    super(TEXTS[code] ?? code);
  }
}

function codeOf(err: unknown): string {
  const { code } = err as { code?: unknown };
  return typeof code === 'string' ? code : 'EBADNAME';
}

interface CachedFile {
  readonly path: string | Buffer;
  mark: string;
  text: string;
}

/**
 * Reads the file again if it has changed.
 * @returns whether the text is new; after the file is removed the old text stays
 */
function refresh(file: CachedFile): boolean {
  try {
    const stat = statSync(file.path);
    const mark = `${stat.ino}/${stat.mtimeMs}/${stat.size}`;
    if (mark === file.mark) return false;
    file.text = readFileSync(file.path, 'utf8');
    file.mark = mark;
    return true;
  } catch {
    return false;
  }
}

const hosts: CachedFile = { path: HOSTS, mark: '', text: '' };

interface Asking {
  conf: ResolvConf;
  /** a single resolver, or with `rotate` a resolver for each order of the servers */
  resolvers: Resolver[];
  next: number;
}

function newAsking(text: string): Asking {
  const conf = parseResolvConf(text, process.env, hostname());
  const starts = conf.rotate ? conf.servers.map((_, at) => at) : [0];
  const resolvers = starts.map((start) => {
    const resolver = new Resolver({ timeout: conf.timeoutMs, tries: conf.tries });
    resolver.setServers([...conf.servers.slice(start), ...conf.servers.slice(0, start)]);
    return resolver;
  });
  return { conf, resolvers, next: 0 };
}

function nextResolver(asking: Asking): Resolver {
  const resolver = asking.resolvers[asking.next % asking.resolvers.length] as Resolver;
  asking.next = (asking.next + 1) % asking.resolvers.length;
  return resolver;
}

/** The name as sent to the server: non-ASCII letters are encoded in ASCII. */
function wireName(name: string): string {
  const ascii = /^[\0-\x7f]*$/.test(name) ? name : domainToASCII(name);
  if (ascii === '') throw new Failed('EBADNAME');
  return ascii;
}

interface Part {
  addresses: NameAddress[];
  /** '' if there are addresses */
  code: string;
}

async function part(asked: Promise<string[]>): Promise<Part> {
  try {
    return { addresses: (await asked).flatMap((text) => addressOf(text) ?? []), code: '' };
  } catch (err) {
    return { addresses: [], code: codeOf(err) };
  }
}

/** Queries A and AAAA at once. After the first answer, the other query has one more server timeout to complete. */
async function bothFamilies(asking: Asking, name: string): Promise<Part> {
  const resolver = nextResolver(asking);
  const parts: Part[] = [];
  const each = [resolver.resolve4(name), resolver.resolve6(name)].map(async (asked) => {
    const got = await part(asked);
    parts.push(got);
    return got;
  });
  const first = await Promise.race(each);
  let timer: NodeJS.Timeout | undefined;
  const enough = new Promise((settle) => {
    if (first.addresses.length > 0) timer = setTimeout(settle, asking.conf.timeoutMs);
  });
  await Promise.race([Promise.all(each), enough]);
  clearTimeout(timer);
  const addresses = parts.flatMap((got) => got.addresses);
  // a server's failure is reported rather than the absence of addresses
  const code = parts.map((got) => got.code).find((one) => !GOES_ON.has(one)) ?? first.code;
  return addresses.length > 0 ? { addresses, code: '' } : { addresses, code };
}

async function fromServers(asking: Asking, name: string): Promise<NameAddress[]> {
  let code = 'ENOTFOUND';
  for (const candidate of candidates(asking.conf, wireName(name))) {
    const got = await bothFamilies(asking, candidate);
    if (got.addresses.length > 0) return oneFamily(got.addresses);
    code = got.code;
    if (!GOES_ON.has(code)) break;
  }
  throw new Failed(code);
}

function fromHosts(name: string): NameAddress[] {
  refresh(hosts);
  const found = hostsAddresses(hosts.text, name);
  if (found.length > 0 || !isLocalhost(name)) return found;
  return [
    { family: 4, host: '127.0.0.1' },
    { family: 6, host: '::1' },
  ];
}

async function addressesOf(asking: Asking, name: string): Promise<NameAddress[]> {
  let failure = new Failed('ENOTFOUND');
  for (const lookup of asking.conf.lookups) {
    if (lookup === 'f') {
      const found = await oneFamily(fromHosts(name));
      if (found.length > 0) return found;
    } else if (!isLocalhost(name)) {
      try {
        return await fromServers(asking, name);
      } catch (err) {
        failure = err instanceof Failed ? err : new Failed(codeOf(err));
      }
    }
  }
  throw failure;
}

async function serialOf(asking: Asking, zone: string): Promise<number> {
  let code = 'ENOTFOUND';
  for (const candidate of candidates(asking.conf, wireName(zone))) {
    try {
      return (await nextResolver(asking).resolveSoa(candidate)).serial >>> 0;
    } catch (err) {
      code = codeOf(err);
      if (!GOES_ON.has(code)) break;
    }
  }
  throw new Failed(code);
}

async function answer(asking: Asking, { id, kind, name }: NameQuestion): Promise<NameAnswer> {
  const result: NameAnswer = { id, error: '', addresses: [], serial: 0 };
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Failed('ETIMEOUT')), ANSWER_MS_MAX);
  });
  try {
    if (kind === 'host') result.addresses = await Promise.race([addressesOf(asking, name), late]);
    else result.serial = await Promise.race([serialOf(asking, name), late]);
  } catch (err) {
    result.error = err instanceof Error && err.message !== '' ? err.message : String(err);
  }
  clearTimeout(timer);
  return result;
}

function serve({ port, wakeFd, resolvConf }: NameWorkerData): void {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  const tell = (result: NameAnswer) => {
    port.postMessage(result);
    writeSync(wakeFd, one);
  };
  const file: CachedFile = { path: Buffer.from(resolvConf), mark: '', text: '' };
  refresh(file);
  let asking = newAsking(file.text);
  port.on('message', (question: NameQuestion) => {
    if (refresh(file)) asking = newAsking(file.text);
    void answer(asking, question).then(tell);
  });
  // an unhandled error of one lookup must not end the thread for other lookups
  process.on('uncaughtException', () => {});
  process.on('exit', () => tell({ id: 0, error: 'the thread ended', addresses: [], serial: 0 }));
}

if (parentPort !== null) serve(workerData as NameWorkerData);
