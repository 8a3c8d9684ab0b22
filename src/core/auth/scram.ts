/*
 * SCRAM-SHA-256 (RFC 5802, RFC 7677): the parts common to both roles. scram-server.ts authenticates clients;
 * scram-client.ts authenticates to PostgreSQL servers. Strings are byte strings. Functions are called in the order of
 * the messages.
 */
import { pbkdf2Sync } from 'node:crypto';
import { native } from '../base/native';
import { saslprep } from './saslprep';
import { SCRAM_KEY_LEN } from './secret';

export const SCRAM_SHA_256 = 'SCRAM-SHA-256';
/** With channel binding: both ends prove that they see the same certificate. */
export const SCRAM_SHA_256_PLUS = 'SCRAM-SHA-256-PLUS';
/** The only type of channel binding, as in PostgreSQL (RFC 5929). */
export const CHANNEL_BINDING_TYPE = 'tls-server-end-point';
/** Random bytes in a nonce. */
export const SCRAM_RAW_NONCE_LEN = 18;
/** Random bytes in the salt of a secret made here. */
export const SCRAM_DEFAULT_SALT_LEN = 16;
/** OpenSSL's limit. */
const ITERATIONS_MAX = 0x7fff_ffff;

/** The state of one exchange. Belongs to a socket from its first message to the end of its login. */
export class ScramState {
  /* both roles */
  clientNonce: string | null;
  /** as server: the part added by the pooler; as client: the complete nonce from the server */
  serverNonce: string | null;
  clientFirstMessageBare: string | null;
  serverFirstMessage: string | null;
  clientFinalMessageWithoutProof: string | null;
  iterations: number;
  /** as client: the server key that belongs to the proof */
  serverKey: Buffer | null;
  /** 'n' = without channel binding, 'y' = the client believes that the server has none, 'p' = with it */
  cbindFlag: string;
  /** with channel binding: the hash of the server's certificate */
  certHash: Buffer | null;

  /* as client */
  salt: Buffer | null;
  serverSignature: Buffer | null;

  /* as server */
  encodedSalt: string | null;
  /** the secret was made from a plain password; its keys are valid for this exchange only */
  adhoc: boolean;
  /** the user does not exist: the exchange runs to its end and fails */
  mock: boolean;
  storedKey: Buffer | null;
  clientFinalNonce: string | null;
  clientProof: Buffer | null;
  /** known after the proof is verified; a pass-through login needs it and serverKey */
  clientKey: Buffer | null;

  constructor() {
    this.clientNonce = null;
    this.serverNonce = null;
    this.clientFirstMessageBare = null;
    this.serverFirstMessage = null;
    this.clientFinalMessageWithoutProof = null;
    this.iterations = 0;
    this.serverKey = null;
    this.cbindFlag = 'n';
    this.certHash = null;
    this.salt = null;
    this.serverSignature = null;
    this.encodedSalt = null;
    this.adhoc = false;
    this.mock = false;
    this.storedKey = null;
    this.clientFinalNonce = null;
    this.clientProof = null;
    this.clientKey = null;
  }
}

/** The part of a user's credentials that SCRAM reads and caches. The pool's credentials have this shape. */
export interface ScramCredentials {
  name: string;
  /** the stored secret: plain or SCRAM */
  passwd: string;
  /** not a real user */
  mockAuth: boolean;
  /** fetched again for every login: nothing is cached */
  dynamicPasswd: boolean;
  /** keys from a client's login, valid if scramPassthroughValid */
  scramClientKey: Buffer | null;
  scramServerKey: Buffer | null;
  scramPassthroughValid: boolean;
  /** SCRAM secret made from the plain password `scramVerifierFor`, so that not every login must derive it */
  scramVerifier: string | null;
  scramVerifierFor: string;
}

/** The beginning of the client's first message: how it uses channel binding. */
export function gs2Header({ cbindFlag }: ScramState): string {
  return cbindFlag === 'p' ? `p=${CHANNEL_BINDING_TYPE},,` : `${cbindFlag},,`;
}

/** Attribute c without channel binding: the beginning `n,,` or `y,,` in base64. */
const UNBOUND_N = btoa('n,,');
const UNBOUND_Y = btoa('y,,');

/** Attribute c of the client's last message: that beginning once more, and what the exchange is bound to. */
export function channelBinding(state: ScramState): string {
  if (state.cbindFlag === 'n') return UNBOUND_N;
  if (state.cbindFlag === 'y') return UNBOUND_Y;
  if (state.certHash === null) return btoa(gs2Header(state));
  return Buffer.concat([Buffer.from(gs2Header(state), 'latin1'), state.certHash]).toString('base64');
}

function hmac(key: Uint8Array, data: string, into = Buffer.alloc(SCRAM_KEY_LEN)): Buffer {
  if (!native.hmacSha256(key, data, into)) throw new Error('SHA-256 is not available');
  return into;
}

/** SaltedPassword of RFC 5802, from a password before SASLprep. Slow: `iterations` HMACs. */
export function saltedPassword(password: string, salt: Uint8Array, iterations: number): Buffer {
  const prepared = Buffer.from(saslprep(password), 'latin1');
  // a stored secret may have 0 or fewer iterations; PgBouncer then hashes once
  const rounds = Math.min(Math.max(iterations, 1), ITERATIONS_MAX);
  return pbkdf2Sync(prepared, salt, rounds, SCRAM_KEY_LEN, 'sha256');
}

export function computeClientKey(salted: Uint8Array): Buffer {
  return hmac(salted, 'Client Key');
}

export function computeServerKey(salted: Uint8Array): Buffer {
  return hmac(salted, 'Server Key');
}

/** H() of RFC 5802: derives StoredKey from ClientKey. @param into for the 32 bytes */
export function computeStoredKey(clientKey: Uint8Array, into = Buffer.alloc(SCRAM_KEY_LEN)): Buffer {
  if (!native.sha256(clientKey, into)) throw new Error('SHA-256 is not available');
  return into;
}

/**
 * HMAC over the AuthMessage of this exchange: ClientSignature with StoredKey, ServerSignature with ServerKey.
 * @param into for the 32 bytes
 */
export function computeSignature(key: Uint8Array, state: ScramState, into = Buffer.alloc(SCRAM_KEY_LEN)): Buffer {
  const { clientFirstMessageBare, serverFirstMessage, clientFinalMessageWithoutProof } = state;
  return hmac(key, `${clientFirstMessageBare},${serverFirstMessage},${clientFinalMessageWithoutProof}`, into);
}

/** ClientKey XOR ClientSignature: converts the key to the proof, and the proof to the key. @param into for the 32 bytes */
export function xorKeys(a: Uint8Array, b: Uint8Array, into = Buffer.alloc(SCRAM_KEY_LEN)): Buffer {
  for (let i = 0; i < SCRAM_KEY_LEN; i++) into[i] = (a[i] as number) ^ (b[i] as number);
  return into;
}

/** A character of a peer's message, made printable for a log line. */
export function sanitizeChar(text: string, pos: number): string {
  const code = pos < text.length ? text.charCodeAt(pos) : 0;
  if (code >= 0x21 && code <= 0x7e) return `'${text[pos]}'`;
  return `0x${code.toString(16).padStart(2, '0')}`;
}

/** Reads the attributes of a message: `a=value,b=value`. The first error is kept in `error`, in PgBouncer's words. */
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

  /** The next attribute, of any name, and its value; null on error. */
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
