/*
 * Fuzz targets of texts from files and from the console. Most of them print the parsed result in the plainest form and
 * parse that again, which must give the same result.
 */

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { parseQuery, QueryKind } from '../../src/admin/parse';
import { findBrokenLines, loadAuthFile } from '../../src/core/config/authfile';
import { parseConnstr } from '../../src/core/config/connstr';
import { parseIdent } from '../../src/core/config/ident';
import { type IniHandler, parseIniFile } from '../../src/core/config/ini';
import { parseLdapOptions } from '../../src/core/config/ldap-options';
import { parseDatabase, parsePeer, parseUser } from '../../src/core/config/records';
import { tempDir } from '../harness/machine';
import type { Target } from './engine';

const dir = tempDir('fuzz');
const path = join(dir, 'input');

function file(text: string): string {
  writeFileSync(path, Buffer.from(text, 'latin1'));
  return path;
}

/** Avoids reading files outside the test, some of which are endless. */
const elsewhere = (text: string) => /(@|include[ \t]+)["']*[./]/.test(text);

/* ---- ini ---- */

type IniEvent = [section: string] | [key: string, value: string];

function readIni(text: string, continueOnError: boolean): { events: IniEvent[]; whole: boolean } {
  const events: IniEvent[] = [];
  const handler: IniHandler = {
    continueOnError,
    section: (name, _file, line) => {
      assert.ok(line >= 1);
      events.push([name]);
      return true;
    },
    value: (key, value) => {
      events.push([key, value]);
      return true;
    },
  };
  return { events, whole: parseIniFile(file(text), handler) };
}

function printIni(events: readonly IniEvent[]): string {
  const quote = (key: string) => (key === '' ? '' : `"${key.replaceAll('"', '""')}"`);
  return events.map(([name, value]) => (value === undefined ? `[${name}]` : `${quote(name)} = ${value}`)).join('\n');
}

const ini: Target = {
  name: 'ini',
  cases: 800,
  words: [
    '[',
    ']',
    '=',
    '\n',
    '\r\n',
    ';',
    '#',
    "'",
    '"',
    '""',
    '%include ',
    '%include\t',
    ' ',
    '\t',
    '\0',
    'key',
    '*',
  ],
  run(input) {
    const text = input.toString('latin1');
    if (elsewhere(text)) return;
    const { events, whole } = readIni(text, false);
    const again = readIni(printIni(events), false);
    assert.deepEqual(again, { events, whole: true });
    // a parse that continues after errors finds at least as much
    if (text.includes('%include')) return;
    const all = readIni(text, true);
    assert.deepEqual(all.events.slice(0, events.length), events);
    if (whole) assert.deepEqual(all.events, events);
  },
};

/* ---- connect strings ---- */

const quoteValue = (value: string) => `'${value.replaceAll("'", "''")}'`;

const connstr: Target = {
  name: 'connstr',
  cases: 15_000,
  words: ["'", "''", '=', ' ', 'host=', 'port=', 'user=', 'password=', 'pool_mode=', 'dbname=', ',', '\\', '\0'],
  run(input) {
    const text = input.toString('latin1');
    const pairs = parseConnstr(text);
    if (pairs !== null) {
      const printed = pairs.map(([key, value]) => `${key}=${quoteValue(value)}`).join(' ');
      assert.deepEqual(parseConnstr(printed), pairs);
    }
    // each section makes a record of it, or an error
    for (const parse of [parseDatabase, parseUser, parsePeer]) {
      const record = parse('7', text);
      assert.ok(record === null || typeof record === 'object' || typeof record === 'string');
    }
  },
};

/* ---- auth_file ---- */

const authfile: Target = {
  name: 'authfile',
  cases: 800,
  words: ['"', '""', ' ', '\n', ';', '"user" "password"', 'SCRAM-SHA-256$', 'md5', '\t', '\r', '\0'],
  run(input) {
    const text = input.toString('latin1');
    const users = loadAuthFile(file(text), true) ?? [];
    const broken = findBrokenLines(path);
    const reloaded = loadAuthFile(path, false);
    if (broken.length > 0) assert.equal(reloaded, null);
    else assert.deepEqual(reloaded, users);
    const lines = text.split('\n').length;
    for (const { line } of broken) assert.ok(line >= 1 && line <= lines);
    const quote = (word: string) => `"${word.replaceAll('"', '""')}"`;
    const printed = users.map(({ name, passwd }) => `${quote(name)} ${quote(passwd)}`).join('\n');
    assert.deepEqual(loadAuthFile(file(printed), false), users);
  },
};

/* ---- ident ---- */

const quoteWord = (word: string) => `"${word.replaceAll('"', '""')}"`;

const ident: Target = {
  name: 'ident',
  cases: 15_000,
  words: ['"', '""', 'all', ',', '#', ' ', '\n', 'map', '\0', '\t'],
  run(input) {
    const maps = parseIdent(input.toString('latin1').split('\n'));
    const lines: string[] = [];
    for (const { name, mappings } of maps.values()) {
      for (const { systemUser, postgresUser } of mappings) {
        assert.ok(!/[\n\0]/.test(name + systemUser + postgresUser));
        lines.push(`${name} ${quoteWord(systemUser)} ${postgresUser === null ? 'all' : quoteWord(postgresUser)}`);
      }
    }
    assert.deepEqual(parseIdent(lines), maps);
  },
};

/* ---- LDAP ---- */

const ldap: Target = {
  name: 'ldap',
  cases: 15_000,
  words: [
    'ldapurl="',
    'ldap://',
    'ldaps://',
    '?',
    '/',
    ':',
    '[::1]',
    '%',
    '%00',
    '%41',
    '"',
    '""',
    ',',
    'ldapport=',
    'ldapserver=',
    'ldapport=65536',
    'ldap://x:65536/',
    'ldap://x:99999/',
  ],
  run(input) {
    const text = input.toString('latin1');
    const { options, error, rest } = parseLdapOptions(text);
    assert.equal(options === null, error !== '');
    assert.ok(text.includes(rest));
    if (options === null) return;
    assert.ok(Number.isInteger(options.port) && options.port > 0 && options.port <= 65535, `port ${options.port}`);
    assert.match(options.scheme, /^ldaps?$/);
    // the other notation has the same meaning, except for a scope, which only a URL can contain
    const printed = printLdap(options);
    if (printed.length >= 1024 || options.scope !== 'sub' || options.tls === null) return;
    assert.deepEqual(parseLdapOptions(printed).options, options, printed);
    // Node parses a plain host in the same way
    const url = /^ldapurl="(ldaps?:\/\/([a-z0-9.]+):([1-9][0-9]{0,4})\/[^"%?]*)"$/.exec(text.trim());
    if (url !== null && isIP(url[2] as string) === 0) assert.equal(options.server, new URL(url[1] as string).hostname);
  },
};

