/*
 * A packet capture in small: a TCP relay that keeps what passes, and the reading of a captured TLS connection with the
 * client's key log, by an implementation of its own. Every record must be the next one of its key.
 */

import assert from 'node:assert/strict';
import { type CipherGCMTypes, createDecipheriv, createHmac } from 'node:crypto';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

/* ---- the relay ---- */

/** One connection, with all bytes from the client and from the pooler. */
interface Captured {
  client: Buffer[];
  pooler: Buffer[];
}

export class Capture {
  readonly connections: Captured[] = [];
  private readonly sockets = new Set<Socket>();

  private constructor(private readonly server: Server) {}

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  /** Begins to relay connections to the port. */
  static async start(port: number): Promise<Capture> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    const capture = new Capture(server);
    server.on('connection', (near) => capture.relay(near, connect({ port, host: '127.0.0.1', allowHalfOpen: true })));
    await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
    return capture;
  }

  private relay(near: Socket, far: Socket): void {
    const kept: Captured = { client: [], pooler: [] };
    this.connections.push(kept);
    for (const [from, to, bytes] of [
      [near, far, kept.client],
      [far, near, kept.pooler],
    ] as const) {
      this.sockets.add(from);
      from.on('data', (part: Buffer) => {
        bytes.push(part);
        to.write(part);
      });
      from.on('end', () => to.end());
      from.on('error', () => to.destroy());
    }
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise((settle) => this.server.close(settle));
  }
}

/* ---- keys ---- */

interface Suite {
  hash: string;
  cipher: string;
  keyLength: number;
  tagLength: number;
  /** of TLS 1.2: bytes of the nonce that are in each record */
  explicit: number;
}

const aes = (bits: number, mode: string, hash: string, tagLength = 16): Suite => {
  return { hash, cipher: `aes-${bits}-${mode}`, keyLength: bits / 8, tagLength, explicit: 8 };
};
const chacha: Suite = { hash: 'sha256', cipher: 'chacha20-poly1305', keyLength: 32, tagLength: 16, explicit: 0 };

const SUITES: Record<number, Suite> = {
  4865: aes(128, 'gcm', 'sha256'),
  4866: aes(256, 'gcm', 'sha384'),
  4867: chacha,
  4868: aes(128, 'ccm', 'sha256'),
  4869: aes(128, 'ccm', 'sha256', 8),
  49195: aes(128, 'gcm', 'sha256'),
  49196: aes(256, 'gcm', 'sha384'),
  52393: chacha,
  49324: aes(128, 'ccm', 'sha256'),
  49327: aes(256, 'ccm', 'sha256', 8),
};

function hmac(hash: string, key: Buffer, ...data: Buffer[]): Buffer {
  return createHmac(hash, key).update(Buffer.concat(data)).digest();
}

/** HKDF-Expand-Label with an empty context (RFC 8446, 7.1), up to the length of the hash. */
export function expandLabel(hash: string, secret: Buffer, label: string, length: number): Buffer {
  const name = Buffer.from(`tls13 ${label}`);
  return hmac(hash, secret, Buffer.from([0, length, name.length]), name, Buffer.from([0, 1])).subarray(0, length);
}

/** The keys of TLS 1.2 (RFC 5246, 6.3), as far as an AEAD has them. */
export function keyBlock(
  hash: string,
  master: Buffer,
  clientRandom: Buffer,
  serverRandom: Buffer,
  length: number,
): Buffer {
  const seed = Buffer.concat([Buffer.from('key expansion'), serverRandom, clientRandom]);
  const parts: Buffer[] = [];
  for (let a = hmac(hash, master, seed), got = 0; got < length; a = hmac(hash, master, a)) {
    const part = hmac(hash, master, a, seed);
    got += part.length;
    parts.push(part);
  }
  return Buffer.concat(parts).subarray(0, length);
}

/** The secrets of the connection with that random number of the client, by their labels. */
export function secretsOf(keyLog: string, clientRandom: Buffer): Record<string, Buffer> {
  const found: Record<string, Buffer> = {};
  for (const line of keyLog.split('\n')) {
    const [label = '', random, hex = ''] = line.trim().split(' ');
    if (random === clientRandom.toString('hex')) found[label] = Buffer.from(hex, 'hex');
  }
  return found;
}

