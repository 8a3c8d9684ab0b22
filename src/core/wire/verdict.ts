/*
 * The decision of a packet handler, carried out by the stream walkers (session/client.ts, session/server.ts).
 */

export const enum Verdict {
  /** pass the packet on to the linked socket unchanged */
  FORWARD,
  /** drop the packet: the pooler has handled it, or it has no meaning for the peer */
  CONSUMED,
  /** the socket was paused: keep the packet and handle it again when reading resumes */
  PAUSED,
  /** handle the packet again when more of it has arrived */
  NEED_MORE,
  /** the socket was disconnected: do not use it any more */
  DISCONNECTED,
  /** forward the packet with another name or length, see session/prepared.ts */
  REWRITE,
  /** reassemble the packet in its own memory, and handle it again when it is complete */
  REASSEMBLE,
}
