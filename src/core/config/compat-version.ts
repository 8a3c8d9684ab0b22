// The values of compat_version, and its default.

import type { Lookup } from './values';

/** Values of compat_version. */
export const enum CompatVersion {
  V1_25,
  V1_26,
}

export const compatVersionMap: readonly Lookup[] = [
  { name: '1.25', value: CompatVersion.V1_25 },
  { name: '1.26', value: CompatVersion.V1_26 },
];

const COMPAT_VARIABLE = 'TSBOUNCER_COMPAT_VERSION';
const compatGiven = process.env[COMPAT_VARIABLE];
const compatKnown = compatVersionMap.some(({ name }) => name === compatGiven);

/** What is wrong with TSBOUNCER_COMPAT_VERSION, or null. */
export const compatVariableError =
  compatGiven === undefined || compatKnown ? null : `invalid value "${compatGiven}" for ${COMPAT_VARIABLE}`;

/** An image can set the default by the environment, for an operator that writes the config itself. */
export const COMPAT_DEFAULT = compatKnown ? (compatGiven as string) : '1.26';