/* ---- records ---- */

const ALERT = 21;
const HANDSHAKE = 22;
const DATA = 23;
const CHANGE_CIPHER = 20;
const FINISHED = 20;
const KEY_UPDATE = 24;

interface Opened {
  type: number;
  bytes: Buffer;
}

/** What one end has sent. */
interface Said {
  /** all application data */
  data: Buffer;
  alerts: Buffer[];
  keyUpdates: number;
  /** records with the keys of the application */
  records: number;
  /** the nonces of one key, in hexadecimal: each is there once */
  nonces: Set<string>[];
}

/** Splits a stream, from its first record on. The last one may be cut off. */
function recordsOf(bytes: Buffer): Buffer[] {
  const records: Buffer[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    const end = at + 5 + bytes.readUInt16BE(at + 3);
    if (end > bytes.length) break;
    records.push(bytes.subarray(at, end));
    at = end;
  }
  return records;
}

/** One direction of a connection. */
class Reader {
  readonly said: Said = { data: Buffer.alloc(0), alerts: [], keyUpdates: 0, records: 0, nonces: [] };
  private key: Buffer | null = null;
  private iv: Buffer = Buffer.alloc(0);
  private number = 0n;

  constructor(
    private readonly suite: Suite,
    private readonly tls13: boolean,
  ) {}

  useKey(key: Buffer, iv: Buffer): void {
    this.key = key;
    this.iv = iv;
    this.number = 0n;
    this.said.nonces.push(new Set());
  }

  useSecret(secret: Buffer): void {
    const { hash, keyLength } = this.suite;
    this.useKey(expandLabel(hash, secret, 'key', keyLength), expandLabel(hash, secret, 'iv', 12));
  }

  private nonceOf(body: Buffer): Buffer {
    if (!this.tls13 && this.suite.explicit > 0) return Buffer.concat([this.iv, body.subarray(0, 8)]);
    const nonce = Buffer.from(this.iv);
    nonce.writeBigUInt64BE(nonce.readBigUInt64BE(4) ^ this.number, 4);
    return nonce;
  }

  /** Opens a record, which must have the next number. */
  open(record: Buffer): Opened {
    if (this.key === null) return { type: record[0] as number, bytes: record.subarray(5) };
    const { cipher, tagLength } = this.suite;
    const skipped = this.tls13 ? 0 : this.suite.explicit;
    const body = record.subarray(5);
    const nonce = this.nonceOf(body);
    const used = this.said.nonces.at(-1) as Set<string>;
    assert.ok(!used.has(nonce.toString('hex')), `record ${this.number} has a nonce that was used before`);
    used.add(nonce.toString('hex'));
    const sealed = body.subarray(skipped, body.length - tagLength);
    const header = Buffer.from(record.subarray(0, 5));
    header.writeUInt16BE(sealed.length, 3);
    const number = Buffer.alloc(8);
    number.writeBigUInt64BE(this.number);
    const aad = this.tls13 ? record.subarray(0, 5) : Buffer.concat([number, header]);
    const decipher = createDecipheriv(cipher as CipherGCMTypes, this.key, nonce, { authTagLength: tagLength } as never);
    decipher.setAAD(aad, { plaintextLength: sealed.length } as never);
    decipher.setAuthTag(body.subarray(body.length - tagLength));
    let plain: Buffer;
    try {
      plain = Buffer.concat([decipher.update(sealed), decipher.final()]);
    } catch {
      throw new Error(`record ${this.number} of its key does not open`);
    }
    this.number++;
    if (!this.tls13) return { type: record[0] as number, bytes: plain };
    let end = plain.length;
    while (end > 0 && plain[end - 1] === 0) end--;
    return { type: plain[end - 1] as number, bytes: plain.subarray(0, end - 1) };
  }

  take({ type, bytes }: Opened): void {
    this.said.records++;
    if (type === DATA) this.said.data = Buffer.concat([this.said.data, bytes]);
    else if (type === ALERT) this.said.alerts.push(bytes);
    else if (type === HANDSHAKE && bytes[0] === KEY_UPDATE) this.said.keyUpdates++;
  }
}

