/*
 * The packet reader: headers, and the bodies of the packets that the pooler parses. No length received from a peer is
 * trusted: a read beyond the end of the packet fails and sets `fail`. It never throws, and never reads adjacent bytes.
 */
import { nameText } from './names';
import { ErrField, NEW_HEADER_LEN, OLD_HEADER_LEN, Pkt } from './packets';

/** The end of a string is looked for so far with a loop, which for short strings costs less than a call into C++. */
const NEAR = 64;

/** A cursor over [pos, end) of a buffer. After the first failed read `fail` stays true and all reads fail. */
export class PktReader {
  readonly buf: Buffer;
  pos: number;
  /** offset after the last byte of the packet */
  readonly end: number;
  fail: boolean;

  /** @param pos @param end offsets into `buf`, limited to its length */
  constructor(buf: Buffer, pos = 0, end: number = buf.length) {
    this.buf = buf;
    this.pos = pos;
    this.end = Math.min(end, buf.length);
    this.fail = pos < 0 || pos > this.end;
  }

  private need(len: number): boolean {
    // written so that a NaN or negative length fails too
    if (!this.fail && len >= 0 && len <= this.end - this.pos) return true;
    this.fail = true;
    return false;
  }

  /** One byte; 0 if there is none. */
  u8(): number {
    if (!this.need(1)) return 0;
    return this.buf[this.pos++] as number;
  }

  u16(): number {
    if (!this.need(2)) return 0;
    const value = this.buf.readUInt16BE(this.pos);
    this.pos += 2;
    return value;
  }

  u32(): number {
    if (!this.need(4)) return 0;
    const value = this.buf.readUInt32BE(this.pos);
    this.pos += 4;
    return value;
  }

  /** Signed; -1 means NULL in several packets. */
  i32(): number {
    return this.u32() | 0;
  }

  /** The offset of the next NUL, or -1 (and fail) if there is none before the end. */
  private nul(): number {
    if (this.fail) return -1;
    const { buf, end } = this;
    let nul = this.pos;
    const near = Math.min(end, nul + NEAR);
    while (nul < near && buf[nul] !== 0) nul++;
    if (nul === near) nul = buf.indexOf(0, near);
    if (nul >= 0 && nul < end) return nul;
    this.fail = true;
    return -1;
  }

  /** A byte string up to its NUL, which is consumed; null (and fail) if there is no NUL before the end. */
  str(): string | null {
    const nul = this.nul();
    if (nul < 0) return null;
    const text = this.buf.toString('latin1', this.pos, nul);
    this.pos = nul + 1;
    return text;
  }

  /** Likewise, for a text that has probably been read before, and is no secret. */
  name(): string | null {
    const nul = this.nul();
    if (nul < 0) return null;
    const text = nameText(this.buf, this.pos, nul);
    this.pos = nul + 1;
    return text;
  }

  /** `len` bytes as a byte string; null if fewer are left. */
  chars(len: number): string | null {
    if (!this.need(len)) return null;
    const text = this.buf.toString('latin1', this.pos, this.pos + len);
    this.pos += len;
    return text;
  }

  /** A view of `len` bytes, valid as long as the buffer's contents; null if fewer are left. */
  bytes(len: number): Buffer | null {
    if (!this.need(len)) return null;
    const view = this.buf.subarray(this.pos, this.pos + len);
    this.pos += len;
    return view;
  }

  /** All remaining bytes, as a byte string. */
  rest(): string {
    const left = this.fail ? 0 : this.end - this.pos;
    return this.chars(left) ?? '';
  }
}

/** Type and length of a packet, as read by getHeader(). */
export class PktHdr {
  /** type byte (PqMsg), or a startup code (Pkt) */
  type = 0;
  /** total length in bytes, including the header */
  len = 0;
  /** NEW_HEADER_LEN or OLD_HEADER_LEN */
  headerLen = 0;
}

/** True if getHeader() needs more bytes. */
export function incompleteHeader(buf: Buffer, off: number, end: number): boolean {
  const avail = end - off;
  if (avail >= OLD_HEADER_LEN) return false;
  if (avail < NEW_HEADER_LEN) return true;
  return buf[off] === 0;
}

/**
 * Reads the packet header at `off`, of a regular packet or of a startup-phase packet (first byte 0), whose code is
 * mapped to its Pkt. Returns false if the header is invalid or incomplete.
 * @param maxPacketSize max_packet_size, in bytes
 */
