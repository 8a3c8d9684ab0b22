/*
 * The variables that the pooler tracks per connection: which names are tracked, their values on each socket, and the
 * SET that gives a server its client's values.
 */

import { quoteNameList } from '../base/name-list';
import { asciiLower, detach, equalNoCase, hasNonAscii, parseWordList, pgQuoteLiteral } from '../base/strutil';
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

/** Positions of client_encoding and others in vars. */
export const enum Var {
  DATESTYLE = 0,
  CLIENT_ENCODING = 1,
  TIMEZONE = 2,
  STD_STRINGS = 3,
  APPNAME = 4,
  INTERVAL_STYLE = 6,
  SEARCH_PATH = 8,
}

/** So many variables have a varBit(). */
const VAR_BITS = 31;

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

/** What ServerVars.diff() changes. */
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

/** True for the variables that are kept per client. Letter case does not matter. */
export function isTracked(name: string): boolean {
  return lookup.has(asciiLower(name));
}

/** A bit for the variable; 0 = it is not tracked, or one of too many. */
export function varBit(name: string): number {
  const slot = lookup.get(asciiLower(name)) ?? VAR_BITS;
  return slot < VAR_BITS ? 1 << slot : 0;
}

/** True for the variables of which each client has a value. */
export function isAlwaysTracked(name: string): boolean {
  const slot = lookup.get(asciiLower(name));
  return slot !== undefined && slot < ALWAYS_TRACKED.length;
}

/** Values in a list of names are quoted one by one: as a single string, the list would be one name. */
function quoteValue(name: string, value: string): string {
  return equalNoCase(name, 'search_path') ? (quoteNameList(value) ?? pgQuoteLiteral(value)) : pgQuoteLiteral(value);
}

/** False for a list of names that is malformed, so that no SET could express it. */
export function isValidVar(name: string, value: string): boolean {
  return !equalNoCase(name, 'search_path') || quoteNameList(value) !== null;
}

/** Calls `each` for every variable that has a value, in order. */
export function varcacheEach(values: readonly (string | null)[], each: (name: string, value: string) => void): void {
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? null;
    if (value !== null) each(names[i] as string, value);
  }
}

/**
 * The numbers of the sets of values that clients have. It is emptied when clients have ever new sets; a set then gets
 * another number, and is compared value by value once more.
 */
const numbers = new Map<string, number>();
const NUMBERS_MAX = 2000;
const NUMBERED_LENGTH_MAX = 1024;
let lastNumber = 0;
/** In place of a number: the next call of number() finds one. */
const ASKED = -1;

/** The values that clients have begun with: most begin with the same. Bounded like the numbers. */
const beginnings = new Map<string, readonly (string | null)[]>();

/** A number that no other set of values has, or 0 if the values are too long to be kept. */
function numberOf(values: readonly (string | null)[]): number {
  const key = JSON.stringify(values);
  if (key.length > NUMBERED_LENGTH_MAX) return 0;
  const known = numbers.get(key);
  if (known !== undefined) return known;
  if (numbers.size >= NUMBERS_MAX) numbers.clear();
  numbers.set(key, ++lastNumber);
  return lastNumber;
}

/** The tracked variables of a connection. */
export class VarCache {
  /** in the order of varNames(); null = unset, or not reported */
  protected readonly current: (string | null)[] = names.map(() => null);
  /** see number(); ASKED = it has been called once; 0 = not since the values have changed */
  private ownNumber = 0;
  /** see dateKey(); null = not known since the values have changed */
  private ownDateKey: string | null = null;

  /** The values in the order of varNames(); null = unset. */
  get values(): readonly (string | null)[] {
    return this.current;
  }

  get(variable: Var): string | null {
    return this.current[variable] ?? null;
  }

  /** Stores a value: the only place that does. */
  protected put(slot: number, value: string | null): void {
    this.current[slot] = value;
    this.ownNumber = 0;
    this.ownDateKey = null;
  }

  /**
   * Identifies the values: connections with the same number have the same values. 0 = they have no number, because they
   * are too long; or not yet, because this is the first call: a connection for a single query does without.
   */
  number(): number {
    if (this.ownNumber === ASKED) this.ownNumber = numberOf(this.current);
    else if (this.ownNumber === 0) this.ownNumber = ASKED;
    return this.knownNumber();
  }

  /** As number(), if that has found one since the values have changed; else 0. */
  knownNumber(): number {
    return this.ownNumber === ASKED ? 0 : this.ownNumber;
  }

