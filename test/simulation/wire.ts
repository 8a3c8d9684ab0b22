/*
 * Protocol 3 for the simulated clients and servers. Texts are byte strings, and so are packets until they are sent.
 */
import { createHash } from 'node:crypto';

export const PROTOCOL_30 = 0x0003_0000;
export const SSL_REQUEST = 80877103;
export const GSSENC_REQUEST = 80877104;
export const CANCEL_REQUEST = 80877102;

const HEADER = 5;
const STARTUP_HEADER = 8;

export function int16(value: number): string {
  return String.fromCharCode((value >> 8) & 0xff, value & 0xff);
}

export function int32(value: number): string {
  return String.fromCharCode((value >>> 24) & 0xff, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff);
}

export function readInt32(text: string, at: number): number {
  return (
    (text.charCodeAt(at) << 24) |
    (text.charCodeAt(at + 1) << 16) |
    (text.charCodeAt(at + 2) << 8) |
    text.charCodeAt(at + 3)
  );
}

export function packet(type: string, body = ''): string {
  return type + int32(body.length + 4) + body;
}

export function cstring(text: string): string {
  return `${text}\0`;
}

/** The text before the next NUL. */
export function readCstring(text: string, at: number): string {
  const end = text.indexOf('\0', at);
  return text.slice(at, end < 0 ? text.length : end);
}

export function startup(version: number, params: Record<string, string>): string {
  const pairs = Object.entries(params).map(([name, value]) => cstring(name) + cstring(value));
  const body = `${int32(version)}${pairs.join('')}\0`;
  return int32(body.length + 4) + body;
}

export function request(code: number, body = ''): string {
  return int32(STARTUP_HEADER + body.length) + int32(code) + body;
}

export function errorPacket(severity: string, code: string, text: string): string {
  return packet(
    'E',
    `${cstring(`S${severity}`)}${cstring(`V${severity}`)}${cstring(`C${code}`)}${cstring(`M${text}`)}\0`,
  );
}

/** The fields of an ErrorResponse by letter. */
export function errorFields(body: string): Record<string, string> {
  const fields: Record<string, string> = {};
  for (const part of body.split('\0')) if (part !== '') fields[part.charAt(0)] = part.slice(1);
  return fields;
}

export function rowPacket(...values: string[]): string {
  return packet('D', int16(values.length) + values.map((value) => int32(value.length) + value).join(''));
}

/** The first column of a DataRow. */
export function firstColumn(body: string): string {
  const length = readInt32(body, 2);
  return length < 0 ? '' : body.slice(6, 6 + length);
}

export function columnsPacket(...names: string[]): string {
  const column = (name: string) =>
    cstring(name) + int32(0) + int16(0) + int32(25) + int16(0xffff) + int32(-1) + int16(0);
  return packet('T', int16(names.length) + names.map(column).join(''));
}

function md5(text: string): string {
  return createHash('md5').update(text, 'latin1').digest('hex');
}

/** The answer of a client to an md5 request. */
export function md5Answer(user: string, password: string, salt: string): string {
  return `md5${md5(md5(password + user) + salt)}`;
}

/** Splits a stream of bytes into packets. */
export class Packets {
  private text = '';
  /** packets have no type: the first packet of a client */
  untyped: boolean;

  constructor(untyped: boolean) {
    this.untyped = untyped;
  }

  push(bytes: Buffer): void {
    this.text += bytes.toString('latin1');
  }

  get isEmpty(): boolean {
    return this.text === '';
  }

  /** Takes one byte that is not part of a packet. */
  takeByte(): string | null {
    if (this.text === '') return null;
    const byte = this.text.charAt(0);
    this.text = this.text.slice(1);
    return byte;
  }

  /** Type ('' for a packet without a type) and body, or null if the packet has not arrived completely. */
  next(): [type: string, body: string] | null {
    const { text, untyped } = this;
    const header = untyped ? 4 : HEADER;
    if (text.length < header) return null;
    const length = untyped ? readInt32(text, 0) : readInt32(text, 1) + 1;
    if (text.length < length) return null;
    this.text = text.slice(length);
    return [untyped ? '' : text.charAt(0), text.slice(header, length)];
  }
}

/** The value of `name=value` in a statement of the simulation. */
export function field(sql: string, name: string): string | null {
  const match = new RegExp(`\\b${name}=(\\S+)`).exec(sql);
  return match === null ? null : (match[1] as string);
}

/** The first parameter of a Bind. @param at where its formats begin */
export function bindParameter(body: string, at: number): string {
  const formats = body.charCodeAt(at) * 256 + body.charCodeAt(at + 1);
  const count = at + 2 + 2 * formats;
  if (body.charCodeAt(count) * 256 + body.charCodeAt(count + 1) === 0) return '';
  const length = readInt32(body, count + 2);
  return body.slice(count + 6, count + 6 + length);
}
