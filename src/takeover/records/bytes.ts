/*
 * Raw bytes in the JSON text of a record: a string with one char per byte.
 */

import { detachBytes } from '../../core/base/strutil';

export function bytesText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

/** In memory of their own, because a connection keeps them. */
export function bytesOf(text: string): Buffer {
  return detachBytes(Buffer.from(text, 'latin1'));
}