function printLdap(options: NonNullable<ReturnType<typeof parseLdapOptions>['options']>): string {
  const pairs: [string, string | null][] = [
    ['ldaptls', options.tls ? '1' : null],
    ['ldapscheme', options.scheme],
    ['ldapserver', options.server === '' ? null : options.server],
    ['ldapport', String(options.port)],
    ['ldapbasedn', options.baseDn === '' ? null : options.baseDn],
    ['ldapbinddn', options.bindDn],
    ['ldapbindpasswd', options.bindPasswd],
    ['ldapsearchattribute', options.searchAttribute],
    ['ldapsearchfilter', options.searchFilter],
    ['ldapprefix', options.prefix],
    ['ldapsuffix', options.suffix],
  ];
  const given = pairs.filter(([, value]) => value !== null);
  return given.map(([key, value]) => `${key}=${quoteWord(value as string)}`).join(' ');
}

/* ---- the console's commands ---- */

const WORD = '("(?:[^"]|"")*"|[0-9A-Za-z_]+)';
const VALUE = `(${WORD.slice(1, -1)}|'(?:[^']|'')*')`;
const NORMAL = new RegExp(`^[ \\t\\n\\r]*${WORD}(?:[ \\t\\n\\r]+${WORD})?[ \\t\\n\\r]*(?:;[ \\t\\n\\r]*)?$`);
const SET = new RegExp(
  `^[ \\t\\n\\r]*[sS][eE][tT][ \\t\\n\\r]+${WORD}[ \\t\\n\\r]*(?:=|[tT][oO])[ \\t\\n\\r]*${VALUE}[ \\t\\n\\r]*(?:;[ \\t\\n\\r]*)?$`,
);

const bare = (text: string) =>
  text.startsWith('"')
    ? text.slice(1, -1).replaceAll('""', '"')
    : text.startsWith("'")
      ? text.slice(1, -1).replaceAll("''", "'")
      : text;

/** The grammar as regular expressions, as in PgBouncer. */
function expectedQuery(text: string): { kind: QueryKind; name: string; arg: string } {
  const bad = { kind: QueryKind.BAD_ARGUMENTS, name: '', arg: '' };
  const normal = NORMAL.exec(text);
  if (normal !== null) {
    const [, name = '', arg = ''] = normal;
    return name.length >= 16 || arg.length >= 64 ? bad : { kind: QueryKind.COMMAND, name: bare(name), arg: bare(arg) };
  }
  const set = SET.exec(text);
  if (set === null) return { kind: QueryKind.SYNTAX_ERROR, name: '', arg: '' };
  const [, name = '', value = ''] = set;
  if (name.length >= 64 || value.length >= 256 || bare(name) === '') return bad;
  return { kind: QueryKind.SET, name: bare(name), arg: bare(value) };
}

const console_: Target = {
  name: 'console',
  cases: 20_000,
  words: ['SHOW ', 'SET ', ' TO ', '=', "'", "''", '"', '""', ';', ' ', 'KILL_CLIENT ', 'to', '\0', '\t', '_', '\n'],
  run(input) {
    const text = input.toString('latin1', 0, 3000);
    const found = parseQuery(text);
    assert.deepEqual({ ...found }, expectedQuery(text));
  },
};

mkdirSync(dir, { recursive: true });

export const textTargets: readonly Target[] = [ini, connstr, authfile, ident, ldap, console_];
