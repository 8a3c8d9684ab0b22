/*
 * Settings that parse but have no effect, because their feature is not built yet or has nothing to set here: said once
 * in the log whenever a config is applied, so that nobody relies on what is not there. A feature that gets built takes
 * its row out.
 */

import { logWarning } from '../base/log';
import { getConfigParam, settingsTable } from './settings';

interface IneffectiveSetting {
  readonly name: string;
  /** what is missing */
  readonly missing: string;
  /** for settings of which some other values than the default do work: whether the current one does not */
  readonly concerns: (() => boolean) | null;
}

const ineffectiveSettings: readonly IneffectiveSetting[] = [
  { name: 'pkt_buf', missing: 'the loop receives into one area that all connections share', concerns: null },
  { name: 'sbuf_loopcnt', missing: 'each connection is received from once a turn', concerns: null },
];

/** Names of the settings that have no effect yet, whatever they are set to. */
export const ineffectiveSettingNames: readonly string[] = ineffectiveSettings.map((unbuilt) => unbuilt.name);

/** One warning for each setting that asks for something unbuilt; called after every applySettings(). */
export function warnIneffectiveSettings(): void {
  const defaults = new Map<string, string | null>(settingsTable.map((setting) => [setting.name, setting.def]));
  for (const { name, missing, concerns } of ineffectiveSettings) {
    const value = getConfigParam(name);
    // a setting without a default is unset as null and as ''
    if ((value ?? '') === (defaults.get(name) ?? '')) continue;
    if (concerns !== null && !concerns()) continue;
    logWarning(`setting has no effect: ${name} = ${value} (${missing})`);
  }
}
