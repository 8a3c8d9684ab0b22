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
import { applySettings, loadConfigFile, type ParsedConfig, settingsAfter } from '../config/loader';
import { cf } from '../config/settings';
import type { Settings } from '../config/settings-table';
import { tagPoolDirty } from '../link/dirty';
import { killDatabase } from '../link/kill';
import { forgetAnswers } from '../login/auth-cache';
import { checkHbaFile, reloadHba } from '../login/hba-rules';
import { checkTlsSettings, sbufTlsSetup } from '../net/tls';
import { poolList } from '../pool/pool';
import { upcalls } from '../pool/upcalls';
import { applyAuthFile } from '../pool/user';
import { applyRecords } from './apply-config';

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
function canReload(parsed: ParsedConfig): boolean {
  const settings = settingsAfter(parsed);
  return checkTlsSettings(settings) && checkLdapOptions(settings) && checkHbaFile(settings);
}

/**
 * Reads cf.configFile and all files that it names.
 * @param firstLoad at start: also applies the settings that cannot change later
 * @returns false after logging an error; nothing changed then
 */
export function loadConfig(firstLoad: boolean): boolean {
  const parsed = loadConfigFile(cf.configFile ?? '');
  if (parsed === null || (!firstLoad && !canReload(parsed))) {
    if (!firstLoad) logWarning('config file loading failed');
    return false;
  }
  applySettings(parsed, firstLoad);
  applyLogSettings();
  applyRecords(parsed, killDatabase);
  if (requiresAuthFile(cf.authType) && cf.authFile !== null && usersFileChanged(cf.authFile)) {
    const users = loadAuthFile(cf.authFile, firstLoad);
    if (users !== null) applyAuthFile(users);
  }
  reloadHba();
  forgetAnswers(null);
  // a reload reopens the log file, for log rotation
  if (!firstLoad) resetLogging();
  warnIneffectiveSettings();
  return true;
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
