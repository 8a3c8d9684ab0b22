/*
 * The client's side of SCRAM-SHA-256 and md5, for RawClient. Written from RFC 5802 and RFC 7677 independently of the
 * pooler's code, so that each implementation checks the other.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text, 'latin1').digest();
}

/** The answer to an md5 challenge. */
export function md5Answer(user: string, password: string, salt: Buffer): string {
  const inner = createHash('md5')
    .update(password + user, 'latin1')
    .digest('hex');
  return `md5${createHash('md5').update(inner, 'latin1').update(salt).digest('hex')}`;
}

/** The beginning of the client's first message, and the bytes that the last one has behind it. */
export interface Binding {
  /** as `p=tls-server-end-point,,` */
  header: string;
  /** hash of the server's certificate */
  hash: Buffer;
}

const NO_BINDING: Binding = { header: 'n,,', hash: Buffer.alloc(0) };

/** SCRAM-SHA-256-PLUS on this TLS connection. @param digest hash function of the signature of the server's certificate */
export function bindingOf(socket: Socket, digest = 'sha256'): Binding {
  const { raw } = (socket as TLSSocket).getPeerCertificate();
  return { header: 'p=tls-server-end-point,,', hash: createHash(digest).update(raw).digest() };
}

export class ScramClient {
  private readonly nonce = randomBytes(18).toString('base64');
  private serverSignature: Buffer = Buffer.alloc(0);

  constructor(
    private readonly password: string,
    private readonly binding: Binding = NO_BINDING,
  ) {}

  first(): string {
    return `${this.binding.header}n=,r=${this.nonce}`;
  }

  /** Makes the client's second message from the server's first. */
  final(serverFirst: string): string {
    const match = /^r=([^,]+),s=([^,]+),i=(\d+)/.exec(serverFirst);
    if (match === null || !match[1]?.startsWith(this.nonce)) throw new Error(`bad SCRAM challenge: ${serverFirst}`);
    const salt = Buffer.from(match[2] as string, 'base64');
    const salted = pbkdf2Sync(Buffer.from(this.password, 'latin1'), salt, Number(match[3]), 32, 'sha256');
    const clientKey = hmac(salted, 'Client Key');
    const storedKey = createHash('sha256').update(clientKey).digest();
    const bound = Buffer.concat([Buffer.from(this.binding.header), this.binding.hash]).toString('base64');
    const bare = `c=${bound},r=${match[1]}`;
    const authMessage = `n=,r=${this.nonce},${serverFirst},${bare}`;
    const signature = hmac(storedKey, authMessage);
    const proof = Buffer.from(clientKey.map((byte, at) => byte ^ (signature[at] as number)));
    this.serverSignature = hmac(hmac(salted, 'Server Key'), authMessage);
    return `${bare},p=${proof.toString('base64')}`;
  }

  /** Throws unless the server knows the password too. */
  check(serverFinal: string): void {
    const given = Buffer.from(/^v=([^,]+)/.exec(serverFinal)?.[1] ?? '', 'base64');
    if (given.length !== this.serverSignature.length || !timingSafeEqual(given, this.serverSignature)) {
      throw new Error(`the server's SCRAM signature is wrong: ${serverFinal}`);
    }
  }
}
