/*
 * The variables that the pooler tracks per connection: which names are tracked, their values on each socket, and the
 * SET that gives a server its client's values.
 */
import { asciiLower, detach, equalNoCase, parseWordList, pgQuoteLiteral } from '../base/strutil';
import type { PktBuf } from '../wire/pktbuf';

const STATIC_NAMES = ['DateStyle', 'client_encoding', 'TimeZone', 'standard_conforming_strings', 'application_name'];

/** tracked names in the order of SET and ParameterStatus; index = position in a socket's vars */
let names: string[] = [];
const lookup = new Map<string, number>();

/** Positions of client_encoding and others in vars, for the rows of SHOW FDS. */
export const enum Var {
  DATESTYLE = 0,
  CLIENT_ENCODING = 1,
  TIMEZONE = 2,
  STD_STRINGS = 3,
  APPNAME = 4,
}

/** Sets the tracked variables of the process, once. @param extra the setting track_extra_parameters, comma-separated */
export function initVarLookup(extra: string): void {
  const words = parseWordList(extra);
  names = [];
  lookup.clear();
  for (const name of [...STATIC_NAMES, ...words]) {
    const key = asciiLower(name);
    if (name === '' || lookup.has(key)) continue;
    lookup.set(key, names.length);
    names.push(name);
  }
}

export function varNames(): readonly string[] {
  return names;
}

/**
 * One string object per value, so that comparing a client's variables with a server's only compares pointers. It
 * contains short values only, of servers and of logged-in clients. It is emptied when clients set ever new values;
 * values in use then only lose the fast path.
 */
const interned = new Map<string, string>();
const INTERNED_MAX = 2000;
const INTERNED_LENGTH_MAX = 256;

function intern(value: string): string {
  if (value.length > INTERNED_LENGTH_MAX) return value;
  const known = interned.get(value);
  if (known !== undefined) return known;
  if (interned.size >= INTERNED_MAX) interned.clear();
  const own = detach(value);
  interned.set(own, own);
  return own;
}

/** A new set of values, all unset. */
export function newVarCache(): (string | null)[] {
  const vars: (string | null)[] = [];
  for (let i = 0; i < names.length; i++) vars.push(null);
  return vars;
}

/** True for the variables that are kept per client. Letter case does not matter. */
export function isTracked(name: string): boolean {
  return lookup.has(asciiLower(name));
}

/**
 * Stores a value if the variable is tracked; names are matched without regard to case.
 * @returns true if it is tracked and the value is not null
 */
export function varcacheSet(vars: (string | null)[], name: string, value: string | null): boolean {
  const slot = lookup.get(asciiLower(name));
  if (slot === undefined) return false;
  vars[slot] = value === null ? null : intern(value);
  return value !== null;
}

/** Like varcacheSet(), for a client that is not logged in: the value is stored with its connection only. */
export function varcacheSetUnproven(vars: (string | null)[], name: string, value: string): boolean {
  const slot = lookup.get(asciiLower(name));
  if (slot === undefined) return false;
  vars[slot] = value;
  return true;
}

/** Replaces equal values by one string object, when a client has logged in. */
export function internVars(vars: (string | null)[]): void {
  for (let i = 0; i < vars.length; i++) {
    const value = vars[i] ?? null;
    if (value !== null) vars[i] = intern(value);
  }
}

/** True if both sets agree on every variable that both have. On the hot path. */
export function varcacheMatches(server: (string | null)[], client: (string | null)[]): boolean {
  for (let i = 0; i < server.length; i++) {
    const c = client[i];
    const s = server[i];
    if (c !== s && c !== null && s !== null) return false;
  }
  return true;
}

/** search_path is reported already quoted: quoting it again would change its meaning. */
function quoteValue(name: string, value: string): string {
  if (!equalNoCase(name, 'search_path')) return pgQuoteLiteral(value);
  return value === '""' ? "''" : value;
}

/**
 * The SET statement that gives the server the client's values, or '' if they agree. Values that differ only in case are
 * left alone.
 */
export function varcacheDiff(server: (string | null)[], client: (string | null)[]): string {
  let sql = '';
  for (let i = 0; i < server.length; i++) {
    const c = client[i] ?? null;
    const s = server[i] ?? null;
    if (c === null || s === null || c === s || equalNoCase(c, s)) continue;
    const name = names[i] as string;
    sql += `SET ${name}=${quoteValue(name, c)};`;
  }
  return sql;
}

/**
 * Copies the server's spelling of every value to the client, after SET succeeded.
 * @param changed called for each value that the server spells differently
 */
export function varcacheSetCanonical(
  server: (string | null)[],
  client: (string | null)[],
  changed: (name: string, from: string, to: string) => void,
): void {
  for (let i = 0; i < server.length; i++) {
    const s = server[i] ?? null;
    const c = client[i] ?? null;
    if (s === null || c === null || s === c) continue;
    changed(names[i] as string, c, s);
    client[i] = s;
  }
}

/** Fills the client's unset variables with the server's defaults. */
export function varcacheFillUnset(defaults: (string | null)[], client: (string | null)[]): void {
  for (let i = 0; i < defaults.length; i++) {
    if (client[i] === null) client[i] = defaults[i] ?? null;
  }
}

/** Calls `each` for every variable that has a value, in order. */
export function varcacheEach(vars: (string | null)[], each: (name: string, value: string) => void): void {
  for (let i = 0; i < vars.length; i++) {
    const value = vars[i] ?? null;
    if (value !== null) each(names[i] as string, value);
  }
}

/** Appends names and values to a startup packet: replication connections cannot use SET. */
export function varcacheApplyStartup(pkt: PktBuf, vars: (string | null)[]): void {
  varcacheEach(vars, (name, value) => {
    pkt.putString(name);
    pkt.putString(value);
  });
}
