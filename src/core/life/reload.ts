/*
 * Loads the config at start, and again on RELOAD and SIGHUP: reads and checks all of it, then applies it, so that an
 * error in the file changes nothing.
 */

import { nextOf } from '../base/list';
import { logError, logState, logWarning, resetLogging, tellRepeats } from '../base/log';
import { USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import { loadAuthFile, requiresAuthFile, usersFileChanged } from '../config/authfile';
import { AuthType, LogFormat } from '../config/choices';
import { warnIneffectiveSettings } from '../config/ineffective';
import { parseLdapOptions } from '../config/ldap-options';
import { applySettings, loadConfigFile, settingsAfter } from '../config/loader';
import { cf, SetResult, setConfigParam, settingsWith } from '../config/settings';
import type { Settings } from '../config/settings-table';
import { tagPoolDirty } from '../link/dirty';
import { killDatabase } from '../link/kill';
import { forgetAnswers } from '../login/auth-cache';
import { checkHbaFile, reloadHba } from '../login/hba-rules';
import { checkTlsSettings, sbufTlsSetup } from '../net/tls';
import { poolList } from '../pool/pool';
import { upcalls } from '../pool/upcalls';
import { applyAuthFile } from '../pool/user';
import { applyRecords, forgetAuthUsers } from './apply-config';

/** The period of log_repeat_limit, in usec. */
const REPEATS_PERIOD = 10 * USEC;
const repeatsTimer = newTimer(tellRepeats);

/** Applies the log settings, at start and when one of them changed. */
export function applyLogSettings(): void {
  logState.verbose = cf.verbose;
  logState.logfile = cf.logfile === '' ? null : cf.logfile;
  logState.syslog = cf.syslog !== 0;
  logState.syslogFacility = cf.syslogFacility;
  logState.syslogIdent = cf.syslogIdent;
  logState.json = cf.logFormat === LogFormat.JSON;
  if (logState.repeatLimit === cf.logRepeatLimit) return;
  tellRepeats();
  logState.repeatLimit = cf.logRepeatLimit;
  if (cf.logRepeatLimit > 0) timerStart(repeatsTimer, REPEATS_PERIOD, REPEATS_PERIOD);
  else timerStop(repeatsTimer);
}

/** @returns false after logging an error */
function checkLdapOptions({ authType, authLdapOptions }: Readonly<Settings>): boolean {
  if (authType !== AuthType.LDAP) return true;
  const error = authLdapOptions === null ? 'auth_ldap_options is null' : parseLdapOptions(authLdapOptions).error;
  if (error !== '') logError(error);
  return error === '';
}

/** Checks settings together and the files that they name: with those that fail, no client could log in. */
function admitsClients(settings: Readonly<Settings>): boolean {
  return checkTlsSettings(settings) && checkLdapOptions(settings) && checkHbaFile(settings);
}

/** Reads users and rules, as far as auth_type needs them. */
function loadAuthFiles(firstLoad: boolean): void {
  if (requiresAuthFile(cf.authType) && cf.authFile !== null && usersFileChanged(cf.authFile)) {
    const users = loadAuthFile(cf.authFile, firstLoad);
    if (users !== null) applyAuthFile(users);
  }
  reloadHba();
}

/**
 * Reads cf.configFile and all files that it names.
 * @param firstLoad at start: also applies the settings that cannot change later
 * @returns false after logging an error; nothing changed then
 */
export function loadConfig(firstLoad: boolean): boolean {
  const parsed = loadConfigFile(cf.configFile ?? '');
  if (parsed === null || (!firstLoad && !admitsClients(settingsAfter(parsed)))) {
    if (!firstLoad) logWarning('config file loading failed');
    return false;
  }
  applySettings(parsed, firstLoad);
  applyLogSettings();
  applyRecords(parsed, killDatabase);
  loadAuthFiles(firstLoad);
  forgetAnswers(null);
  // a reload reopens the log file, for log rotation
  if (!firstLoad) resetLogging();
  warnIneffectiveSettings();
  return true;
}

/** With a wrong value of one of these, no client could log in. */
const DECISIVE = ['auth_type', 'auth_hba_file', 'auth_ldap_options'];
/** After a SET of one of these, files are read. */
const WITH_FILES = ['auth_type', 'auth_file', 'auth_hba_file', 'auth_ident_file'];

/**
 * SET of a setting whose name begins with `auth_`: reads the files that it names, and is refused where RELOAD would be.
 * In PgBouncer, its files are read by the next RELOAD, which undoes the SET.
 */
export function setAuthParam(name: string, value: string): SetResult {
  const after = settingsWith(name, value);
  if (after !== null && DECISIVE.includes(name) && !admitsClients(after)) return SetResult.INVALID;
  const result = setConfigParam(name, value);
  if (result !== SetResult.OK) return result;
  if (name === 'auth_user' || name === 'auth_type') forgetAuthUsers();
  if (WITH_FILES.includes(name)) loadAuthFiles(false);
  return result;
}

/**
 * Applies changed TLS settings. Server connections that are less secure than the new settings require are replaced when
 * they become idle.
 * @returns false if the settings cannot be used: the reason has been logged, and the current settings stay
 */
export function applyTlsSettings(): boolean {
  const { ok, serversOutdated } = sbufTlsSetup();
  if (serversOutdated) for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) tagPoolDirty(pool);
  return ok;
}

/** RELOAD and SIGHUP: the config, and the certificates that it names. @returns which of the two took effect */
export function reloadAll(): { config: boolean; tls: boolean } {
  const config = loadConfig(false);
  const tls = applyTlsSettings();
  if (!tls) logError('TLS configuration could not be reloaded, keeping old configuration');
  upcalls.reloaded();
  return { config, tls };
}
