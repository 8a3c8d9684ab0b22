/**
 * Most bytes of one packet that the pooler has to see as a whole during login: PostgreSQL takes no authentication
 * message longer than 65535 bytes and the length of a startup packet has 16 bits; above that, with room for a password
 * that is only too long, nobody means it.
 */
export const LOGIN_PACKET_MAX = 128 * 1024;
/** Likewise for the packets of a working server that are looked at as a whole: ParameterStatus, answers to auth_query. */
export const SERVER_PACKET_MAX = 256 * 1024;
/** Likewise for a command on the console. */
export const ADMIN_PACKET_MAX = 256 * 1024;

/**
 * Likewise for a packet of a client about a named prepared statement: Parse, above all. PostgreSQL takes a little less than
 * 1 GB; the original up to max_packet_size.
 */
export const PREPARED_PACKET_MAX = 64 * 1024 * 1024;
/** From this size on such a packet is put together in memory of its own instead of being looked at again and again. */
export const COLLECT_MIN = 16 * 1024;
