/**
 * Largest packet that the pooler must hold as a whole during login, in bytes. PostgreSQL takes no authentication
 * message longer than 65535 bytes, and a startup packet's length has 16 bits. The rest is room for a password that is
 * too long, which gets its proper error.
 */
export const LOGIN_PACKET_MAX = 128 * 1024;
/**
 * Likewise for the packets of a logged-in server that are parsed as a whole: ParameterStatus, the results of
 * auth_query.
 */
export const SERVER_PACKET_MAX = 256 * 1024;
/** Likewise for a command on the console. */
export const ADMIN_PACKET_MAX = 256 * 1024;

/**
 * Likewise for a client's packet about a named prepared statement, usually a Parse. PostgreSQL takes a little less than
 * 1 GB; PgBouncer up to max_packet_size.
 */
export const PREPARED_PACKET_MAX = 64 * 1024 * 1024;
/** From this size on, such a packet is reassembled in its own memory instead of being parsed again and again. */
export const COLLECT_MIN = 16 * 1024;

/** Significant bytes of a name in SQL (NAMEDATALEN - 1). */
export const SQL_NAME_MAX = 63;

/* Names and passwords in bytes, with their terminating NUL. Names have the sizes of PgBouncer's buffers. */

export const MAX_DBNAME = 64;
/** NAMEDATALEN, enlarged for the long names of cloud services. */
export const MAX_USERNAME = 128;
/** PostgreSQL rejects longer authentication messages. */
export const MAX_PASSWORD = 65531;
