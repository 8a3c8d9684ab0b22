/*
 * The options of an LDAP login, from auth_ldap_options or the end of an HBA line: key=value pairs or a URL. Parsed at
 * login and by --check. Errors have PgBouncer's words.
 */

import { asciiLower, isSpace, skipSpace, trimSpace } from '../base/strutil';

export const enum LdapScope {
  BASE = 'base',
  ONE = 'one',
  SUB = 'sub',
}

/** Byte strings; null = not given. */
export interface LdapOptions {
  /** StartTLS */
  tls: boolean;
  /** 'ldap' or 'ldaps' */
  scheme: string;
  /** host names or addresses, separated by spaces, tried in turn; '' = look up the servers of the base DN in DNS */
  server: string;
  /** 0 only if no server is given */
  port: number;
  /** set: search, then bind; null: bind as prefix + user + suffix */
  baseDn: string | null;
  bindDn: string | null;
  bindPasswd: string | null;
  searchAttribute: string | null;
  searchFilter: string | null;
  scope: LdapScope;
  prefix: string | null;
  suffix: string | null;
}

/** Longest text of options, in bytes: the size of PgBouncer's buffer. */
const MAX_LDAP_CONFIG = 1024;
const LDAP_PORT = 389;
const LDAPS_PORT = 636;

interface Pair {
  key: string;
  value: string;
  next: number;
}

/** A word in double quotes, with "" for a quote; without a closing quote it extends to the end. */
function readQuoted(text: string, from: number): { word: string; next: number; closed: boolean } {
  let word = '';
  let pos = from;
  while (pos < text.length) {
    if (text[pos] !== '"') {
      word += text[pos++];
    } else if (text[pos + 1] === '"') {
      word += '"';
      pos += 2;
    } else {
      return { word, next: pos + 1, closed: true };
    }
  }
  return { word, next: pos, closed: false };
}

/** The pair at `from`. @returns null if there is none: the rest of the text is ignored */
function readPair(text: string, from: number): Pair | null {
  let pos = skipSpace(text, from);
  if (text[pos] === ',') pos++;
  pos = skipSpace(text, pos);
  let key: string;
  if (text[pos] === '"') {
    const quoted = readQuoted(text, pos + 1);
    key = quoted.word;
    pos = quoted.next;
  } else {
    const equals = text.indexOf('=', pos);
    if (equals < 0) return null;
    key = text.slice(pos, equals);
    pos = equals;
  }
  if (text[pos] !== '=') return null;
  pos++;
  let value: string;
  if (text[pos] === '"') {
    const quoted = readQuoted(text, pos + 1);
    value = quoted.word;
    pos = quoted.next;
  } else {
    let end = pos;
    while (end < text.length && text[end] !== ',' && !isSpace(text.charCodeAt(end))) end++;
    value = text.slice(pos, end);
    pos = end < text.length ? end + 1 : end;
  }
  return key === '' || value === '' ? null : { key, value, next: pos };
}

