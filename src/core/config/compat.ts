/*
 * The version of PgBouncer whose figures the console shows. Tools that read SHOW STATS by position pick the layout by
 * the number of its columns or by SHOW VERSION, so both follow compat_version.
 */

import { PGBOUNCER_COMPAT_VERSION } from '../base/version';
import { CompatVersion } from './compat-version';
import { cf } from './settings';

/** The last release of PgBouncer 1.25 */
const LAST_1_25 = '1.25.2';

/** The version in SHOW VERSION, server_version of the console, and pgbouncer.version. */
export function shownVersion(): string {
  return cf.compatVersion === CompatVersion.V1_25 ? LAST_1_25 : PGBOUNCER_COMPAT_VERSION;
}

/** True if the statistics have the count of client logins, which PgBouncer 1.26 has added. */
export function showsClientLogins(): boolean {
  return cf.compatVersion !== CompatVersion.V1_25;
}
