/*
 * The server variables that travel with a client: which ones are tracked, their values on each socket, and the SET
 * that makes a server match the client it is about to serve.
 */
import { asciiLower, detach, equalNoCase, parseWordList, pgQuoteLiteral } from '../base/strutil';
import type { PktBuf } from '../wire/pktbuf';

const STATIC_NAMES = ['DateStyle', 'client_encoding', 'TimeZone', 'standard_conforming_strings', 'application_name'];

/** tracked names in the order of SET and ParameterStatus; index = slot in a socket's vars */
let names: string[] = [];
const lookup = new Map<string, number>();

/** Index of client_encoding and friends in vars, for the rows of SHOW FDS. */
export const enum Var {
  DATESTYLE = 0,
  CLIENT_ENCODING = 1,
  TIMEZONE = 2,
  STD_STRINGS = 3,
  APPNAME = 4,
}

/**
 * Fixes the set of tracked variables for the life of the process.
 * @param extra the setting track_extra_parameters, comma separated
 */
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
 * One string object per value: comparing a client's variables with a server's is then comparing pointers. Only values of
 * servers and of clients that have logged in are kept, and no long ones. Emptied when clients make up ever new values; those
 * in use only lose the shortcut.
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

/** A fresh set of values, all unset. */
export function newVarCache(): (string | null)[] {
  const vars: (string | null)[] = [];
  for (let i = 0; i < names.length; i++) vars.push(null);
  return vars;
}

/**
 * Stores a value if the variable is tracked; names are matched without regard to case.
 * @returns true when it is tracked and the value is not null
 */
export function varcacheSet(vars: (string | null)[], name: string, value: string | null): boolean {
  const slot = lookup.get(asciiLower(name));
  if (slot === undefined) return false;
  vars[slot] = value === null ? null : intern(value);
  return value !== null;
}

/** Likewise for a client that is not logged in: what it says is kept with its connection and nowhere else. */
export function varcacheSetUnproven(vars: (string | null)[], name: string, value: string): boolean {
  const slot = lookup.get(asciiLower(name));
  if (slot === undefined) return false;
  vars[slot] = value;
  return true;
}

/** Gives equal values one string object, when a client has logged in. */
export function internVars(vars: (string | null)[]): void {
  for (let i = 0; i < vars.length; i++) {
    const value = vars[i] ?? null;
    if (value !== null) vars[i] = intern(value);
  }
}

/** True when both sets agree in every variable that both know: the hot path's question. */
export function varcacheMatches(server: (string | null)[], client: (string | null)[]): boolean {
  for (let i = 0; i < server.length; i++) {
    const c = client[i];
    const s = server[i];
    if (c !== s && c !== null && s !== null) return false;
  }
  return true;
}

/** search_path is reported quoted already, so quoting it again would change its meaning. */
function quoteValue(name: string, value: string): string {
  if (!equalNoCase(name, 'search_path')) return pgQuoteLiteral(value);
  return value === '""' ? "''" : value;
}

/**
 * The SET statements that turn the server's variables into the client's, or '' when nothing differs. Values that
 * differ only in case are left alone.
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
 * @param changed told of each value that the server spells differently
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

/** Fills what the client left unset from the server's defaults. */
export function varcacheFillUnset(defaults: (string | null)[], client: (string | null)[]): void {
  for (let i = 0; i < defaults.length; i++) {
    if (client[i] === null) client[i] = defaults[i] ?? null;
  }
}

/** Calls back for every variable that has a value, in order. */
export function varcacheEach(vars: (string | null)[], each: (name: string, value: string) => void): void {
  for (let i = 0; i < vars.length; i++) {
    const value = vars[i] ?? null;
    if (value !== null) each(names[i] as string, value);
  }
}

/** Appends name and value strings for a startup packet (replication connections cannot be SET). */
export function varcacheApplyStartup(pkt: PktBuf, vars: (string | null)[]): void {
  varcacheEach(vars, (name, value) => {
    pkt.putString(name);
    pkt.putString(value);
  });
}
