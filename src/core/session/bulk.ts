/*
 * Rows and COPY data come as long runs of small packets that are all treated alike. The addon walks over them faster than
 * the loops that look at each packet.
 */

import { wantNoise } from '../base/log';
import { arena, native } from '../base/native';
import { cf } from '../config/settings';
import { PqMsg } from '../wire/packets';

/** If fewer packets of the first one's length have arrived, calling the addon costs more than it saves. */
const PACKETS_LEAST = 8;

/** True for what a server sends in bulk. */
export function bulkOfServer(type: number): boolean {
  return type === PqMsg.DataRow || type === PqMsg.CopyData;
}

/**
 * The end of the run of packets of one type that begins at `off` of the arena; `off` if it is not worth walking over.
 * @param len length of the first packet, whose verdict is FORWARD, as that of the others would be
 * @param end end of the received bytes
 */
export function bulkEnd(off: number, len: number, end: number): number {
  if (end - off < PACKETS_LEAST * len || arena[off + len] !== arena[off] || wantNoise()) return off;
  return native.samePackets(off, end, cf.maxPacketSize);
}
