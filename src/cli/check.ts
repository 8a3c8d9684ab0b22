/*
 * --check: loads the config file and all files it names, as a start would, but continues after an error, and reports
 * every problem with file and line. It binds, writes and changes nothing. PgBouncer has no such option.
 *
 * Most problems are the warnings and errors that the loaders log. The other files of --check find the rest:
 * certificates, folders, and settings that contradict each other.
 */

import { writeSync } from 'node:fs';
import { logState, strerror } from '../core/base/log';
import { native } from '../core/base/native';
import { type AuthFileUser, findBrokenLines, loadAuthFile, requiresAuthFile } from '../core/config/authfile';
import { AuthType } from '../core/config/choices';
import { loadHba, OPEN_CERT, openCertRules } from '../core/config/hba';
import { loadIdent } from '../core/config/ident';
import { type IniHandler, parseIniFile } from '../core/config/ini';
import { parseLdapOptions } from '../core/config/ldap-options';
import { applySettings, ConfigBuilder, finishConfig, type ParsedConfig } from '../core/config/loader';
import { cf } from '../core/config/settings';
import { connectAll } from './check-connect';
import { compareWithRunning } from './check-diff';
import { allDatabases } from './check-limits';
import { findWarnings } from './check-machine';
import { findCommandProblems } from './check-password';
import { findSystemProblems } from './check-system';
import { findDatabaseTlsProblems, findTlsProblems } from './check-tls';
import { oneLine } from './printable';

/** Log lines of this level or worse are problems. */
const WARNING = 2;
const STDOUT_FD = 1;
const STDERR_FD = 2;

interface Problem {
  file: string;
  /** 0 = the file as a whole */
  line: number;
  text: string;
  /** the config can be used as it is */
  isWarning: boolean;
}

/** What --check does besides, and how it prints. */
interface CheckOptions {
  /** from the command line, or null */
  user: string | null;
  /** do not print the summary */
  quiet: boolean;
  /** --connect */
  connect: boolean;
  /** --diff */
  diff: boolean;
}

/** One check of one config file. */
interface Check {
  configFile: string;
  problems: Problem[];
  /** where `section/key` is set; the last position if there are several */
  positions: Map<string, { file: string; line: number }>;
}

/** Runs `act` and returns the warnings and errors that it logged. */
function captureLog(act: () => void): string[] {
  const lines: string[] = [];
  const before = logState.sink;
  logState.sink = (level, message) => {
    if (level <= WARNING) lines.push(message);
  };
  try {
    act();
  } finally {
    logState.sink = before;
  }
  return lines;
}

function report(check: Check, file: string, line: number, text: string, isWarning = false): void {
  check.problems.push({ file, line, text, isWarning });
}

/** Reports a problem at the position of a setting, or for the file as a whole if the setting is absent. */
function reportAt(check: Check, key: string, text: string, isWarning = false): void {
  const position = check.positions.get(key) ?? { file: check.configFile, line: 0 };
  report(check, position.file, position.line, text, isWarning);
}

class CheckHandler implements IniHandler {
  readonly continueOnError = true;
  readonly draft = new ConfigBuilder();
  /** in an unknown section, whose lines are not checked */
  private inUnknownSection = false;

  constructor(private readonly check: Check) {}

  section(name: string, file: string, line: number): boolean {
    const known = this.capture(() => this.draft.section(name));
    this.inUnknownSection = !known.ok;
    if (!known.ok) report(this.check, file, line, `unknown section: [${name}]`);
    return true;
  }

  value(key: string, value: string, file: string, line: number): boolean {
    if (this.inUnknownSection) return true;
    const { ok, lines } = this.capture(() => this.draft.value(key, value, file, line));
    this.check.positions.set(`${this.draft.currentSection}/${key}`, { file, line });
    for (const text of lines) report(this.check, file, line, text, ok);
    if (!ok && lines.length === 0) report(this.check, file, line, `invalid value "${value}" for parameter ${key}`);
    return true;
  }

  private capture(act: () => boolean): { ok: boolean; lines: string[] } {
    let ok = false;
    const lines = captureLog(() => {
      ok = act();
    });
    return { ok, lines };
  }
}

/** Texts of the ini reader end with their position: `... (file:line), stopping loading`. */
function reportSyntax(check: Check, text: string): void {
  const match = /^(.*) \((.*):(\d+)\)/.exec(text);
  if (match === null) report(check, check.configFile, 0, text);
  // the error in the included file itself is reported already
  else if (!text.startsWith('error processing include'))
    report(check, match[2] as string, Number(match[3]), match[1] as string);
}

