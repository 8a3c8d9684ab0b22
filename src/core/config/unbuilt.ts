/*
 * Settings that parse but whose feature is not built yet: said once in the log whenever a config is applied, so that
 * nobody relies on what is not there. A feature that gets built takes its row out.
 */
import { logWarning } from '../base/log';
import { getConfigParam, settingsTable } from './settings';

interface UnbuiltSetting {
  readonly name: string;
  /** what is missing */
  readonly missing: string;
  /** for settings of which some other values than the default do work: whether the current one does not */
  readonly concerns: (() => boolean) | null;
}

const unbuiltSettings: readonly UnbuiltSetting[] = [
  { name: 'dns_zone_check_period', missing: 'watching DNS zones is not built yet', concerns: null },
  { name: 'peer_id', missing: 'peering is not built yet', concerns: null },
  { name: 'resolv_conf', missing: 'names are resolved by the system', concerns: null },
];

/** Names of the settings that have no effect yet, whatever they are set to. */
export const unbuiltSettingNames: readonly string[] = unbuiltSettings.map((unbuilt) => unbuilt.name);

/**
 * One warning for each setting that asks for something unbuilt; called after every applySettings().
 * @param peers number of lines in [peers]
 */
export function warnUnbuiltSettings(peers = 0): void {
  const defaults = new Map<string, string | null>(settingsTable.map((setting) => [setting.name, setting.def]));
  for (const { name, missing, concerns } of unbuiltSettings) {
    const value = getConfigParam(name);
    // a setting without a default is unset as null and as ''
    if ((value ?? '') === (defaults.get(name) ?? '')) continue;
    if (concerns !== null && !concerns()) continue;
    logWarning(`setting has no effect yet: ${name} = ${value} (${missing})`);
  }
  if (peers > 0) logWarning('section has no effect yet: [peers] (peering is not built yet)');
}
