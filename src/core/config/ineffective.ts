/*
 * Settings that are accepted but have no effect, because tsbouncer lacks the feature or has nothing to configure.
 * Applying a config logs a warning for each of them that is set. Implementing such a feature removes its row.
 */

import { logWarning } from '../base/log';
import { cf, getConfigParam } from './settings';
import { settingsTable } from './settings-table';

interface IneffectiveSetting {
  readonly name: string;
  /** the missing feature */
  readonly missing: string;
  /** whether the setting's current value has no effect; null = no value has an effect */
  readonly concerns: (() => boolean) | null;
}

const ineffectiveSettings: readonly IneffectiveSetting[] = [
  { name: 'pkt_buf', missing: 'all connections share one receive buffer', concerns: null },
  { name: 'peers_dns', missing: 'peer_id is set, so [peers] lists the peers', concerns: () => cf.peerId > 0 },
  { name: 'sbuf_loopcnt', missing: 'the loop receives once per connection and turn', concerns: null },
];

/** Names of the settings that have no effect, whatever their value. */
export const ineffectiveSettingNames: readonly string[] = ineffectiveSettings
  .filter(({ concerns }) => concerns === null)
  .map(({ name }) => name);

/** Logs a warning for each setting that requests a missing feature; called after every applySettings(). */
export function warnIneffectiveSettings(): void {
  const defaults = new Map<string, string | null>(settingsTable.map((setting) => [setting.name, setting.def]));
  for (const { name, missing, concerns } of ineffectiveSettings) {
    const value = getConfigParam(name);
    // a setting without a default is unset both as null and as ''
    if ((value ?? '') === (defaults.get(name) ?? '')) continue;
    if (concerns !== null && !concerns()) continue;
    logWarning(`setting has no effect: ${name} = ${value} (${missing})`);
  }
}
