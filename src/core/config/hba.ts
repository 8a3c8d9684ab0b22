/*
 * auth_hba_file: which clients may log in from where, and by which method; one rule per line, in the format of
 * pg_hba.conf. Read on every load of the config while auth_type is hba. The rule of a client is found by
 * src/core/auth/hba-eval.ts.
 *
 * A line that cannot be parsed is logged and skipped, as in PgBouncer: the file may be shared with a PostgreSQL server,
 * and some of a server's lines mean nothing to a pooler.
 */

import { posix } from 'node:path';
import { formatInet, parseInet, parseInet4, parseInet6, parseMaskBits } from '../base/inet';
import { logError, logWarning, strerror } from '../base/log';
import { AuthType, SslMode } from './choices';
import { type IdentMap, type IdentMaps, readLines } from './ident';
import type { Settings } from './settings-table';
import { atWord, eat, eatWord, nextToken, Tok, Tokens } from './tokens';

export const enum HbaType {
  LOCAL,
  HOST,
  HOSTSSL,
  HOSTNOSSL,
}

/** A list of databases or users. */
export interface HbaNames {
  all: boolean;
  /** the database of the same name as the user */
  sameuser: boolean;
  /** physical replication, which has no database */
  replication: boolean;
  names: Set<string>;
}

export interface HbaRule {
  type: HbaType;
  method: AuthType;
  databases: HbaNames;
  users: HbaNames;
  /** `all` in the address column */
  anyAddress: boolean;
  /** 4 or 16 bytes; empty for `local` and for `all` */
  address: Uint8Array;
  mask: Uint8Array;
  /** map= */
  identMap: IdentMap | null;
  /** the rest of the line after the method ldap */
  options: string;
  /** line number in the file, from 1 */
  line: number;
}

/** Limit of nesting for files of names; it also ends a file that includes itself. */
const NAME_FILES_DEPTH_MAX = 10;
const NO_BYTES = new Uint8Array(0);

const types: ReadonlyMap<string, HbaType> = new Map([
  ['local', HbaType.LOCAL],
  ['host', HbaType.HOST],
  ['hostssl', HbaType.HOSTSSL],
  ['hostnossl', HbaType.HOSTNOSSL],
]);

const methods: ReadonlyMap<string, AuthType> = new Map<string, AuthType>([
  ['trust', AuthType.TRUST],
  ['reject', AuthType.REJECT],
  ['md5', AuthType.MD5],
  ['password', AuthType.PLAIN],
  ['peer', AuthType.PEER],
  ['cert', AuthType.CERT],
  ['scram-sha-256', AuthType.SCRAM_SHA_256],
  ['ldap', AuthType.LDAP],
]);

/** Path of a file relative to the file that names it, unless absolute. */
function besideFile(parent: string, name: string): string {
  if (name.startsWith('/')) return name;
  const dir = posix.dirname(parent);
  return dir === '.' ? name : `${dir}${dir.endsWith('/') ? '' : '/'}${name}`;
}

/** A list of names that is being read: for which column, and from which file. */
interface NamesPlace {
  column: 'database' | 'user';
  file: string;
  /** how many files of names lead here */
  depth: number;
}

/**
 * A file of names has any number of them in a line, separated by spaces or commas, and comments, as in PostgreSQL. In
 * PgBouncer only the first of names between spaces counts, and an empty line makes the rule invalid.
 */
function parseNamesFile(names: HbaNames, place: NamesPlace): boolean {
  const { file } = place;
  if (place.depth > NAME_FILES_DEPTH_MAX) {
    logWarning(`nesting level of files of names too deep: ${file}`);
    return false;
  }
  let lines: string[];
  try {
    lines = readLines(file);
  } catch (err) {
    logWarning(`could not open file of names ${file}: ${strerror(err)}`);
    return false;
  }
  return lines.every((line) => {
    const tokens = new Tokens(line);
    while (tokens.kind !== Tok.EOL) {
      if (eat(tokens, Tok.COMMA)) continue;
      if (!parseName(names, tokens, place)) return false;
      nextToken(tokens);
    }
    return true;
  });
}