function checkIni(check: Check): ParsedConfig | null {
  const handler = new CheckHandler(check);
  for (const text of captureLog(() => parseIniFile(check.configFile, handler))) reportSyntax(check, text);
  let parsed: ParsedConfig | null = null;
  for (const text of captureLog(() => {
    parsed = finishConfig(handler.draft);
  })) {
    report(check, check.configFile, 0, text);
  }
  return parsed;
}

function checkAuthFile(check: Check): void {
  const path = cf.authFile;
  if (path === null || path === '' || !requiresAuthFile(cf.authType)) return;
  try {
    for (const { reason, line } of findBrokenLines(path)) report(check, path, line, reason);
  } catch (err) {
    reportAt(check, 'pgbouncer/auth_file', `could not open auth_file ${path}: ${strerror(err)}`);
  }
}

/** The loaders of rules name the line in their first or in their last text. */
function reportRules(check: Check, file: string, key: string, lines: string[]): void {
  let pending: string[] = [];
  for (const text of lines) {
    const end = /^could not parse (?:hba|ident) config line (\d+)$/.exec(text);
    const whole = /^address does not match mask in .* line #(\d+): /.exec(text);
    if (/^could not open .* config file/.test(text)) {
      reportAt(check, key, text);
    } else if (whole !== null) {
      report(check, file, Number(whole[1]), text);
    } else if (end === null) {
      pending.push(text.replace(/^(?:hba|ident) line \d+: /, ''));
    } else {
      report(check, file, Number(end[1]), pending.join('; ') || 'could not parse this line');
      pending = [];
    }
  }
}

function checkHba(check: Check): void {
  if (cf.authType !== AuthType.HBA) return;
  const identFile = cf.authIdentFile;
  let maps: ReturnType<typeof loadIdent> = null;
  if (identFile !== null) {
    const lines = captureLog(() => {
      maps = loadIdent(identFile);
    });
    reportRules(check, identFile, 'pgbouncer/auth_ident_file', lines);
  }
  const file = cf.authHbaFile;
  let rules: ReturnType<typeof loadHba> = null;
  const lines = captureLog(() => {
    rules = loadHba(file, maps);
  });
  reportRules(check, file, 'pgbouncer/auth_hba_file', lines);
  const loaded = (rules as ReturnType<typeof loadHba>) ?? [];
  for (const { line } of openCertRules(loaded, cf)) report(check, file, line, OPEN_CERT, true);
  for (const rule of loaded) {
    if (rule.method === AuthType.LDAP) checkLdap(rule.options, (text) => report(check, file, rule.line, text));
    if (rule.identMap !== null && rule.method !== AuthType.CERT && rule.method !== AuthType.PEER) {
      report(check, file, rule.line, 'map= has no effect with this method');
    }
  }
}

function checkLdap(options: string, tell: (text: string) => void): void {
  const { error, rest } = parseLdapOptions(options);
  if (error !== '') tell(error);
  else if (rest !== '') tell(`LDAP options end here: "${rest}"`);
}

function checkAuthentication(check: Check, parsed: ParsedConfig): void {
  checkAuthFile(check);
  checkHba(check);
  if (cf.authType === AuthType.LDAP) {
    if (cf.authLdapOptions === null) reportAt(check, 'pgbouncer/auth_type', 'auth_ldap_options is null');
    else checkLdap(cf.authLdapOptions, (text) => reportAt(check, 'pgbouncer/auth_ldap_options', text));
  }
  const external = cf.authType === AuthType.LDAP || cf.authType === AuthType.PAM;
  const databases = allDatabases(parsed);
  for (const db of databases) {
    const position = `databases/${db.name}`;
    if (cf.authType === AuthType.ANY && db.user === null) {
      reportAt(check, position, `auth_type=any requires forced user: ${db.name}`);
    }
    if (external && db.authUser !== null) {
      const name = cf.authType === AuthType.PAM ? 'PAM' : 'LDAP';
      reportAt(check, position, `${name} can't be used together with database authentication: ${db.name}`);
    }
    const authDbname = db.authDbname ?? cf.authDbname;
    const known =
      authDbname === null || parsed.autodb !== null || parsed.databases.some(({ name }) => name === authDbname);
    if (!known) reportAt(check, position, `authentication database "${authDbname}" is not configured.`);
  }
  const noUserSource =
    (cf.authFile ?? '') === '' && (cf.authUser ?? '') === '' && databases.every((db) => db.authUser === null);
  if (noUserSource && requiresAuthFile(cf.authType) && !external && cf.authType !== AuthType.HBA) {
    reportAt(check, 'pgbouncer/auth_type', 'neither auth_file nor auth_user is set: there are no users');
  }
}

