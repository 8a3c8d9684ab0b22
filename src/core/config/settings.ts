/*
 * The object `cf` with the current values of the settings, and how a text becomes a value. The loader, SET and SHOW
 * CONFIG walk the table of settings-table.ts.
 */

import { logError } from '../base/log';
import { splitHostPort } from './host-port';
import { isNetworkList } from './networks';
import { initial, type Setting, type Settings, SettingType, settingsTable } from './settings-table';
import {
  formatLookup,
  formatTimeUsec,
  type Lookup,
  parseInt32,
  parseLookup,
  parseTimeUsec,
  parseUint32,
} from './values';

/** The current value of every setting. Any module may read it; only the functions below write it. */
export const cf: Settings = initial;

const settingsByName = new Map<string, Setting>(settingsTable.map((setting) => [setting.name, setting]));

/** The outcome of a SET. */
export const enum SetResult {
  OK,
  /** no such setting; logged */
  UNKNOWN,
  /** fixed after the start; PgBouncer ignores the SET without a message and reports success */
  READ_ONLY,
  /** the text is not a valid value of this setting; nothing changed */
  INVALID,
}

/** Upcalls that upper layers set at start. */
export const settingHooks: {
  /** called after a setting has changed, once all settings of the same load are in place */
  onSettingChanged: ((name: string) => void) | null;
} = { onSettingChanged: null };

/** Whether the first load is done, after which noReload settings are fixed. */
let configLoaded = false;

export function isConfigLoaded(): boolean {
  return configLoaded;
}

/** Called by applySettings() after the first load; only tests pass false. */
export function setConfigLoaded(loaded: boolean): void {
  configLoaded = loaded;
}

/** The table row of a setting, or null. Names are case-sensitive. */
export function findSetting(name: string): Setting | null {
  return settingsByName.get(name) ?? null;
}

/** The console's own database, which no config may define. */
export function isReservedDatabase(name: string): boolean {
  return name === 'pgbouncer';
}

function inRange(setting: Setting, value: number | null): number | null {
  return value === null || value < setting.min || value > setting.max ? null : value;
}

/** The value of a setting's text, or null if the text is invalid (logged where PgBouncer logs it). */
export function parseSetting(setting: Setting, text: string): string | number | null {
  switch (setting.type) {
    case SettingType.STR:
      return text;
    case SettingType.INT:
    case SettingType.DEFER:
      return inRange(setting, parseInt32(text));
    case SettingType.UINT:
      return inRange(setting, parseUint32(text));
    case SettingType.TIME:
      return parseTimeUsec(text);
    case SettingType.LOOKUP:
      return parseLookup(setting.map as readonly Lookup[], text);
    case SettingType.AUTHDB:
      if (isReservedDatabase(text)) {
        logError(`cannot use the reserved "${text}" database as an auth_dbname`);
        return null;
      }
      return text;
    case SettingType.HOST_PORT:
      return text === '' || splitHostPort(text) !== null ? text : null;
    case SettingType.NETWORKS:
      return isNetworkList(text) ? text : null;
  }
}

/** The current value as SHOW CONFIG prints it; null for a string that has never been set. */
function formatSetting(setting: Setting): string | null {
  const value = cf[setting.field];
  switch (setting.type) {
    case SettingType.TIME:
      return formatTimeUsec(value as number);
    case SettingType.LOOKUP:
      return formatLookup(setting.map as readonly Lookup[], value as number);
    default:
      return value === null ? null : String(value);
  }
}

/** Stores a parsed value in `cf` without calling the hook. @returns whether onSettingChanged must be called */
export function storeSetting(setting: Setting, value: string | number): boolean {
  const fields = cf as Record<keyof Settings, string | number | null>;
  const old = fields[setting.field];
  if (old === value) return false;
  fields[setting.field] = value;
  return setting.type !== SettingType.DEFER || (old === 0) !== (value === 0);
}

/** The settings as they will be after a SET; null if there is no such setting, or the value is not valid. */
export function settingsWith(name: string, value: string): Readonly<Settings> | null {
  const setting = findSetting(name);
  const parsed = setting === null ? null : parseSetting(setting, value);
  return setting === null || parsed === null ? null : { ...cf, [setting.field]: parsed };
}

/** SET name = value on the console. */
export function setConfigParam(name: string, value: string): SetResult {
  const setting = findSetting(name);
  if (setting === null) {
    logError(`unknown parameter: pgbouncer/${name}`);
    return SetResult.UNKNOWN;
  }
  if (setting.noReload && configLoaded) return SetResult.READ_ONLY;
  const parsed = parseSetting(setting, value);
  if (parsed === null) return SetResult.INVALID;
  if (storeSetting(setting, parsed)) settingHooks.onSettingChanged?.(name);
  return SetResult.OK;
}

/** The value of a setting as SHOW CONFIG prints it; null for an unknown name or a string that has never been set. */
export function getConfigParam(name: string): string | null {
  const setting = findSetting(name);
  return setting === null ? null : formatSetting(setting);
}

/** Visits all settings in SHOW CONFIG's order: name, value, default (text as in the table), reloadable. */
export function configForEach(
  cb: (name: string, value: string | null, def: string | null, changeable: boolean) => void,
): void {
  for (const setting of settingsTable) cb(setting.name, formatSetting(setting), setting.def, !setting.noReload);
}

for (const setting of settingsTable) {
  if (setting.def !== null) storeSetting(setting, parseSetting(setting, setting.def) as string | number);
}