/** A bare word that is not only a name. @returns null if it is one; else whether it is valid */
function parseKeyword(names: HbaNames, word: string, place: NamesPlace): boolean | null {
  switch (word) {
    case 'all':
      names.all = true;
      return true;
    case 'sameuser':
      names.sameuser = true;
      return true;
    case 'replication':
      // in PgBouncer no rule can name a user who is called so
      if (place.column === 'user') return null;
      names.replication = true;
      return true;
    case 'samerole':
    case 'samegroup':
      logWarning(`${word} is not supported`);
      return false;
  }
  if (word.startsWith('+')) return false;
  if (!word.startsWith('@')) return null;
  return parseNamesFile(names, { ...place, file: besideFile(place.file, word.slice(1)), depth: place.depth + 1 });
}

/** Parses one word of a list. @returns false if it is not a valid name */
function parseName(names: HbaNames, tokens: Tokens, place: NamesPlace): boolean {
  if (tokens.kind === Tok.IDENT) {
    const valid = parseKeyword(names, tokens.text, place);
    if (valid !== null) return valid;
  } else if (tokens.kind !== Tok.STRING) {
    return false;
  }
  names.names.add(tokens.text);
  return true;
}

/** A comma-separated list in a rule. */
function parseNames(names: HbaNames, tokens: Tokens, place: NamesPlace): boolean {
  do {
    if (!parseName(names, tokens, place)) return false;
    nextToken(tokens);
  } while (eat(tokens, Tok.COMMA));
  return true;
}

function noNames(): HbaNames {
  return { all: false, sameuser: false, replication: false, names: new Set() };
}

/** ADDRESS/BITS, or ADDRESS and MASK as two words. @returns false after logging the fault */
function parseAddress(rule: HbaRule, tokens: Tokens, file: string): boolean {
  const linenr = rule.line;
  if (eatWord(tokens, 'all')) {
    rule.anyAddress = true;
    return true;
  }
  if (tokens.kind !== Tok.IDENT) {
    logWarning(`hba line ${linenr}: did not find address - ${tokens.kind} - '${tokens.text}'`);
    return false;
  }
  const slash = tokens.text.indexOf('/');
  const text = slash < 0 ? tokens.text : tokens.text.slice(0, slash);
  const address = parseInet(text);
  if (address === null) {
    logWarning(`hba line ${linenr}: failed to parse address - ${text}`);
    return false;
  }
  let mask: Uint8Array | null;
  if (slash >= 0) {
    mask = parseMaskBits(tokens.text.slice(slash + 1), address.length);
    if (mask === null) {
      logWarning(`hba line ${linenr}: invalid mask`);
      return false;
    }
    // the log message for a line that ends here has the address without the slash
    tokens.text = tokens.text.slice(0, slash);
  } else {
    nextToken(tokens);
    if (tokens.kind !== Tok.IDENT) {
      logWarning(`hba line ${linenr}: did not find mask`);
      return false;
    }
    mask = address.length === 4 ? parseInet4(tokens.text) : parseInet6(tokens.text);
    if (mask === null) {
      logWarning(`hba line ${linenr}: failed to parse mask: ${tokens.text}`);
      return false;
    }
  }
  nextToken(tokens);
  rule.address = address;
  rule.mask = mask;
  // such a rule never matches any client: only warn
  if (address.some((byte, i) => (byte & ~(mask[i] as number)) !== 0)) {
    const where = `${file} line #${linenr}`;
    logWarning(`address does not match mask in ${where}: ${formatInet(address)} / ${formatInet(mask)}`);
  }
  return true;
}