  /** The values by which PostgreSQL reads dates, times and intervals, as one text. */
  dateKey(): string {
    if (this.ownDateKey !== null) return this.ownDateKey;
    const values = [Var.DATESTYLE, Var.TIMEZONE, Var.INTERVAL_STYLE].map((slot) => this.get(slot) ?? '');
    this.ownDateKey = intern(asciiLower(values.join('\n')));
    return this.ownDateKey;
  }

  /**
   * Stores a value if the variable is tracked; names are matched without regard to case.
   * @returns true if it is tracked and the value is not null
   */
  set(name: string, value: string | null): boolean {
    const slot = lookup.get(asciiLower(name));
    if (slot === undefined) return false;
    this.put(slot, value === null ? null : intern(value));
    return value !== null;
  }

  /** Like set(), for a client that is not logged in: the value is stored with its connection only. */
  setUnproven(name: string, value: string): boolean {
    const slot = lookup.get(asciiLower(name));
    if (slot === undefined) return false;
    this.put(slot, value);
    return true;
  }

  /** Replaces equal values by one string object, when a client has logged in. */
  intern(): void {
    for (let i = 0; i < this.current.length; i++) {
      const value = this.current[i] ?? null;
      if (value !== null) this.put(i, intern(value));
    }
  }

  /** Fills the client's unset variables with the server's defaults, if PgBouncer has always tracked them. */
  fillUnset(defaults: VarCache): void {
    for (let i = 0; i < ALWAYS_TRACKED.length; i++)
      if (this.current[i] === null) this.put(i, defaults.current[i] ?? null);
  }

  /** The values of a client before fillUnset(), for restoreStartup(); null = none. Clients share equal ones. */
  startup(): readonly (string | null)[] | null {
    if (this.current.every((value) => value === null)) return null;
    const key = JSON.stringify(this.current);
    const known = beginnings.get(key);
    if (known !== undefined) return known;
    const values = this.current.slice();
    if (key.length > NUMBERED_LENGTH_MAX) return values;
    if (beginnings.size >= NUMBERS_MAX) beginnings.clear();
    beginnings.set(key, values);
    return values;
  }

  /**
   * After RESET or DISCARD ALL, gives variables that have the server's defaults now the values of the startup packet.
   * @param values startup()
   * @param changed varBit(), or'ed, of the variables that the server has reported
   * @param restored called for each variable
   */
  restoreStartup(
    values: readonly (string | null)[],
    defaults: VarCache,
    changed: number,
    restored: (name: string, value: string) => void,
  ): void {
    for (let i = 0; i < values.length && i < VAR_BITS; i++) {
      const value = values[i] ?? null;
      if (value === null || (changed & (1 << i)) === 0 || value === this.current[i]) continue;
      // RESET means another user there, not a value
      if (this.current[i] !== defaults.current[i] || names[i] === 'session_authorization') continue;
      this.put(i, value);
      restored(names[i] as string, value);
    }
  }

  /** Appends names and values to a startup packet: replication connections cannot use SET. */
  applyStartup(pkt: PktBuf): void {
    varcacheEach(this.current, (name, value) => {
      pkt.putString(name);
      pkt.putString(value);
    });
  }

  /**
   * Adopts the server's spelling of every value, after SET succeeded.
   * @param changed called for each value that the server spells differently
   */
  adoptSpelling(server: ServerVars, changed: (name: string, from: string, to: string) => void): void {
    for (let i = 0; i < this.current.length; i++) {
      const s = server.current[i] ?? null;
      const c = this.current[i] ?? null;
      if (s === null || c === null || s === c) continue;
      changed(names[i] as string, c, s);
      this.put(i, s);
    }
  }
}

/** The tracked variables of a server connection. */
export class ServerVars extends VarCache {
  /** VarBit, or'ed, of each variable */
  private readonly bitsOf: number[] = names.map(() => 0);
  /** the number of the values of clients that need no SET; 0 = not known since something has changed */
  private matched = 0;

  /** VarBit, or'ed, of each variable. */
  get bits(): readonly number[] {
    return this.bitsOf;
  }

  protected override put(slot: number, value: string | null): void {
    this.matched = 0;
    super.put(slot, value);
  }

  private putBits(slot: number, bits: number): void {
    this.matched = 0;
    this.bitsOf[slot] = bits;
  }

  /**
   * Stores a value that the server has reported.
   * @param changed false if it is the server's default: at its login, after a reload of its config
   * @returns true if it is tracked
   */
  report(name: string, value: string, changed: boolean): boolean {
    if (!this.set(name, value)) return false;
    const slot = lookup.get(asciiLower(name)) as number;
    this.putBits(slot, (this.bitsOf[slot] ?? 0) | VarBit.REPORTED | (changed ? VarBit.CHANGED : 0));
    return true;
  }

