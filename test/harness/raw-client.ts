/*
 * A client that speaks protocol 3 in bytes: for what a driver would never send, and for what it hides. Texts are byte
 * strings (one char = one byte).
 */

import { type NetConnectOpts, connect as netConnect, type Socket } from 'node:net';
import { type ConnectionOptions, connect as tlsConnect } from 'node:tls';
import { WAIT_MS_MAX, withTimeout } from './machine';
import { md5Answer, ScramClient } from './scram';

export const PROTOCOL_30 = 0x0003_0000;
export const PROTOCOL_32 = 0x0003_0002;
export const SSL_REQUEST = 80877103;
export const GSSENC_REQUEST = 80877104;
export const CANCEL_REQUEST = 80877102;

/** One message of the server: its letter and its body. */
export interface Message {
  type: string;
  body: Buffer;
}

/** Where to connect. */
export type Target = { host?: string; port: number; localAddress?: string } | { path: string };

/** Parameters of a login. */
export interface Login {
  user?: string;
  database?: string;
  password?: string;
  /** more startup parameters */
  params?: Record<string, string>;
  /** of the protocol */
  version?: number;
}

export function cstring(text: string): Buffer {
  return Buffer.from(`${text}\0`, 'latin1');
}

export function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value | 0);
  return bytes;
}

export function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

/** A typed message: letter, length, body. */
export function message(type: string, ...body: Buffer[]): Buffer {
  const bytes = Buffer.concat(body);
  return Buffer.concat([Buffer.from(type, 'latin1'), int32(bytes.length + 4), bytes]);
}

/** A startup packet, or a special request of the same form. */
export function startupPacket(version: number, params: Record<string, string> | Buffer): Buffer {
  const body = Buffer.isBuffer(params)
    ? params
    : Buffer.concat([
        ...Object.entries(params).map(([k, v]) => Buffer.concat([cstring(k), cstring(v)])),
        Buffer.from([0]),
      ]);
  return Buffer.concat([int32(body.length + 8), int32(version), body]);
}

/** An ErrorResponse or NoticeResponse as `{S: 'FATAL', C: '08P01', M: '…'}`. */
export function errorFields(msg: Message): Record<string, string> {
  const parts = msg.body.toString('latin1').split('\0');
  const fields = parts.filter((part) => part !== '').map((part) => [part.charAt(0), part.slice(1)]);
  return Object.fromEntries(fields);
}

/** A DataRow's columns; null for NULL. */
export function rowValues(msg: Message): (string | null)[] {
  const values: (string | null)[] = [];
  let at = 2;
  for (let left = msg.body.readUInt16BE(0); left > 0; left--) {
    const length = msg.body.readInt32BE(at);
    at += 4;
    values.push(length < 0 ? null : msg.body.toString('latin1', at, at + length));
    at += Math.max(length, 0);
  }
  return values;
}

/** A ParameterStatus's name and value. */
export function parameterStatus(msg: Message): [string, string] {
  const [name, value] = msg.body.toString('latin1').split('\0');
  return [name ?? '', value ?? ''];
}

/** The letters of the messages as one text. */
export function letters(messages: Message[]): string {
  return messages.map((msg) => msg.type).join('');
}

export class RawClient {
  /** parameters reported by the server at login and since */
  readonly parameters: Record<string, string> = {};
  /** of BackendKeyData; the key is 4 bytes in protocol 3.0 */
  backendPid = 0;
  backendKey: Buffer = Buffer.alloc(0);
  /** settles when the connection has ended in any way */
  readonly closed: Promise<void>;
  /** set if the connection ended with an error (ECONNRESET) */
  error: Error | null = null;

  /** bytes received and not yet taken, in pieces as received */
  private chunks: Buffer[] = [];
  private held = 0;
  private eof = false;
  private wake: () => void = () => {};

  private constructor(readonly socket: Socket) {
    this.closed = new Promise((settle) => socket.once('close', () => settle()));
    socket.on('data', (chunk: Buffer) => {
      this.chunks.push(chunk);
      this.held += chunk.length;
      this.wake();
    });
    const over = () => {
      this.eof = true;
      this.wake();
    };
    socket.on('error', (err) => {
      this.error = err;
      over();
    });
    socket.on('end', over);
    socket.on('close', over);
  }

