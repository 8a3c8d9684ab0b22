/*
 * The version of tsbouncer, and the version of PgBouncer whose behaviour it reproduces; clients and exporters read the
 * second.
 */

export const TSBOUNCER_VERSION = '0.1.0';

/** The version of PgBouncer that this program is compatible with. */
export const PGBOUNCER_COMPAT_VERSION = '1.25.2';

/** Text of SHOW VERSION and first line of --version; exporters look for "PgBouncer X.Y.Z" in it. */
export const VERSION_STRING = `PgBouncer ${PGBOUNCER_COMPAT_VERSION} (tsbouncer ${TSBOUNCER_VERSION})`;