function percentDecode(text: string): string {
  return text.replace(/%([0-9a-fA-F]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
}

const scopes: ReadonlyMap<string, LdapScope> = new Map([
  ['base', LdapScope.BASE],
  ['one', LdapScope.ONE],
  ['onelevel', LdapScope.ONE],
  ['sub', LdapScope.SUB],
  ['subtree', LdapScope.SUB],
]);

/** ldap[s]://host:port/dn?attributes?scope?filter (RFC 4516). @returns null, or the error */
function parseLdapUrl(options: LdapOptions, url: string): string | null {
  const wrong = (what: string) => `could not parse LDAP URL "${url}": ${what}`;
  const match = /^([A-Za-z]+):\/\/([^/?]*)(?:\/(.*))?$/s.exec(url);
  if (match === null) return wrong('no scheme://host');
  const scheme = asciiLower(match[1] as string);
  if (scheme !== 'ldap' && scheme !== 'ldaps') return `unsupported LDAP URL scheme: ${scheme}`;
  const host = /^(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?$/.exec(match[2] as string);
  if (host === null || Number(host[2] ?? 0) > 65535) return wrong('bad host or port');
  const parts = (match[3] ?? '').split('?');
  const scope = parts[2] === undefined || parts[2] === '' ? LdapScope.BASE : scopes.get(percentDecode(parts[2]));
  if (scope === undefined) return wrong('bad scope');
  // a critical extension changes the meaning of the search, and none is supported
  if (parts.length > 5 || (parts[4] ?? '').startsWith('!')) return wrong('critical extension');

  options.scheme = scheme;
  options.server = percentDecode(host[1] as string);
  options.port = Number(host[2] ?? 0) || (scheme === 'ldaps' ? LDAPS_PORT : LDAP_PORT);
  options.baseDn = percentDecode(parts[0] as string);
  options.scope = scope;
  const attribute = percentDecode((parts[1] ?? '').split(',')[0] as string);
  if (attribute !== '') options.searchAttribute = attribute;
  const filter = percentDecode(parts[3] ?? '');
  if (filter !== '') options.searchFilter = filter;
  return null;
}

/** @returns null, or the error */
function setOption(options: LdapOptions, key: string, value: string): string | null {
  switch (key) {
    case 'ldaptls':
      options.tls = value === '1';
      return null;
    case 'ldapscheme':
      if (value !== 'ldap' && value !== 'ldaps') return `invalid ldapscheme value: "${value}"`;
      options.scheme = value;
      return null;
    case 'ldapport': {
      const port = Number(/^[0-9]+/.exec(value)?.[0] ?? 0);
      if (port === 0 || port > 65535) return `invalid LDAP port number: "${value}"`;
      options.port = port;
      return null;
    }
    case 'ldapserver':
      options.server = value;
      return null;
    case 'ldapbinddn':
      options.bindDn = value;
      return null;
    case 'ldapsearchattribute':
      options.searchAttribute = value;
      return null;
    case 'ldapsearchfilter':
      options.searchFilter = value;
      return null;
    case 'ldapbasedn':
      options.baseDn = value;
      return null;
    case 'ldapbindpasswd':
      options.bindPasswd = value;
      return null;
    case 'ldapprefix':
      options.prefix = value;
      return null;
    case 'ldapsuffix':
      options.suffix = value;
      return null;
    case 'ldapurl':
      return parseLdapUrl(options, value);
    default:
      return `invalid LDAP option: "${key}"`;
  }
}

/** Checks that the options either bind directly or search first, without mixing the two. @returns null, or the error */
function validate(options: LdapOptions): string | null {
  if (options.prefix !== null || options.suffix !== null) {
    const search = [options.baseDn, options.bindDn, options.bindPasswd, options.searchAttribute, options.searchFilter];
    if (search.some((option) => option !== null)) return 'cannot mix options for simple bind and search+bind modes';
  } else if (options.baseDn === null) {
    return 'authentication method "ldap" requires argument "ldapbasedn", "ldapprefix", or "ldapsuffix" to be set';
  }
  if (options.searchAttribute !== null && options.searchFilter !== null) {
    return 'cannot use ldapsearchattribute together with ldapsearchfilter';
  }
  if (options.server === '' && (options.baseDn ?? '') === '') return 'LDAP server not specified, and no ldapbasedn';
  return null;
}

/** The result of parseLdapOptions(): options or an error, and the part that was ignored. */
export interface LdapParse {
  options: LdapOptions | null;
  /** error text for the log if there are no options */
  error: string;
  /** the part at the end that is not key=value; PgBouncer ignores it without a message */
  rest: string;
}

/** Parses the text of the options. */
export function parseLdapOptions(given: string): LdapParse {
  const text = given.replace(/[ \t-\r]+$/, '');
  const options: LdapOptions = {
    tls: false,
    scheme: 'ldap',
    server: '',
    port: 0,
    baseDn: null,
    bindDn: null,
    bindPasswd: null,
    searchAttribute: null,
    searchFilter: null,
    scope: LdapScope.SUB,
    prefix: null,
    suffix: null,
  };
  if (text.length >= MAX_LDAP_CONFIG) {
    const error = `The LDAP options are longer than MAX_LDAP_CONFIG: ${MAX_LDAP_CONFIG}`;
    return { options: null, error, rest: '' };
  }
  let pos = 0;
  for (let pair = readPair(text, 0); pair !== null; pair = readPair(text, pos)) {
    const error = setOption(options, pair.key, pair.value);
    if (error !== null) return { options: null, error, rest: '' };
    pos = pair.next;
  }
  const error = validate(options);
  if (error !== null) return { options: null, error, rest: '' };
  if (options.port === 0) options.port = options.scheme === 'ldaps' ? LDAPS_PORT : LDAP_PORT;
  return { options, error: '', rest: trimSpace(text.slice(pos)) };
}