/** If run as root, checks the files as the user that will have to read them. */
function becomeUser(check: Check, given: string | null): void {
  const name = given ?? cf.user ?? '';
  if (name === '') return;
  const pw = native.getpwnam(name);
  if (pw === null) {
    reportAt(check, given === null ? 'pgbouncer/user' : '', `could not find user '${name}' to switch to`);
  } else if (process.getuid?.() === 0) {
    process.setgroups?.([pw.gid]);
    process.setgid?.(pw.gid);
    process.setuid?.(pw.uid);
  }
}

function compare(a: Problem, b: Problem): number {
  if (a.file !== b.file) return a.file < b.file ? -1 : 1;
  return a.line - b.line;
}

/** The users of auth_file. Its errors are reported by checkAuthFile(). */
function readUsers(): AuthFileUser[] {
  const path = cf.authFile ?? '';
  let users: AuthFileUser[] | null = null;
  if (path !== '') {
    captureLog(() => {
      users = loadAuthFile(path, true);
    });
  }
  return users ?? [];
}

/** What needs the network: databases and the running pooler. */
async function checkOutside(check: Check, parsed: ParsedConfig, options: CheckOptions): Promise<void> {
  const users = readUsers();
  if (options.connect) {
    const { findings, notes } = await connectAll(parsed, users);
    for (const { key, text, isWarning } of findings) reportAt(check, key, text, isWarning);
    if (!options.quiet) for (const note of notes) write(STDERR_FD, `${oneLine(note)}\n`);
  }
  if (options.diff) {
    const { differences, error } = await compareWithRunning(parsed, users);
    for (const line of differences) write(STDOUT_FD, `${oneLine(line)}\n`);
    if (error !== null) report(check, check.configFile, 0, error);
  }
}

/** All problems of a config file. */
async function findProblems(configFile: string, options: CheckOptions): Promise<Problem[]> {
  const check: Check = { configFile, problems: [], positions: new Map() };
  cf.configFile = configFile;
  const parsed = checkIni(check);
  if (parsed !== null) {
    applySettings(parsed, true);
    becomeUser(check, options.user);
    checkAuthentication(check, parsed);
    for (const { setting, text, isWarning } of findTlsProblems(captureLog))
      reportAt(check, `pgbouncer/${setting}`, text, isWarning);
    for (const db of allDatabases(parsed))
      for (const { text } of findDatabaseTlsProblems(db.tls, captureLog)) reportAt(check, `databases/${db.name}`, text);
    for (const { key, text } of findCommandProblems(parsed)) reportAt(check, key, text);
    for (const { key, text } of findSystemProblems()) reportAt(check, key, text);
    for (const { key, text } of findWarnings(parsed, readUsers().length)) reportAt(check, key, text, true);
    await checkOutside(check, parsed, options);
  }
  return check.problems.sort(compare);
}

function write(fd: number, text: string): void {
  writeSync(fd, Buffer.from(text, 'latin1'));
}

/** The summary on stderr. */
function summaryOf(found: number, warned: number): string {
  const problems = found === 1 ? '1 problem' : `${found || 'no'} problems`;
  if (warned === 0) return `${problems} found`;
  return `${problems} found, ${warned === 1 ? '1 warning' : `${warned} warnings`}`;
}

/**
 * `tsbouncer --check FILE`: prints one line per problem and warning to stdout, and their numbers to stderr.
 * @returns the exit code: 0 = no problem found
 */
export async function checkConfig(configFile: string, options: CheckOptions): Promise<number> {
  const all = await findProblems(configFile, options);
  for (const { file, line, text, isWarning } of all) {
    const place = `${file}:${line > 0 ? `${line}:` : ''}`;
    write(STDOUT_FD, `${place} ${isWarning ? 'warning: ' : ''}${oneLine(text)}\n`);
  }
  const warned = all.filter(({ isWarning }) => isWarning).length;
  const found = all.length - warned;
  if (!options.quiet) write(STDERR_FD, `${configFile}: ${summaryOf(found, warned)}\n`);
  return found === 0 ? 0 : 1;
}