  /** Connects without sending anything. Half-closed is allowed: end of file is not the end of sending. */
  static async connect(target: Target): Promise<RawClient> {
    const where = 'path' in target ? target : { host: '127.0.0.1', ...target };
    const socket = netConnect({ ...where, allowHalfOpen: true, noDelay: true } as NetConnectOpts);
    const client = new RawClient(socket);
    const connected = new Promise<void>((settle, reject) => {
      socket.once('connect', settle);
      socket.once('error', reject);
    });
    await withTimeout(connected, 'a TCP connection');
    return client;
  }

  /** A client on an existing connection, for example inside TLS. */
  static over(socket: Socket): RawClient {
    return new RawClient(socket);
  }

  /** Asks for TLS and begins it. @returns the client inside TLS */
  async secure(options: ConnectionOptions): Promise<RawClient> {
    const answer = await this.request(SSL_REQUEST);
    if (answer !== 'S') throw new Error(`the answer to the request for TLS is '${answer}'`);
    return this.shake(options);
  }

  /**
   * Begins TLS, which the pooler has agreed to.
   * @param keyLog called with each line that Node has for a key log
   * @returns the client inside TLS
   */
  async shake(options: ConnectionOptions, keyLog: (line: Buffer) => void = () => {}): Promise<RawClient> {
    const socket = tlsConnect({ ...options, socket: this.socket });
    socket.on('keylog', keyLog);
    const shaken = new Promise<void>((settle, reject) => {
      socket.once('secureConnect', settle);
      socket.once('error', reject);
    });
    await withTimeout(shaken, 'a TLS handshake');
    socket.setNoDelay(true);
    return RawClient.over(socket);
  }

  /** Sends bytes unchanged; resolves when the kernel has accepted them. */
  send(...bytes: Buffer[]): Promise<void> {
    return new Promise((settle) => this.socket.write(Buffer.concat(bytes), () => settle()));
  }

  /** Sends a message of that letter. */
  sendMessage(type: string, ...body: Buffer[]): Promise<void> {
    return this.send(message(type, ...body));
  }

  /** Takes `length` bytes, waiting for them; null if the connection ends before. */
  async bytes(length: number, timeoutMs: number = WAIT_MS_MAX): Promise<Buffer | null> {
    const enough = async (): Promise<Buffer | null> => {
      while (this.held < length) {
        if (this.eof) return null;
        await new Promise<void>((settle) => {
          this.wake = settle;
        });
      }
      const all = this.chunks.length === 1 ? (this.chunks[0] as Buffer) : Buffer.concat(this.chunks);
      this.chunks = all.length === length ? [] : [all.subarray(length)];
      this.held -= length;
      return all.subarray(0, length);
    };
    return withTimeout(enough(), `${length} bytes from the server`, timeoutMs);
  }

  /** The next message, or null at the end of the connection. */
  async next(timeoutMs: number = WAIT_MS_MAX): Promise<Message | null> {
    const head = await this.bytes(5, timeoutMs);
    if (head === null) return null;
    const body = await this.bytes(head.readInt32BE(1) - 4, timeoutMs);
    if (body === null) return null;
    const msg = { type: String.fromCharCode(head[0] as number), body };
    this.note(msg);
    return msg;
  }

  /** All messages up to and including the first whose letter is in `types`, or up to the end of the connection. */
  async until(types: string, timeoutMs: number = WAIT_MS_MAX): Promise<Message[]> {
    const messages: Message[] = [];
    for (;;) {
      const msg = await this.next(timeoutMs);
      if (msg === null) return messages;
      messages.push(msg);
      if (types.includes(msg.type)) return messages;
    }
  }

  /** All bytes up to the end of the connection. */
  async rest(timeoutMs: number = WAIT_MS_MAX): Promise<Buffer> {
    await withTimeout(this.closedOrEnded(), 'the end of the connection', timeoutMs);
    const all = Buffer.concat(this.chunks);
    this.chunks = [];
    this.held = 0;
    return all;
  }

