/*
 * The variables that the pooler tracks per connection: which names are tracked, their values on each socket, and the
 * SET that gives a server its client's values.
 */

import { quoteNameList } from '../base/name-list';
import { asciiLower, detach, equalNoCase, parseWordList, pgQuoteLiteral } from '../base/strutil';
import type { PktBuf } from '../wire/pktbuf';

/** Names that every version of PgBouncer tracks. Every server reports them. */
const ALWAYS_TRACKED = ['DateStyle', 'client_encoding', 'TimeZone', 'standard_conforming_strings', 'application_name'];
/**
 * Names that PgBouncer 1.26 has added: the other variables that PostgreSQL reports and a client can set. Older servers
 * do not report default_transaction_read_only (before 14), scram_iterations (before 16) and search_path (before 18).
 */
const TRACKED_SINCE_1_26 = [
  'default_transaction_read_only',
  'IntervalStyle',
  'scram_iterations',
  'search_path',
  'session_authorization',
];

/** In lower case: names whose values mean the same in upper and lower case, so that no SET is needed. */
const CASELESS = [
  'client_encoding',
  'datestyle',
  'default_transaction_read_only',
  'intervalstyle',
  'standard_conforming_strings',
  'timezone',
];

/** tracked names in the order of SET and ParameterStatus; index = position in a socket's vars */
let names: string[] = [];
/** for each of them, whether upper and lower case mean the same */
let caseless: boolean[] = [];
const lookup = new Map<string, number>();
/** names that ignore_startup_parameters cannot hide, in lower case */
const configured = new Set<string>();

/** Positions of client_encoding and others in vars, for the rows of SHOW FDS. */
export const enum Var {
  DATESTYLE = 0,
  CLIENT_ENCODING = 1,
  TIMEZONE = 2,
  STD_STRINGS = 3,
  APPNAME = 4,
}

/**
 * What is known about a server's variable besides its value. Not for those that PgBouncer has always tracked: clients
 * have a value for each of these, the default of the time of their login.
 */
export const enum VarBit {
  /** the server reports its changes */
  REPORTED = 1,
  /** it was SET since it had the server's default, which a client without a value of its own gets by RESET */
  CHANGED = 2,
}

/** The variables of a server connection. */
interface ServerVars {
  /** null = unknown: not reported */
  readonly vars: (string | null)[];
  /** VarBit, or'ed */
  readonly varBits: number[];
}

/** What varcacheDiff() changes of a server. */
export interface VarsUndo {
  readonly vars: readonly (string | null)[];
  readonly varBits: readonly number[];
}

/** Sets the tracked variables of the process, once. @param extra the setting track_extra_parameters, comma-separated */
export function initVarLookup(extra: string): void {
  const words = parseWordList(extra);
  names = [];
  lookup.clear();
  configured.clear();
  for (const name of [...ALWAYS_TRACKED, ...words]) configured.add(asciiLower(name));
  for (const name of [...ALWAYS_TRACKED, ...TRACKED_SINCE_1_26, ...words]) {
    const key = asciiLower(name);
    if (name === '' || lookup.has(key)) continue;
    lookup.set(key, names.length);
    names.push(name);
  }
  caseless = names.map((name) => CASELESS.includes(asciiLower(name)));
}

export function varNames(): readonly string[] {
  return names;
}

/**
 * True for the variables that a client sets in its startup packet even if ignore_startup_parameters lists them. Those
 * that came with 1.26 are not among them: a config that ignores them goes on ignoring them.
 */