  /** Stores the bits of a variable, in a handover. */
  setBits(name: string, bits: number): void {
    const slot = lookup.get(asciiLower(name));
    if (slot !== undefined) this.putBits(slot, bits);
  }

  /** True if the server has the client's values: no SET is needed. On the hot path. */
  matches(client: VarCache): boolean {
    const number = client.knownNumber();
    if (number !== 0 && number === this.matched) return true;
    if (!this.hasValuesOf(client)) return false;
    this.matched = client.number();
    return true;
  }

  private hasValuesOf(client: VarCache): boolean {
    const { current, bitsOf } = this;
    for (let i = 0; i < current.length; i++) {
      const c = client.values[i];
      if (c === null && i >= ALWAYS_TRACKED.length) {
        if (((bitsOf[i] as number) & VarBit.CHANGED) !== 0) return false;
      } else if (c !== current[i]) return false;
    }
    return true;
  }

  /**
   * A server reads a whole query in the encoding that it had before. So if the client has another encoding and values that
   * are not ASCII, this statement must precede those of diff() as a query of its own. '' = not needed
   */
  encodingQuery(client: VarCache): string {
    const c = client.get(Var.CLIENT_ENCODING);
    const s = this.get(Var.CLIENT_ENCODING);
    if (c === null || c === s || (s !== null && equalNoCase(c, s))) return '';
    return client.values.some((value) => value !== null && hasNonAscii(value))
      ? `SET client_encoding=${pgQuoteLiteral(c)};`
      : '';
  }

  /**
   * The SET and RESET statements that give the server the client's values, or '' if none are needed. What the server does
   * not report is stored here; if the statements fail, see restore().
   * @param defaults the values that connect_query has left, which RESET would lose; null without it
   * @param recoded after encodingQuery(): bytes that are not ASCII had another meaning before
   */
  diff(client: VarCache, defaults: VarCache | null, recoded = false): string {
    let sql = '';
    for (let i = 0; i < this.current.length; i++) {
      const c = client.values[i] ?? null;
      const s = this.current[i] ?? null;
      const name = names[i] as string;
      const bits = this.bitsOf[i] as number;
      if (c === null) {
        if (i < ALWAYS_TRACKED.length || (bits & VarBit.CHANGED) === 0) continue;
        const value = defaults?.values[i] ?? null;
        sql += value === null ? `RESET ${name};` : `SET ${name}=${quoteValue(name, value)};`;
        this.putBits(i, bits & ~VarBit.CHANGED);
      } else {
        // every server reports those that were always tracked: they are unset only until it has done so
        if (s === null && i < ALWAYS_TRACKED.length) continue;
        const same = c === s || (s !== null && caseless[i] === true && equalNoCase(c, s));
        const other = recoded && hasNonAscii(c);
        if (same && !other) continue;
        // if the server has this value already, it does not report it
        if (other) this.put(i, c);
        sql += `SET ${name}=${quoteValue(name, c)};`;
        this.putBits(i, bits | VarBit.CHANGED);
      }
      if (i >= ALWAYS_TRACKED.length && (bits & VarBit.REPORTED) === 0) this.put(i, c);
    }
    return sql;
  }

  /** The variables before diff(). */
  save(): VarsUndo {
    return { vars: this.current.slice(), varBits: this.bitsOf.slice() };
  }

  /**
   * The server has rejected the statements of diff(), and has rolled back those before the rejected one: they are one
   * transaction. It reports the values that it reports, so only the others are restored.
   */
  restore(undo: VarsUndo): void {
    for (let i = ALWAYS_TRACKED.length; i < this.current.length; i++) {
      const reported = (this.bitsOf[i] as number) & VarBit.REPORTED;
      this.putBits(i, ((undo.varBits[i] as number) & VarBit.CHANGED) | reported);
      if (reported === 0) this.put(i, undo.vars[i] ?? null);
    }
  }

  /**
   * A query runs that may change variables without a report.
   * @param reset true if it has set all variables to their defaults, false if that is unknown
   */
  forget(reset: boolean): void {
    for (let i = ALWAYS_TRACKED.length; i < this.current.length; i++) {
      const bits = this.bitsOf[i] as number;
      if ((bits & VarBit.REPORTED) === 0) this.put(i, null);
      if (reset) this.putBits(i, bits & ~VarBit.CHANGED);
    }
  }
}
