/*
 * What drivers send to the console as to any server: SET and SHOW of PostgreSQL's parameters. SET is accepted without
 * effect, SHOW returns PostgreSQL's default.
 */

import { asciiLower, equalNoCase, trimSpace } from '../core/base/strutil';
import type { ClientSocket } from '../core/pool/bouncer';
import { writeNotice } from '../core/wire/messages';
import { pktbufTemp } from '../core/wire/pktbuf';
import { type ParsedQuery, parseQuery, parseReconnectClients, QueryKind } from './parse';
import { adminFlush } from './reply';

interface FakeParam {
  readonly name: string;
  readonly value: string;
}

/**
 * The parameters that drivers, ORMs and tools set when they connect. Names of the pooler's own settings are not among
 * them, and neither are those on which security depends (role, session_authorization, row_security). An unknown name
 * stays an error: it may be a misspelt setting.
 */
const fakeParams: readonly FakeParam[] = [
  { name: 'client_encoding', value: 'UTF-8' },
  { name: 'default_transaction_isolation', value: 'read committed' },
  { name: 'standard_conforming_strings', value: 'on' },
  { name: 'datestyle', value: 'ISO' },
  { name: 'timezone', value: 'GMT' },
  // JDBC, psycopg, Rails, Npgsql
  { name: 'extra_float_digits', value: '1' },
  { name: 'application_name', value: '' },
  { name: 'client_min_messages', value: 'notice' },
  { name: 'intervalstyle', value: 'postgres' },
  { name: 'bytea_output', value: 'hex' },
  { name: 'search_path', value: '"$user", public' },
  { name: 'statement_timeout', value: '0' },
  { name: 'lock_timeout', value: '0' },
  { name: 'idle_in_transaction_session_timeout', value: '0' },
  { name: 'idle_session_timeout', value: '0' },
  { name: 'default_transaction_read_only', value: 'off' },
  { name: 'default_transaction_deferrable', value: 'off' },
  { name: 'transaction_isolation', value: 'read committed' },
  { name: 'transaction_read_only', value: 'off' },
  { name: 'synchronous_commit', value: 'on' },
  { name: 'synchronize_seqscans', value: 'on' },
  { name: 'xmloption', value: 'content' },
  { name: 'check_function_bodies', value: 'on' },
  { name: 'escape_string_warning', value: 'on' },
  { name: 'lc_messages', value: 'C' },
  { name: 'default_text_search_config', value: 'pg_catalog.simple' },
  { name: 'plan_cache_mode', value: 'auto' },
  { name: 'jit', value: 'on' },
  { name: 'geqo', value: 'on' },
  { name: 'work_mem', value: '4MB' },
];

export function findFake(word: string): FakeParam | undefined {
  return fakeParams.find((param) => equalNoCase(param.name, word));
}

/** SET of such a parameter is accepted without effect. @returns null for other parameters */
export function fakeSet(admin: ClientSocket, key: string): boolean | null {
  if (findFake(key) === undefined) return null;
  const buf = pktbufTemp();
  writeNotice(buf, 'SET ignored');
  return adminFlush(admin, buf, 'SET');
}

/** A word, number, string or quoted name, or a sign. */
const TOKEN = /[ \t\n\r]*(?:('(?:[^']|'')*'|"(?:[^"]|"")*"|[0-9A-Za-z_.+-]+)|([=,;]))/y;

/** Longer queries are not read as a driver's. */
const DRIVER_QUERY_MAX = 1024;

/** The tokens of a query, words in lower case, without a last semicolon; null if there is anything else in it. */
function tokensOf(query: string): string[] | null {
  if (query.length > DRIVER_QUERY_MAX) return null;
  const tokens: string[] = [];
  const text = trimSpace(query);
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < text.length; ) {
    const match = TOKEN.exec(text);
    if (match === null) return null;
    tokens.push(asciiLower(match[1] ?? (match[2] as string)));
  }
  if (tokens.at(-1) === ';') tokens.pop();
  return tokens;
}

function isSign(token: string): boolean {
  return token === '=' || token === ',' || token === ';';
}

/** True for values with commas between them. */
function isList(tokens: readonly string[]): boolean {
  return tokens.length % 2 === 1 && tokens.every((token, at) => (at % 2 === 0 ? !isSign(token) : token === ','));
}

/** The parameter that a SET in one of PostgreSQL's forms sets; null for other queries. @param rest the tokens after SET */
function parameterOfSet(rest: string[]): string | null {
  const [first] = rest;
  if (first === 'session' && rest[1] === 'characteristics') {
    const modes = rest.slice(4);
    const begins = rest[2] === 'as' && rest[3] === 'transaction';
    return begins && modes.length > 0 && !modes.includes(';') ? 'default_transaction_isolation' : null;
  }
  const [name, then, ...values] = first === 'session' || first === 'local' ? rest.slice(1) : rest;
  if (name === 'names') return then !== undefined && values.length === 0 && !isSign(then) ? 'client_encoding' : null;
  if (!isList(values)) return null;
  if (name === 'time' && then === 'zone') return values.length === 1 ? 'timezone' : null;
  return then === '=' || then === 'to' ? (name ?? null) : null;
}

/**
 * The parameter that a SHOW in one of PostgreSQL's forms shows; null for other queries.
 * @param rest the tokens after SHOW
 */
function parameterOfShow(rest: string[]): string | null {
  const words = rest.join(' ');
  if (words === 'transaction isolation level') return 'transaction_isolation';
  return words === 'time zone' ? 'timezone' : null;
}

/** Reads PostgreSQL's forms of SET and SHOW that the console's own grammar lacks. */
function parseDriverQuery(query: string): ParsedQuery | null {
  const [verb, ...rest] = tokensOf(query) ?? [];
  if (verb !== 'set' && verb !== 'show') return null;
  const name = verb === 'set' ? parameterOfSet(rest) : parameterOfShow(rest);
  if (name === null || findFake(name) === undefined) return null;
  return verb === 'set' ? { kind: QueryKind.SET, name, arg: '' } : { kind: QueryKind.COMMAND, name: verb, arg: name };
}

/** Reads a query by the console's grammar, or else as one of those that drivers send. */
export function readQuery(query: string): ParsedQuery {
  const clients = parseReconnectClients(query);
  if (clients !== null) return { kind: QueryKind.COMMAND, name: 'reconnect', arg: '', clients };
  const parsed = parseQuery(query);
  return parsed.kind === QueryKind.SYNTAX_ERROR ? (parseDriverQuery(query) ?? parsed) : parsed;
}
