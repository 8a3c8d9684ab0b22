/*
 * Who we are: the version of tsbouncer, and the version of the original whose behaviour it has. Clients and exporters
 * read the second one.
 */

export const TSBOUNCER_VERSION = '0.1.0';

/** The PgBouncer that this program is compatible with. */
export const PGBOUNCER_COMPAT_VERSION = '1.25.2';

/** SHOW VERSION and the first line of --version: exporters look for "PgBouncer X.Y.Z" in it. */
export const VERSION_STRING = `PgBouncer ${PGBOUNCER_COMPAT_VERSION} (tsbouncer ${TSBOUNCER_VERSION})`;
