/*
 * What a packet handler tells the stream walkers (session/client.ts, session/server.ts) to do with a packet.
 */

export const enum Verdict {
  /** pass the packet on to the linked socket unchanged */
  FORWARD,
  /** drop the packet: the pooler has handled it, or it has no meaning for the other side */
  CONSUMED,
  /** the socket was paused: keep the packet and show it again when reading resumes */
  PAUSED,
  /** show the packet again when more of it has arrived */
  NEED_MORE,
  /** the socket was disconnected: do not touch it */
  DISCONNECTED,
  /** the packet goes on with another name or length, see session/prepared.ts */
  REWRITE,
  /** put the packet together in memory of its own, and show it again when it is complete */
  REASSEMBLE,
}
