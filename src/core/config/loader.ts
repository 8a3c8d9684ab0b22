/*
 * A whole config file: read and checked as one piece into a plain ParsedConfig, applied only when all of it is good.
 * So a bad file on reload changes nothing, where the original has by then applied the lines above the bad one.
 * applySettings() puts the [pgbouncer] part into `cf`; databases, users and peers are applied by the pool floor.
 */
import { logError } from '../base/log';
import { type IniHandler, parseIniFile } from './ini';
import { type DatabaseConfig, type PeerConfig, parseDatabase, parsePeer, parseUser, type UserConfig } from './records';
import {
  findSetting,
  isConfigLoaded,
  parseSetting,
  type Setting,
  setConfigLoaded,
  settingHooks,
  settingsTable,
  storeSetting,
} from './settings';

export { type DatabaseConfig, type PeerConfig, parseDatabase, type UserConfig } from './records';

/** One line of [pgbouncer], already checked. */
interface SettingLine {
  name: string;
  /** the text as written */
  value: string;
  file: string;
  line: number;
}

/** A config file that is good as a whole. A name given twice is here once: the later line wins. */
export interface ParsedConfig {
  /** in the file's order */
  settings: SettingLine[];
  databases: DatabaseConfig[];
  users: UserConfig[];
  peers: PeerConfig[];
  /** the "*" line: databases not listed are made from its connstr with parseDatabase() */
  autodb: DatabaseConfig | null;
  /** some user has a transaction, idle-transaction, query or query-wait timeout of its own */
  anyUserLevelTimeoutSet: boolean;
  /** some user has a client-idle timeout of its own */
  anyUserLevelClientTimeoutSet: boolean;
  /** some database has a query-wait timeout of its own */
  anyDatabaseLevelClientTimeoutSet: boolean;
}

const MAIN_SECTION = 'pgbouncer';

/** What the file said so far. Public for the config check, which goes on after a mistake. */
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
        // a second [pgbouncer] starts from the defaults again, except for what has none
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
    // what cannot change any more is not looked at either, as in the original
    if (setting.noReload && isConfigLoaded()) return true;
    if (parseSetting(setting, value) === null) return false;
    return keep(this.settings, name, { name, value, file, line });
  }
}

/** Files a record under its key, last in the order. @returns whether there is one */
function keep<K, V>(map: Map<K, V>, key: K, record: V | null): boolean {
  if (record === null) return false;
  map.delete(key);
  map.set(key, record);
  return true;
}

/**
 * Reads and checks a config file with all it includes; nothing is applied.
 * @param path file name as a byte string
 * @returns what it says, or null after logging what is wrong with it, where
 */
export function loadConfigFile(path: string): ParsedConfig | null {
  const draft = new ConfigBuilder();
  return parseIniFile(path, draft) ? finishConfig(draft) : null;
}

/** The config that a file read to its end says; null, with a log line, when its main section is missing. */
export function finishConfig(draft: ConfigBuilder): ParsedConfig | null {
  if (!draft.gotMainSection) {
    logError('load_init_file: main section missing from config file');
    return null;
  }
  const databases = [...draft.databases.values()];
  const users = [...draft.users.values()];
  return {
    settings: [...draft.settings.values()],
    databases: databases.filter((db) => db.name !== '*'),
    users,
    peers: [...draft.peers.values()],
    autodb: draft.databases.get('*') ?? null,
    anyUserLevelTimeoutSet: users.some(
      (user) =>
        user.transactionTimeout !== 0 ||
        user.idleTransactionTimeout !== 0 ||
        user.queryTimeout !== 0 ||
        user.queryWaitTimeoutSet,
    ),
    anyUserLevelClientTimeoutSet: users.some((user) => user.clientIdleTimeout !== 0),
    anyDatabaseLevelClientTimeoutSet: databases.some((db) => db.queryWaitTimeoutSet),
  };
}

/**
 * Puts the [pgbouncer] part into `cf`. A setting that the file does not mention gets its default, also when SET had
 * changed it; one without a default keeps what it has. Calls settingHooks.onSettingChanged for each change, when all
 * are made.
 * @param firstLoad true once, at start: only then noReload settings are set, and after it they stand
 */
export function applySettings(parsed: ParsedConfig, firstLoad: boolean): void {
  const texts = new Map<string, string>(parsed.settings.map((line) => [line.name, line.value]));
  const changed: Setting[] = [];
  for (const setting of settingsTable) {
    if (setting.noReload && !firstLoad) continue;
    const text = texts.get(setting.name) ?? setting.def;
    if (text === null) continue;
    const value = parseSetting(setting, text);
    if (value === null) throw new Error(`setting ${setting.name} was not checked: ${text}`);
    if (storeSetting(setting, value)) changed.push(setting);
  }
  if (firstLoad) setConfigLoaded(true);
  for (const setting of changed) settingHooks.onSettingChanged?.(setting.name);
}