/** The randoms and the suite, from the two hellos. */
interface Hellos {
  clientRandom: Buffer;
  serverRandom: Buffer;
  suite: number;
  tls13: boolean;
}

/** @param client bytes from the client's first record on @param server from the server's */
export function readHellos(client: Buffer, server: Buffer): Hellos {
  const hello = server.subarray(5);
  const session = hello[38] as number;
  const suite = hello.readUInt16BE(39 + session);
  const clientRandom = client.subarray(11, 43);
  return { clientRandom, serverRandom: hello.subarray(6, 38), suite, tls13: suite >> 8 === 0x13 };
}

function readTls13(reader: Reader, hash: string, records: Buffer[], shaking: Buffer, working: Buffer): void {
  let secret: Buffer | null = null;
  let messages: Buffer = Buffer.alloc(0);
  for (const record of records) {
    if (record[0] !== DATA) continue;
    if (secret === null && reader.said.nonces.length === 0) reader.useSecret(shaking);
    const opened = reader.open(record);
    if (secret !== null) {
      reader.take(opened);
      if (opened.type !== HANDSHAKE || opened.bytes[0] !== KEY_UPDATE) continue;
      secret = expandLabel(hash, secret, 'traffic upd', secret.length);
      reader.useSecret(secret);
      continue;
    }
    messages = Buffer.concat([messages, opened.bytes]);
    while (messages.length >= 4 && messages.length >= 4 + messages.readUIntBE(1, 3)) {
      const type = messages[0];
      messages = messages.subarray(4 + messages.readUIntBE(1, 3));
      if (type !== FINISHED) continue;
      secret = working;
      reader.useSecret(secret);
    }
  }
}

function readTls12(reader: Reader, records: Buffer[], key: Buffer, iv: Buffer): void {
  let shaken = false;
  for (const record of records) {
    const opened = reader.open(record);
    if (shaken) reader.take(opened);
    else if (opened.type === CHANGE_CIPHER) reader.useKey(key, iv);
    else if (reader.said.nonces.length > 0) shaken = true;
  }
}

/**
 * Reads a captured connection of a client that asked for TLS with an SSLRequest.
 * @returns what the client and what the pooler said
 */
export function readCapture(captured: Captured, keyLog: string): { client: Said; pooler: Said } {
  const client = Buffer.concat(captured.client).subarray(8);
  const pooler = Buffer.concat(captured.pooler).subarray(1);
  const hellos = readHellos(client, pooler);
  const suite = SUITES[hellos.suite];
  assert.ok(suite !== undefined, `suite ${hellos.suite.toString(16)}`);
  const secrets = secretsOf(keyLog, hellos.clientRandom);
  const readers = [new Reader(suite, hellos.tls13), new Reader(suite, hellos.tls13)] as const;
  const streams = [recordsOf(client), recordsOf(pooler)] as const;
  if (hellos.tls13) {
    for (const [i, name] of ['CLIENT', 'SERVER'].entries()) {
      const [shaking, working] = [secrets[`${name}_HANDSHAKE_TRAFFIC_SECRET`], secrets[`${name}_TRAFFIC_SECRET_0`]];
      assert.ok(shaking !== undefined && working !== undefined, 'the key log has no secrets of this connection');
      readTls13(readers[i] as Reader, suite.hash, streams[i] as Buffer[], shaking, working);
    }
  } else {
    const { keyLength, explicit, hash } = suite;
    const fixed = 12 - explicit;
    const master = secrets.CLIENT_RANDOM;
    assert.ok(master !== undefined, 'the key log has no secret of this connection');
    const block = keyBlock(hash, master, hellos.clientRandom, hellos.serverRandom, 2 * (keyLength + fixed));
    for (const i of [0, 1]) {
      const key = block.subarray(i * keyLength, (i + 1) * keyLength);
      const iv = block.subarray(2 * keyLength + i * fixed, 2 * keyLength + (i + 1) * fixed);
      readTls12(readers[i] as Reader, streams[i] as Buffer[], key, iv);
    }
  }
  return { client: readers[0].said, pooler: readers[1].said };
}
