/*
 * Where Parse, Bind, Describe and Close have the name of their statement. The bytes up to its NUL are there: inspect.ts has
 * looked.
 */

import { NEW_HEADER_LEN, PqMsg } from './packets';

/** Offset of the next NUL in [pos, limit), -1 when there is none. For names: they are short. */
export function findNul(buf: Buffer, pos: number, limit: number): number {
  for (let i = pos; i < limit; i++) if (buf[i] === 0) return i;
  return -1;
}

/** Offset of the name in a packet that begins at `off`. */
export function nameAt(type: number, buf: Buffer, off: number): number {
  const at = off + NEW_HEADER_LEN;
  if (type === PqMsg.Parse) return at;
  // behind the name of a portal, or behind the letter S
  return type === PqMsg.Bind ? findNul(buf, at, buf.length) + 1 : at + 1;
}

export function nameOf(type: number, buf: Buffer, off: number): string {
  const at = nameAt(type, buf, off);
  return buf.toString('latin1', at, findNul(buf, at, buf.length));
}
