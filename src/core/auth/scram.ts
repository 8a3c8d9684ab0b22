/*
 * SCRAM-SHA-256 (RFC 5802, RFC 7677): what both sides share. scram-server.ts plays the server towards our clients,
 * scram-client.ts the client towards PostgreSQL. Strings are byte strings; the order of calls is that of the messages.
 */
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { saslprep } from './saslprep';
import { SCRAM_KEY_LEN } from './secret';

/** The one mechanism we offer and choose. */
export const SCRAM_SHA_256 = 'SCRAM-SHA-256';
/** Random bytes in a nonce. */
export const SCRAM_RAW_NONCE_LEN = 18;
/** Random bytes in the salt of a secret that we make. */
export const SCRAM_DEFAULT_SALT_LEN = 16;
/** What OpenSSL takes at most. */
const ITERATIONS_MAX = 0x7fff_ffff;

/** One exchange. Belongs to a socket from its first message until its login is done. */
export class ScramState {
  /* both sides */
  clientNonce: string | null;
  /** as server: the part that we added; as client: the whole nonce that came back */
  serverNonce: string | null;
  clientFirstMessageBare: string | null;
  serverFirstMessage: string | null;
  clientFinalMessageWithoutProof: string | null;
  iterations: number;
  /** as client: of the keys the proof was made with */
  serverKey: Buffer | null;

  /* as client */
  salt: Buffer | null;
  serverSignature: Buffer | null;

  /* as server */
  /** 'n' or 'y' */
  cbindFlag: string;
  encodedSalt: string | null;
  /** the secret was made up from a plain password; its keys are good for this exchange only */
  adhoc: boolean;
  /** there is no such user: the exchange runs to its end and fails */
  mock: boolean;
  storedKey: Buffer | null;
  clientFinalNonce: string | null;
  clientProof: Buffer | null;
  /** known once the proof is verified: with serverKey, what a pass-through login needs */
  clientKey: Buffer | null;

  constructor() {
    this.clientNonce = null;
    this.serverNonce = null;
    this.clientFirstMessageBare = null;
    this.serverFirstMessage = null;
    this.clientFinalMessageWithoutProof = null;
    this.iterations = 0;
    this.serverKey = null;
    this.salt = null;
    this.serverSignature = null;
    this.cbindFlag = '';
    this.encodedSalt = null;
    this.adhoc = false;
    this.mock = false;
    this.storedKey = null;
    this.clientFinalNonce = null;
    this.clientProof = null;
    this.clientKey = null;
  }
}

/** What SCRAM reads, and caches, of a user's credentials. The pool's credentials have this shape. */
export interface ScramCredentials {
  name: string;
  /** the stored secret: plain or SCRAM */
  passwd: string;
  /** not a real user */
  mockAuth: boolean;
  /** fetched anew for every login: nothing is cached */
  dynamicPasswd: boolean;
  /** keys learnt at a client's login, valid with scramPassthroughValid */
  scramClientKey: Buffer | null;
  scramServerKey: Buffer | null;
  scramPassthroughValid: boolean;
  /** SCRAM secret made from the plain password `scramVerifierFor`, so that logins need not derive it each time */
  scramVerifier: string | null;
  scramVerifierFor: string;
}

function hmac(key: Uint8Array, data: string): Buffer {
  return createHmac('sha256', key).update(data, 'latin1').digest();
}

/** SaltedPassword of RFC 5802, of a password as stored (not yet prepared). Takes time: `iterations` HMACs. */
export function saltedPassword(password: string, salt: Uint8Array, iterations: number): Buffer {
  const prepared = Buffer.from(saslprep(password), 'latin1');
  // a stored secret may say 0 or less; the original then hashes once
  const rounds = Math.min(Math.max(iterations, 1), ITERATIONS_MAX);
  return pbkdf2Sync(prepared, salt, rounds, SCRAM_KEY_LEN, 'sha256');
}

export function computeClientKey(salted: Uint8Array): Buffer {
  return hmac(salted, 'Client Key');
}

export function computeServerKey(salted: Uint8Array): Buffer {
  return hmac(salted, 'Server Key');
}

/** H() of RFC 5802: makes StoredKey of ClientKey. */
export function computeStoredKey(clientKey: Uint8Array): Buffer {
  return createHash('sha256').update(clientKey).digest();
}

/** HMAC over the AuthMessage of this exchange: ClientSignature with StoredKey, ServerSignature with ServerKey. */
export function computeSignature(key: Uint8Array, state: ScramState): Buffer {
  const { clientFirstMessageBare, serverFirstMessage, clientFinalMessageWithoutProof } = state;
  return hmac(key, `${clientFirstMessageBare},${serverFirstMessage},${clientFinalMessageWithoutProof}`);
}

/** ClientKey XOR ClientSignature: makes the proof of the key, and the key of the proof. */
export function xorKeys(a: Uint8Array, b: Uint8Array): Buffer {
  const result = Buffer.alloc(SCRAM_KEY_LEN);
  for (let i = 0; i < SCRAM_KEY_LEN; i++) result[i] = (a[i] as number) ^ (b[i] as number);
  return result;
}

/** A character of a peer's message, fit for a log line. */
export function sanitizeChar(text: string, pos: number): string {
  const code = pos < text.length ? text.charCodeAt(pos) : 0;
  if (code >= 0x21 && code <= 0x7e) return `'${text[pos]}'`;
  return `0x${code.toString(16).padStart(2, '0')}`;
}

/** Walks the attributes of a message: `a=value,b=value`. The first error is kept in `error`, in the original's words. */
export class AttrReader {
  readonly text: string;
  pos: number;
  error: string | null;

  constructor(text: string, pos = 0) {
    this.text = text;
    this.pos = pos;
    this.error = null;
  }

  /** The character at the cursor, '' at the end. */
  peek(): string {
    return this.text.charAt(this.pos);
  }

  atEnd(): boolean {
    return this.pos >= this.text.length;
  }

  fail(error: string): null {
    this.error ??= error;
    return null;
  }

  /** The value of attribute `attr`, which must come next; null on error. */
  value(attr: string): string | null {
    if (this.peek() !== attr) return this.fail(`malformed SCRAM message (attribute "${attr}" expected)`);
    if (this.text.charAt(this.pos + 1) !== '=') {
      return this.fail(`malformed SCRAM message (expected "=" after attribute "${attr}")`);
    }
    return this.take();
  }

  /** Whatever attribute comes next, and its value; null on error. */
  any(): { attr: string; value: string } | null {
    const attr = this.peek();
    if (!/^[A-Za-z]$/.test(attr)) {
      const found = sanitizeChar(this.text, this.pos);
      return this.fail(`malformed SCRAM message (attribute expected, but found invalid character "${found}")`);
    }
    if (this.text.charAt(this.pos + 1) !== '=') {
      return this.fail(`malformed SCRAM message (expected character "=" after attribute "${attr}")`);
    }
    return { attr, value: this.take() };
  }

  private take(): string {
    const start = this.pos + 2;
    const comma = this.text.indexOf(',', start);
    if (comma < 0) {
      this.pos = this.text.length;
      return this.text.slice(start);
    }
    this.pos = comma + 1;
    return this.text.slice(start, comma);
  }
}