function parseMap(rule: HbaRule, maps: IdentMaps | null, tokens: Tokens): boolean {
  if (tokens.kind !== Tok.IDENT) return true;
  const text = tokens.text;
  if (!text.startsWith('map=')) {
    logWarning(`hba line ${rule.line}: Ident map ${text} is malformed. It is not in map=value format.`);
    return false;
  }
  const name = text.slice('map='.length);
  nextToken(tokens);
  rule.identMap = maps?.get(name) ?? null;
  if (rule.identMap === null) logWarning(`hba line ${rule.line}: Ident map ${name} is not found in ident config file`);
  return rule.identMap !== null;
}

function parseMethod(rule: HbaRule, maps: IdentMaps | null, tokens: Tokens): boolean {
  const method = tokens.kind === Tok.IDENT ? methods.get(tokens.text) : undefined;
  if (method === undefined) {
    logWarning(`hba line ${rule.line}: unsupported method: buf=${tokens.text}`);
    return false;
  }
  rule.method = method;
  if (atWord(tokens, 'ldap')) {
    // the options have their own syntax; they are parsed at login
    rule.options = tokens.line.slice(tokens.pos);
    return true;
  }
  nextToken(tokens);
  if (!parseMap(rule, maps, tokens)) return false;
  if (eat(tokens, Tok.EOL)) return true;
  logWarning(`hba line ${rule.line}: unsupported parameters`);
  return false;
}

function parseRule(rules: HbaRule[], maps: IdentMaps | null, line: string, linenr: number, file: string): boolean {
  const tokens = new Tokens(line);
  if (tokens.kind === Tok.EOL) return true;
  const type = tokens.kind === Tok.IDENT ? types.get(tokens.text) : undefined;
  if (type === undefined) {
    logWarning(`hba line ${linenr}: unknown type`);
    return false;
  }
  const rule: HbaRule = {
    type,
    method: AuthType.REJECT,
    databases: noNames(),
    users: noNames(),
    anyAddress: false,
    address: NO_BYTES,
    mask: NO_BYTES,
    identMap: null,
    options: '',
    line: linenr,
  };
  nextToken(tokens);
  if (!parseNames(rule.databases, tokens, { column: 'database', file, depth: 0 })) return false;
  if (!parseNames(rule.users, tokens, { column: 'user', file, depth: 0 })) return false;
  if (type !== HbaType.LOCAL && !parseAddress(rule, tokens, file)) return false;
  if (!parseMethod(rule, maps, tokens)) return false;
  rules.push(rule);
  return true;
}

/**
 * The rules of a file, in its order.
 * @param lines the file's lines
 * @param maps the maps that map= may name; null = none
 * @param file its path: relative files of names are looked for beside it
 */
export function parseHba(lines: string[], maps: IdentMaps | null, file: string): HbaRule[] {
  const rules: HbaRule[] = [];
  for (let i = 0; i < lines.length; i++) {
    if (!parseRule(rules, maps, lines[i] as string, i + 1, file))
      logWarning(`could not parse hba config line ${i + 1}`);
  }
  return rules;
}

export const OPEN_CERT =
  'cert without client_tls_ca_file accepts certificates of all authorities that this system trusts';

/** The rules with `cert` to which that applies. PostgreSQL refuses them; PgBouncer has them without a word. */
export function openCertRules(rules: readonly HbaRule[], settings: Readonly<Settings>): HbaRule[] {
  if (settings.clientTlsSslmode === SslMode.DISABLED || settings.clientTlsCaFile !== '') return [];
  return rules.filter(({ method }) => method === AuthType.CERT);
}

/** @returns false after logging an error */
export function isHbaReadable(path: string): boolean {
  try {
    readLines(path);
    return true;
  } catch (err) {
    logError(`could not open hba config file ${path}: ${strerror(err)}`);
    return false;
  }
}

/** Reads auth_hba_file. @returns null if it cannot be opened, after logging why */
export function loadHba(path: string, maps: IdentMaps | null): HbaRule[] | null {
  try {
    return parseHba(readLines(path), maps, path);
  } catch (err) {
    logError(`could not open hba config file ${path}: ${strerror(err)}`);
    return null;
  }
}
