/*
 * The position of the statement's name in Parse, Bind, Describe and Close. The packet must hold the name up to its NUL:
 * inspect.ts has checked that.
 */

import { NEW_HEADER_LEN, PqMsg } from './packets';

/** Offset of the next NUL in [pos, limit), or -1. A loop, because names are short. */
export function findNul(buf: Buffer, pos: number, limit: number): number {
  for (let i = pos; i < limit; i++) if (buf[i] === 0) return i;
  return -1;
}

/** Offset of the statement's name in a packet that begins at `off`. */
export function nameAt(type: number, buf: Buffer, off: number): number {
  const at = off + NEW_HEADER_LEN;
  if (type === PqMsg.Parse) return at;
  // after the portal's name, or after the letter S
  return type === PqMsg.Bind ? findNul(buf, at, buf.length) + 1 : at + 1;
}

export function nameOf(type: number, buf: Buffer, off: number): string {
  const at = nameAt(type, buf, off);
  return buf.toString('latin1', at, findNul(buf, at, buf.length));
}
