/*
 * The packet writer: a growing buffer and the primitives that packets are made of. messages.ts builds whole packets
 * with it; a session keeps one for output that has to wait.
 */
import { Buffer } from 'node:buffer';

/** Initial size of a buffer, in bytes. */
const PKTBUF_START = 512;
/** Far above any packet that the pooler builds; a buffer that would grow beyond it fails instead. */
export const PKTBUF_MAX = 256 * 1024 * 1024;
/** Strings up to this length are copied in a loop, which is faster than a call into C++. */
const SHORT_STRING = 24;

/** Up to this length, a loop costs less than Buffer.copy(), which makes a typed array for each call. */
const LOOP_COPY_MAX = 96;

/** Copies src[off, end) to target, from `at` on. The target must have room. */
export function copyBytes(src: Buffer, off: number, end: number, target: Buffer, at: number): void {
  if (end - off > LOOP_COPY_MAX) {
    src.copy(target, at, off, end);
    return;
  }
  for (let i = off; i < end; i++) target[at++] = src[i] as number;
}

export class PktBuf {
  /** the bytes; valid up to `pos` */
  buf: Buffer;
  /** bytes written */
  pos: number;
  /** position of the length field of the packet under construction */
  pktlenPos: number;
  /** a write would have exceeded PKTBUF_MAX; the contents must not be sent */
  failed: boolean;

  /** @param size initial size in bytes */
  constructor(size: number = PKTBUF_START) {
    this.buf = Buffer.allocUnsafeSlow(size);
    this.pos = 0;
    this.pktlenPos = 0;
    this.failed = false;
  }

  /** Clears the contents, keeps the memory. */
  reset(): void {
    this.pos = 0;
    this.pktlenPos = 0;
    this.failed = false;
  }

  /** Makes room for `len` more bytes. If that exceeds PKTBUF_MAX, marks the buffer as failed and returns false. */
  reserve(len: number): boolean {
    const need = this.pos + len;
    if (need <= this.buf.length) return !this.failed;
    if (this.failed) return false;
    if (need > PKTBUF_MAX) {
      this.failed = true;
      return false;
    }
    let size = Math.max(this.buf.length, 16);
    while (size < need) size *= 2;
    const grown = Buffer.allocUnsafeSlow(size);
    this.buf.copy(grown, 0, 0, this.pos);
    this.buf = grown;
    return true;
  }

  putChar(byte: number): void {
    if (!this.reserve(1)) return;
    this.buf[this.pos++] = byte;
  }

  putUint16(value: number): void {
    if (!this.reserve(2)) return;
    const { buf, pos } = this;
    buf[pos] = value >>> 8;
    buf[pos + 1] = value;
    this.pos = pos + 2;
  }

  /** Negative numbers are written in two's complement. */
  putUint32(value: number): void {
    if (!this.reserve(4)) return;
    const { buf, pos } = this;
    buf[pos] = value >>> 24;
    buf[pos + 1] = value >>> 16;
    buf[pos + 2] = value >>> 8;
    buf[pos + 3] = value;
    this.pos = pos + 4;
  }

  /** A number must be a safe integer; a value that may be larger is passed as BigInt. */
  putUint64(value: number | bigint): void {
    if (typeof value === 'bigint') {
      this.putUint32(Number(BigInt.asIntN(32, value >> 32n)));
      this.putUint32(Number(BigInt.asIntN(32, value)));
    } else {
      this.putUint32(Math.floor(value / 0x1_0000_0000));
      this.putUint32(value);
    }
  }

  /** A byte string without its terminating NUL. */
  putChars(text: string): void {
    const len = text.length;
    if (!this.reserve(len)) return;
    if (len <= SHORT_STRING) {
      const { buf, pos } = this;
      for (let i = 0; i < len; i++) buf[pos + i] = text.charCodeAt(i);
    } else {
      this.buf.write(text, this.pos, 'latin1');
    }
    this.pos += len;
  }

  /** A byte string with its terminating NUL. */
  putString(text: string): void {
    this.putChars(text);
    this.putChar(0);
  }

  putBytes(bytes: Uint8Array): void {
    if (!this.reserve(bytes.length)) return;
    this.buf.set(bytes, this.pos);
    this.pos += bytes.length;
  }

  /** Copies `len` bytes of `src` from offset `off`, without creating a view. */
  putSlice(src: Buffer, off: number, len: number): void {
    if (!this.reserve(len)) return;
    copyBytes(src, off, off + len, this.buf, this.pos);
    this.pos += len;
  }

  /**
   * Begins a packet; finishPacket() fills in its length.
   * @param type a type byte (PqMsg), or a startup code (Pkt, >= 256) for a packet without a type byte
   */
  startPacket(type: number): void {
    if (type < 256) {
      this.putChar(type);
      this.pktlenPos = this.pos;
      this.putUint32(0);
    } else {
      this.pktlenPos = this.pos;
      this.putUint32(0);
      this.putUint32(type);
    }
  }

  finishPacket(): void {
    if (this.failed) return;
    this.buf.writeUInt32BE(this.pos - this.pktlenPos, this.pktlenPos);
    this.pktlenPos = 0;
  }

  /** A view of the contents, valid until the next write or reset. */
  written(): Buffer {
    return this.buf.subarray(0, this.pos);
  }

  /** A copy of the contents that stays valid. */
  copy(): Buffer {
    return Buffer.from(this.written());
  }
}

/** A shared buffer that has grown beyond this size is not kept for the next packet. */
const TEMP_KEEP_MAX = 1024 * 1024;
let temp: PktBuf | null = null;

/** The shared buffer, emptied. Its contents must be sent before the next call. */
export function pktbufTemp(): PktBuf {
  if (temp === null || temp.buf.length > TEMP_KEEP_MAX) temp = new PktBuf();
  temp.reset();
  return temp;
}