  /** Sends the startup packet; the caller has to read the answer. */
  startup(params: Record<string, string>, version: number = PROTOCOL_30): Promise<void> {
    return this.send(startupPacket(version, params));
  }

  /** Sends SSLRequest or GSSENCRequest and returns the one-byte answer. */
  async request(code: number): Promise<string> {
    await this.send(startupPacket(code, Buffer.alloc(0)));
    return (await this.bytes(1))?.toString('latin1') ?? '';
  }

  /**
   * Logs in with the method that the server requests.
   * @returns all messages up to ReadyForQuery, or up to the ErrorResponse or end of file instead
   */
  async login(login: Login = {}): Promise<Message[]> {
    const user = login.user ?? 'postgres';
    await this.startup({ user, database: login.database ?? 'postgres', ...login.params }, login.version);
    const messages: Message[] = [];
    let scram: ScramClient | null = null;
    for (;;) {
      const msg = await this.next();
      if (msg === null) return messages;
      messages.push(msg);
      if (msg.type === 'Z' || msg.type === 'E') return messages;
      if (msg.type === 'R') scram = await this.authenticate(msg, user, login.password ?? '', scram);
    }
  }

  /** A simple query; all messages up to ReadyForQuery. */
  async query(text: string, timeoutMs: number = WAIT_MS_MAX): Promise<Message[]> {
    await this.sendMessage('Q', cstring(text));
    return this.until('Z', timeoutMs);
  }

  /** Stops reading, to act as a slow client. */
  pause(): void {
    this.socket.pause();
  }

  resume(): void {
    this.socket.resume();
  }

  /** Sends Terminate and waits until the connection has ended. */
  async end(): Promise<void> {
    if (!this.eof) await this.sendMessage('X');
    this.socket.end();
    this.socket.resume();
    await withTimeout(this.closed, 'the connection to close');
  }

  /** Closes the connection without Terminate; with `reset` the pooler gets ECONNRESET. */
  async destroy(reset = false): Promise<void> {
    if (reset) this.socket.resetAndDestroy();
    else this.socket.destroy();
    await this.closed;
  }

  private async closedOrEnded(): Promise<void> {
    while (!this.eof) {
      await new Promise<void>((settle) => {
        this.wake = settle;
      });
    }
  }

  private note(msg: Message): void {
    if (msg.type === 'S') {
      const [name, value] = parameterStatus(msg);
      this.parameters[name] = value;
    } else if (msg.type === 'K') {
      this.backendPid = msg.body.readInt32BE(0);
      this.backendKey = Buffer.from(msg.body.subarray(4));
    }
  }

  private async authenticate(
    msg: Message,
    user: string,
    password: string,
    scram: ScramClient | null,
  ): Promise<ScramClient | null> {
    const rest = msg.body.subarray(4);
    switch (msg.body.readInt32BE(0)) {
      case 3:
        await this.sendMessage('p', cstring(password));
        return null;
      case 5:
        await this.sendMessage('p', cstring(md5Answer(user, password, rest)));
        return null;
      case 10: {
        const client = new ScramClient(password);
        const first = Buffer.from(client.first(), 'latin1');
        await this.sendMessage('p', cstring('SCRAM-SHA-256'), int32(first.length), first);
        return client;
      }
      case 11:
        await this.sendMessage('p', Buffer.from(scram?.final(rest.toString('latin1')) ?? '', 'latin1'));
        return scram;
      case 12:
        scram?.check(rest.toString('latin1'));
        return null;
      default:
        return scram;
    }
  }
}

/**
 * Sends a cancel request and waits until the pooler has closed its connection.
 * @param on where to connect to, or a connection, which may use TLS
 */
export async function cancelRequest(on: Target | RawClient, pid: number, key: Buffer): Promise<void> {
  const client = on instanceof RawClient ? on : await RawClient.connect(on);
  await client.send(startupPacket(CANCEL_REQUEST, Buffer.concat([int32(pid), key])));
  await client.until('');
  await client.destroy();
}
