/*
 * Raw bytes in the JSON text of a record: a string with one char per byte.
 */

import { detachBytes } from '../../core/base/strutil';

export function bytesText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

export function bytesOf(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

/** Like bytesOf(), but in memory of its own, for what a connection or a user keeps. */
export function ownBytesOf(text: string): Buffer {
  return detachBytes(bytesOf(text));
}