export function isConfiguredVar(name: string): boolean {
  return configured.has(asciiLower(name));
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

/** A new set of bits for newVarCache(). */
export function newVarBits(): number[] {
  return names.map(() => 0);
}

/** True for the variables of which each client has a value. */
export function isAlwaysTracked(name: string): boolean {
  const slot = lookup.get(asciiLower(name));
  return slot !== undefined && slot < ALWAYS_TRACKED.length;
}

/**
 * Stores a value that a server has reported.
 * @param changed false if it is the server's default: at its login, after a reload of its config
 * @returns true if it is tracked
 */
export function varcacheReport(server: ServerVars, name: string, value: string, changed: boolean): boolean {
  if (!varcacheSet(server.vars, name, value)) return false;
  const slot = lookup.get(asciiLower(name)) as number;
  server.varBits[slot] = (server.varBits[slot] ?? 0) | VarBit.REPORTED | (changed ? VarBit.CHANGED : 0);
  return true;
}

/** Stores the bits of a variable, in a handover. */
export function varcacheSetBits(bits: number[], name: string, value: number): void {
  const slot = lookup.get(asciiLower(name));
  if (slot !== undefined) bits[slot] = value;
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

/** True if the server has the client's values: no SET is needed. On the hot path. */
export function varcacheMatches(server: ServerVars, client: (string | null)[]): boolean {
  const { vars, varBits } = server;
  for (let i = 0; i < vars.length; i++) {
    const c = client[i];
    if (c === null && i >= ALWAYS_TRACKED.length) {
      if (((varBits[i] as number) & VarBit.CHANGED) !== 0) return false;
    } else if (c !== vars[i]) return false;
  }
  return true;
}

/**
 * The SET and RESET statements that give the server the client's values, or '' if none are needed. What the server does
 * not report is stored here; if the statements fail, see varcacheRestore().
 * @param defaults the values that connect_query has left, which RESET would lose; null without it
 */
export function varcacheDiff(
  server: ServerVars,
  client: readonly (string | null)[],
  defaults: readonly (string | null)[] | null,
): string {
  const { vars, varBits } = server;
  let sql = '';
  for (let i = 0; i < vars.length; i++) {
    const c = client[i] ?? null;
    const s = vars[i] ?? null;
    const name = names[i] as string;
    const bits = varBits[i] as number;
    if (c === null) {
      if (i < ALWAYS_TRACKED.length || (bits & VarBit.CHANGED) === 0) continue;
      const value = defaults?.[i] ?? null;
      sql += value === null ? `RESET ${name};` : `SET ${name}=${quoteValue(name, value)};`;
      varBits[i] = bits & ~VarBit.CHANGED;
    } else {
      // every server reports those that were always tracked: they are unset only until it has done so
      if (c === s || (s === null && i < ALWAYS_TRACKED.length)) continue;
      if (s !== null && caseless[i] && equalNoCase(c, s)) continue;
      sql += `SET ${name}=${quoteValue(name, c)};`;
      varBits[i] = bits | VarBit.CHANGED;
    }
    if (i >= ALWAYS_TRACKED.length && (bits & VarBit.REPORTED) === 0) vars[i] = c;
  }
  return sql;
}

/** The variables of a server before varcacheDiff(). */
export function varcacheSave({ vars, varBits }: ServerVars): VarsUndo {
  return { vars: vars.slice(), varBits: varBits.slice() };
}

/**
 * The server has rejected the statements of varcacheDiff(), and has rolled back those before the rejected one: they are
 * one transaction. It reports the values that it reports, so only the others are restored.
 */
export function varcacheRestore({ vars, varBits }: ServerVars, undo: VarsUndo): void {
  for (let i = ALWAYS_TRACKED.length; i < vars.length; i++) {
    const reported = (varBits[i] as number) & VarBit.REPORTED;
    varBits[i] = ((undo.varBits[i] as number) & VarBit.CHANGED) | reported;
    if (reported === 0) vars[i] = undo.vars[i] ?? null;
  }
}

/** Values in a list of names are quoted one by one: as a single string, the list would be one name. */
function quoteValue(name: string, value: string): string {
  return equalNoCase(name, 'search_path') ? (quoteNameList(value) ?? pgQuoteLiteral(value)) : pgQuoteLiteral(value);
}

/** False for a list of names that is malformed, so that no SET could express it. */
export function isValidVar(name: string, value: string): boolean {
  return !equalNoCase(name, 'search_path') || quoteNameList(value) !== null;
}

/**
 * A query runs that may change variables without a report.
 * @param reset true if it has set all variables to their defaults, false if that is unknown
 */
export function varcacheForget(server: ServerVars, reset: boolean): void {
  const { vars, varBits } = server;
  for (let i = ALWAYS_TRACKED.length; i < vars.length; i++) {
    const bits = varBits[i] as number;
    if ((bits & VarBit.REPORTED) === 0) vars[i] = null;
    if (reset) varBits[i] = bits & ~VarBit.CHANGED;
  }
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

/** Fills the client's unset variables with the server's defaults, if PgBouncer has always tracked them. */
export function varcacheFillUnset(defaults: readonly (string | null)[], client: (string | null)[]): void {
  for (let i = 0; i < ALWAYS_TRACKED.length; i++) client[i] ??= defaults[i] ?? null;
}

/** Calls `each` for every variable that has a value, in order. */
export function varcacheEach(vars: readonly (string | null)[], each: (name: string, value: string) => void): void {
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
