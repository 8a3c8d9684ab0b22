/*
 * What a packet handler tells the stream walker (client.ts, server.ts) to do with the packet it was shown.
 */
export const enum Act {
  /** pass it to the other end, as it comes */
  FORWARD,
  /** drop it: it was handled here, or nobody wants it */
  SKIP,
  /** the socket was paused: keep the packet and look at it again when reading goes on */
  WAIT,
  /** show it again when more of it has arrived */
  MORE,
  /** the socket was disconnected: touch nothing */
  DEAD,
  /** it goes to the other end in other words, see prepared.ts */
  REWRITE,
  /** put it together in memory of its own, and look at it again when it is whole */
  COLLECT,
}

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
/** Most bytes of parameters that a server may announce while it logs in: every client of the pool is told them. */
export const WELCOME_MAX = 256 * 1024;
/**
 * Likewise for a packet of a client about a named prepared statement: Parse, above all. PostgreSQL takes a little less than
 * 1 GB; the original up to max_packet_size.
 */
export const PREPARED_PACKET_MAX = 64 * 1024 * 1024;
/** From this size on such a packet is put together in memory of its own instead of being looked at again and again. */
export const COLLECT_MIN = 16 * 1024;
