/*
 * A whole config file, read and checked into a plain ParsedConfig. It is applied only if all of it is valid, so a
 * faulty file changes nothing on reload; PgBouncer applies the lines above the fault. Then applySettings() copies
 * the [pgbouncer] section to `cf`, and life/apply-config.ts applies databases, users and peers.
 */

import { logError } from '../base/log';
import { type IniHandler, parseIniFile } from './ini';
import { type DatabaseConfig, type PeerConfig, parseDatabase, parsePeer, parseUser, type UserConfig } from './records';
import { cf, findSetting, isConfigLoaded, parseSetting, setConfigLoaded, settingHooks, storeSetting } from './settings';
import { type Setting, type Settings, settingsTable } from './settings-table';

/** A line of [pgbouncer] that has been checked. */
interface SettingLine {
  name: string;
  /** the text as written */
  value: string;
  file: string;
  line: number;
}

/** A valid config file. A name given twice is present once: the later line wins. */
export interface ParsedConfig {
  /** in the file's order */
  settings: SettingLine[];
  databases: DatabaseConfig[];
  users: UserConfig[];
  peers: PeerConfig[];
  /** the "*" line: parseDatabase() makes an auto-database from its connstr */
  autodb: DatabaseConfig | null;
}

const MAIN_SECTION = 'pgbouncer';

/** The config read so far. Public for the config check, which continues after an error. */
export class ConfigBuilder implements IniHandler {
  readonly settings: Map<string, SettingLine> = new Map();
  readonly databases: Map<string, DatabaseConfig> = new Map();
  readonly users: Map<string, UserConfig> = new Map();
  readonly peers: Map<number, PeerConfig> = new Map();
  currentSection: string | null = null;
  gotMainSection = false;

  section(name: string): boolean {
    switch (name) {
      case MAIN_SECTION:
        this.gotMainSection = true;
        // a second [pgbouncer] section resets settings to their defaults, except those without a default
        for (const line of this.settings.values()) {
          if (findSetting(line.name)?.def !== null) this.settings.delete(line.name);
        }
        break;
      case 'databases':
      case 'users':
      case 'peers':
        break;
      default:
        logError('fill_defaults fail');
        return false;
    }
    this.currentSection = name;
    return true;
  }

  value(key: string, value: string, file: string, line: number): boolean {
    switch (this.currentSection) {
      case MAIN_SECTION:
        return this.setting(key, value, file, line);
      case 'databases':
        return keep(this.databases, key, parseDatabase(key, value));
      case 'users':
        return keep(this.users, key, parseUser(key, value));
      case 'peers': {
        const peer = parsePeer(key, value);
        return peer !== null && keep(this.peers, peer.id, peer);
      }
      default:
        logError(`load_init_file: value without section: ${key}`);
        return false;
    }
  }

  private setting(name: string, value: string, file: string, line: number): boolean {
    const setting = findSetting(name);
    if (setting === null) {
      logError(`unknown parameter: ${MAIN_SECTION}/${name}`);
      return false;
    }
    // settings that can no longer change are not checked either, as in PgBouncer
    if (setting.noReload && isConfigLoaded()) return true;
    if (parseSetting(setting, value) === null) return false;
    return keep(this.settings, name, { name, value, file, line });
  }
}

/** Stores a record under its key, last in the order. @returns whether there is a record */
function keep<K, V>(map: Map<K, V>, key: K, record: V | null): boolean {
  if (record === null) return false;
  map.delete(key);
  map.set(key, record);
  return true;
}

/**
 * Reads and checks a config file with all its includes; applies nothing.
 * @param path file name as a byte string
 * @returns the config, or null after logging the error and its place
 */
export function loadConfigFile(path: string): ParsedConfig | null {
  const draft = new ConfigBuilder();
  return parseIniFile(path, draft) ? finishConfig(draft) : null;
}

/** The config of a completely read file; null, with a log line, if its main section is missing. */
export function finishConfig(draft: ConfigBuilder): ParsedConfig | null {
  if (!draft.gotMainSection) {
    logError('load_init_file: main section missing from config file');
    return null;
  }
  return {
    settings: [...draft.settings.values()],
    databases: [...draft.databases.values()].filter((db) => db.name !== '*'),
    users: [...draft.users.values()],
    peers: [...draft.peers.values()],
    autodb: draft.databases.get('*') ?? null,
  };
}

/** Calls `use` with each setting that a load applies, and its value. @param firstLoad as for applySettings() */
function eachSetting(
  parsed: ParsedConfig,
  firstLoad: boolean,
  use: (setting: Setting, value: string | number) => void,
): void {
  const texts = new Map<string, string>(parsed.settings.map((line) => [line.name, line.value]));
  for (const setting of settingsTable) {
    if (setting.noReload && !firstLoad) continue;
    const text = texts.get(setting.name) ?? setting.def;
    if (text === null) continue;
    const value = parseSetting(setting, text);
    if (value === null) throw new Error(`setting ${setting.name} was not checked: ${text}`);
    use(setting, value);
  }
}

/** The settings as they will be after a reload. */
export function settingsAfter(parsed: ParsedConfig): Readonly<Settings> {
  const after = { ...cf };
  eachSetting(parsed, false, (setting, value) => {
    (after as Record<keyof Settings, string | number | null>)[setting.field] = value;
  });
  return after;
}

/**
 * Copies the [pgbouncer] section to `cf`. A setting that the file does not mention gets its default, even if SET has
 * changed it; a setting without a default keeps its value. After all changes are made, calls
 * settingHooks.onSettingChanged for each of them.
 * @param firstLoad true once, at start: only this load sets noReload settings
 */
export function applySettings(parsed: ParsedConfig, firstLoad: boolean): void {
  const changed: Setting[] = [];
  eachSetting(parsed, firstLoad, (setting, value) => {
    if (storeSetting(setting, value)) changed.push(setting);
  });
  if (firstLoad) setConfigLoaded(true);
  for (const setting of changed) settingHooks.onSettingChanged?.(setting.name);
}
