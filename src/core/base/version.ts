/*
 * The version of tsbouncer, and the version of PgBouncer whose behaviour it reproduces; clients and exporters read the
 * second.
 */

export const TSBOUNCER_VERSION = '0.1.0';

/** The version of PgBouncer that this program is compatible with. */
export const PGBOUNCER_COMPAT_VERSION = '1.26.1';