export function getHeader(buf: Buffer, off: number, end: number, maxPacketSize: number, hdr: PktHdr): boolean {
  if (end - off < NEW_HEADER_LEN) return false;
  const type = buf[off] as number;
  let len: number;
  if (type !== 0) {
    // byte by byte: every packet passes here, and Buffer's readers would repeat checks that have already been made
    const high = ((buf[off + 1] as number) << 24) | ((buf[off + 2] as number) << 16);
    len = ((high | ((buf[off + 3] as number) << 8) | (buf[off + 4] as number)) >>> 0) + 1;
    hdr.type = type;
    hdr.headerLen = NEW_HEADER_LEN;
  } else {
    // the length of a startup-phase packet has 16 bits
    if (end - off < OLD_HEADER_LEN || buf[off + 1] !== 0) return false;
    len = buf.readUInt16BE(off + 2);
    const kind = startupKind(buf.readUInt32BE(off + 4));
    if (kind === 0) return false;
    hdr.type = kind;
    hdr.headerLen = OLD_HEADER_LEN;
  }
  if (len < hdr.headerLen || len > maxPacketSize) return false;
  hdr.len = len;
  return true;
}

function startupKind(code: number): number {
  if (code === Pkt.CANCEL || code === Pkt.SSLREQ || code === Pkt.GSSENCREQ || code === Pkt.STARTUP_V2) return code;
  if (code < Pkt.STARTUP_V3 || code >= Pkt.STARTUP_V4) return 0;
  if (code < Pkt.STARTUP_V32) return Pkt.STARTUP_V3;
  return code === Pkt.STARTUP_V32 ? Pkt.STARTUP_V32 : Pkt.STARTUP_V3_LATER;
}

/** The letter of a packet type for log lines: '!' for startup-phase packets. */
export function pktDesc(type: number): string {
  return type > 256 ? '!' : String.fromCharCode(type);
}

/** The beginning of an invalid header in hex, for `bad packet header: '...'`. At most OLD_HEADER_LEN bytes. */
export function hdr2hex(buf: Buffer, off: number, end: number): string {
  return buf.toString('hex', off, Math.min(end, off + OLD_HEADER_LEN));
}

/** The fields of an ErrorResponse or NoticeResponse; a missing field is null. */
export interface ServerError {
  level: string | null;
  sqlstate: string | null;
  msg: string | null;
  detail: string | null;
  hint: string | null;
}

/** Reads the fields in the body [off, end) of an ErrorResponse; of a malformed packet those before the fault. */
export function parseServerError(buf: Buffer, off: number, end: number): ServerError {
  const error: ServerError = { level: null, sqlstate: null, msg: null, detail: null, hint: null };
  const reader = new PktReader(buf, off, end);
  for (;;) {
    const field = reader.u8();
    if (field === 0) break;
    const value = reader.str();
    if (value === null) break;
    if (field === ErrField.Severity) error.level = value;
    else if (field === ErrField.Message) error.msg = value;
    else if (field === ErrField.SqlState) error.sqlstate = value;
    else if (field === ErrField.Detail) error.detail = value;
    else if (field === ErrField.Hint) error.hint = value;
  }
  return error;
}

/**
 * True if the server ends the session with this ErrorResponse: severity FATAL or PANIC. The severity is taken from the
 * untranslated field (PostgreSQL 9.6 and later), else from the field that may be translated. They are the first fields.
 */
export function isFatal(buf: Buffer, off: number, end: number): boolean {
  let pos = off;
  let fatal = false;
  for (let i = 0; i < 2; i++) {
    const field = buf[pos] as number;
    if (field !== ErrField.Severity && field !== ErrField.SeverityPlain) break;
    const nul = buf.indexOf(0, pos);
    if (nul < 0 || nul >= end) return false;
    fatal = nul - pos === SEVERITY_LEN && isSessionEnd(buf[pos + 1] as number, buf[pos + 2] as number);
    if (field === ErrField.SeverityPlain) return fatal;
    pos = nul + 1;
  }
  return fatal;
}

/** Length of a severity field with FATAL or PANIC: its letter and five characters. */
const SEVERITY_LEN = 6;

/** True for the first two letters of FATAL and of PANIC; no other severity of this length begins with them. */
function isSessionEnd(first: number, second: number): boolean {
  return (first === 0x46 || first === 0x50) && second === 0x41;
}

/** The text of PgBouncer's log_server_error(), for logError(). `note` describes the situation. */
export function serverErrorLine(note: string, error: ServerError): string {
  if (error.msg === null || error.level === null) return `${note}: partial error message, cannot log`;
  return `${note}: ${error.level}: ${error.msg}`;
}

/**
 * Reads the body of a DataRow of text columns. Missing columns are null, additional columns are ignored.
 * @param asked how many columns the caller wants
 * @returns the values; null if the packet is malformed
 */
export function scanTextRow(reader: PktReader, asked: number): (string | null)[] | null {
  const ncol = reader.u16();
  if (reader.fail) return null;
  const values: (string | null)[] = [];
  for (let i = 0; i < asked; i++) {
    if (i >= ncol) {
      values.push(null);
      continue;
    }
    const len = reader.i32();
    values.push(len < 0 ? null : reader.chars(len));
    if (reader.fail) return null;
  }
  return values;
}

/** The bytes of a bytea in hex format; null for any other text (the caller logs "invalid bytea value"). */
export function parseBytea(text: string): Buffer | null {
  if (!text.startsWith('\\x')) return null;
  return Buffer.from(text.slice(2), 'hex');
}
