/*
 * Names in packets: of statements, of channels, and what startup packets consist of. Also the position of the statement's
 * name in Parse, Bind, Describe and Close. Such a packet must hold the name up to its NUL: inspect.ts has checked that.
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

/**
 * Names that were read lately, at the place that their hash gives. A statement is bound far more often than it is named
 * for the first time, most clients begin with the same parameters, and comparing a known text costs less than making one.
 */
const NAMES = 1024;
const NAME_KEPT_MAX = 64;
const known: string[] = new Array(NAMES).fill('');

/** True if the text has just these bytes. */
function isText(text: string, buf: Buffer, at: number, end: number): boolean {
  if (text.length !== end - at) return false;
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) !== buf[at + i]) return false;
  return true;
}

/** The name in buf[at, end), as a byte string. */
export function nameText(buf: Buffer, at: number, end: number): string {
  if (end - at > NAME_KEPT_MAX) return buf.toString('latin1', at, end);
  let hash = 0;
  for (let i = at; i < end; i++) hash = (hash * 31 + (buf[i] as number)) | 0;
  const place = hash & (NAMES - 1);
  const text = known[place] as string;
  if (isText(text, buf, at, end)) return text;
  const fresh = buf.toString('latin1', at, end);
  known[place] = fresh;
  return fresh;
}

export function nameOf(type: number, buf: Buffer, off: number): string {
  const at = nameAt(type, buf, off);
  return nameText(buf, at, findNul(buf, at, buf.length));
}
