/*
 * SCRAM with a client: the server's role. Used by the login of a client connection, in this order:
 *
 *     readClientFirstMessage, buildServerFirstMessage -> AuthenticationSASLContinue
 *     readClientFinalMessage, verifyFinalNonce, verifyClientProof, buildServerFinalMessage -> AuthenticationSASLFinal
 *
 * The readers return null on success, else the text for slogError(); the caller then disconnects with "SASL
 * authentication failed". The exchange for a user who does not exist has the same steps and takes as long.
 */

import { createHash, randomBytes } from 'node:crypto';
import { takeRandomText } from '../base/random';
import { cstr, detachBytes, secretEqual } from '../base/strutil';
import {
  AttrReader,
  CHANNEL_BINDING_TYPE,
  channelBinding,
  computeClientKey,
  computeServerKey,
  computeSignature,
  computeStoredKey,
  SCRAM_DEFAULT_SALT_LEN,
  SCRAM_RAW_NONCE_LEN,
  type ScramCredentials,
  type ScramState,
  saltedPassword,
  sanitizeChar,
  xorKeys,
} from './scram';
import {
  base64Decode,
  formatScramSecret,
  PasswordType,
  parseScramSecret,
  passwordType,
  SCRAM_KEY_LEN,
  type ScramSecret,
} from './secret';

/** Error of buildServerFirstMessage() that the login also logs. */
export const SCRAM_MD5_SECRET = 'SCRAM authentication failed: user has MD5 secret';

/** RFC 5802's "printable": ASCII without space, control characters and comma. */
const PRINTABLE = /^[\x21-\x2b\x2d-\x7e]*$/;

/** Random secret of this process for mock salts: they are unpredictable, but the same at each login of a user. */
let mockNonce: Buffer | null = null;

/** What the pooler has offered to a client, and what the client has chosen. */
export interface ChannelBinding {
  /** hash of the certificate that the client has seen; null = SCRAM-SHA-256-PLUS was not offered */
  certHash: Buffer | null;
  /** the client has chosen SCRAM-SHA-256-PLUS */
  chosen: boolean;
}

/* Scratch memory of one function call: allocating a Buffer for the addon takes longer than hashing. */
const digest = Buffer.alloc(SCRAM_KEY_LEN);
const clientKey = Buffer.alloc(SCRAM_KEY_LEN);

const NO_BINDING: ChannelBinding = { certHash: null, chosen: false };

/** Checks the flag against the mechanism, as PostgreSQL does. @returns null, or the text to log */
function flagError(input: AttrReader, { certHash, chosen }: ChannelBinding): string | null {
  const flag = input.peek();
  if (flag === 'p') {
    if (certHash === null) return 'client requires SCRAM channel binding, but it is not supported';
    return chosen ? null : 'malformed SCRAM message (channel binding without the mechanism SCRAM-SHA-256-PLUS)';
  }
  if (flag !== 'n' && flag !== 'y') {
    return `malformed SCRAM message (unexpected channel-binding flag "${sanitizeChar(input.text, 0)}")`;
  }
  if (chosen) return 'malformed SCRAM message (SCRAM-SHA-256-PLUS without channel binding)';
  // an attacker between both ends has removed the mechanism from the list
  const downgraded = flag === 'y' && certHash !== null;
  return downgraded ? 'SCRAM channel binding negotiation error: the client did not see that it was offered' : null;
}

/** Reads the flag and what belongs to it, up to the comma behind. @returns null, or the text to log */
function readChannelBinding(input: AttrReader, state: ScramState, binding: ChannelBinding): string | null {
  const error = flagError(input, binding);
  if (error !== null) return error;
  state.cbindFlag = input.peek();
  if (state.cbindFlag === 'p') {
    const type = input.value('p');
    if (type !== null && type !== CHANNEL_BINDING_TYPE) return 'unsupported SCRAM channel-binding type';
    state.certHash = binding.certHash;
    return input.error;
  }
  input.pos++;
  if (input.peek() !== ',') {
    return `malformed SCRAM message (comma expected, but found character "${sanitizeChar(input.text, input.pos)}")`;
  }
  input.pos++;
  return null;
}

/**
 * Reads `n,,n=user,r=nonce`. The user name in it is ignored: the startup packet has it.
 * @param binding what was offered and chosen
 */
export function readClientFirstMessage(
  state: ScramState,
  message: string,
  binding: ChannelBinding = NO_BINDING,
): string | null {
  const input = new AttrReader(cstr(message));
  const bindingError = readChannelBinding(input, state, binding);
  if (bindingError !== null) return bindingError;
  if (input.peek() === 'a') return 'client uses authorization identity, but it is not supported';
  if (input.peek() !== ',') {
    const found = sanitizeChar(input.text, input.pos);
    return `malformed SCRAM message (unexpected attribute "${found}" in client-first-message)`;
  }
  input.pos++;

  const bare = input.text.slice(input.pos);
  if (input.peek() === 'm') return 'client requires an unsupported SCRAM extension';
  input.value('n');
  const nonce = input.error === null ? input.value('r') : null;
  if (nonce === null) return input.error;
  if (!PRINTABLE.test(nonce)) return 'non-printable characters in SCRAM nonce';
  // extensions may follow; none is supported, and none is mandatory
  while (!input.atEnd()) {
    if (input.any() === null) return input.error;
  }

  state.clientFirstMessageBare = bare;
  state.clientNonce = nonce;
  return null;
}

/** Makes a SCRAM secret from a plain password, with a new salt. @param iterations scram_iterations */
export function buildAdhocSecret(password: string, iterations: number): ScramSecret {
  const salt = randomBytes(SCRAM_DEFAULT_SALT_LEN);
  const salted = saltedPassword(password, salt, iterations);
  return {
    iterations,
    encodedSalt: salt.toString('base64'),
    storedKey: computeStoredKey(computeClientKey(salted)),
    serverKey: computeServerKey(salted),
  };
}

/** A salt for a user who does not exist, constant within this process. */
export function mockSalt(user: string): Buffer {
  mockNonce ??= randomBytes(32);
  const hash = createHash('sha256').update(user, 'latin1').update(mockNonce).digest();
  return hash.subarray(0, SCRAM_DEFAULT_SALT_LEN);
}

function adhocSecretOf(user: ScramCredentials, iterations: number): ScramSecret {
  if (user.scramVerifier !== null && user.scramVerifierFor === user.passwd && !user.dynamicPasswd) {
    const cached = parseScramSecret(user.scramVerifier);
    if (cached !== null) return cached;
  }
  const secret = buildAdhocSecret(user.passwd, iterations);
  if (!user.dynamicPasswd) {
    user.scramVerifier = formatScramSecret(secret);
    user.scramVerifierFor = user.passwd;
  }
  return secret;
}

/** The secret to verify against; null if the user's secret cannot be used for SCRAM (md5). */
function secretOf(state: ScramState, user: ScramCredentials, iterations: number): ScramSecret | null {
  state.adhoc = false;
  // reject an empty password: PgBouncer makes a secret of it, and then any client can authenticate
  state.mock = user.mockAuth || user.passwd === '';
  if (state.mock) {
    const keys = randomBytes(2 * SCRAM_KEY_LEN);
    return {
      iterations,
      encodedSalt: mockSalt(user.name).toString('base64'),
      storedKey: keys.subarray(0, SCRAM_KEY_LEN),
      serverKey: keys.subarray(SCRAM_KEY_LEN),
    };
  }
  switch (passwordType(user.passwd)) {
    case PasswordType.SCRAM_SHA_256:
      return parseScramSecret(user.passwd);
    case PasswordType.PLAINTEXT:
      state.adhoc = true;
      return adhocSecretOf(user, iterations);
    default:
      return null;
  }
}

/**
 * The answer to the client's first message, `r=...,s=...,i=...`. A secret made from a plain password is cached in the
 * credentials.
 * @param iterations scram_iterations, for secrets made here
 * @returns null if the user has an md5 secret: log SCRAM_MD5_SECRET
 */
export function buildServerFirstMessage(state: ScramState, user: ScramCredentials, iterations: number): string | null {
  const secret = secretOf(state, user, iterations);
  if (secret === null) return null;
  state.iterations = secret.iterations;
  state.encodedSalt = secret.encodedSalt;
  state.storedKey = secret.storedKey;
  state.serverKey = secret.serverKey;
  state.serverNonce = takeRandomText(SCRAM_RAW_NONCE_LEN);
  const message = `r=${state.clientNonce}${state.serverNonce},s=${state.encodedSalt},i=${state.iterations}`;
  state.serverFirstMessage = message;
  return message;
}

/** Reads `c=binding,r=nonce,p=proof`. */
export function readClientFinalMessage(state: ScramState, message: string): string | null {
  const input = new AttrReader(cstr(message));
  const binding = input.value('c');
  if (binding === null) return input.error;
  if (binding !== channelBinding(state)) {
    if (state.cbindFlag === 'p') return 'SCRAM channel binding check failed';
    return 'unexpected SCRAM channel-binding attribute in client-final-message';
  }
  const nonce = input.value('r');
  if (nonce === null) return input.error;

  let proofStart: number;
  let attr: { attr: string; value: string } | null;
  do {
    proofStart = input.pos - 1;
    attr = input.any();
  } while (attr !== null && attr.attr !== 'p');
  if (attr === null) return input.error ?? 'could not read proof';

  const proof = base64Decode(attr.value);
  if (proof?.length !== SCRAM_KEY_LEN) {
    return 'malformed SCRAM message (malformed proof in client-final-message)';
  }
  if (!input.atEnd()) return 'malformed SCRAM message (garbage at the end of client-final-message)';

  state.clientFinalMessageWithoutProof = input.text.slice(0, proofStart);
  state.clientFinalNonce = nonce;
  state.clientProof = proof;
  return null;
}

/** Checks that the client returned the nonce. If false, log "invalid SCRAM response (nonce does not match)". */
export function verifyFinalNonce(state: ScramState): boolean {
  return (
    state.clientFinalNonce !== null &&
    state.serverNonce !== null &&
    state.clientFinalNonce === `${state.clientNonce}${state.serverNonce}`
  );
}

/**
 * Checks the proof. If true, state.clientKey and state.serverKey can be used for pass-through (unless state.adhoc). If
 * false, log "password authentication failed".
 */
export function verifyClientProof(state: ScramState): boolean {
  if (state.clientProof === null || state.storedKey === null) return false;
  xorKeys(state.clientProof, computeSignature(state.storedKey, state, digest), clientKey);
  const match = secretEqual(computeStoredKey(clientKey, digest), state.storedKey);
  if (!match || state.mock) return false;
  state.clientKey = detachBytes(clientKey);
  return true;
}

/**
 * The user's secret may have changed since the first message: takes the new one, to check the same proof again. That
 * fails if the new secret has another salt, since the client's proof is made with that of the first message.
 */
export function renewKeys(state: ScramState, user: ScramCredentials): void {
  const salt = base64Decode(state.encodedSalt ?? '');
  state.storedKey = null;
  if (state.mock || user.mockAuth || user.passwd === '' || salt === null) return;
  if (passwordType(user.passwd) === PasswordType.PLAINTEXT) {
    const salted = saltedPassword(user.passwd, salt, state.iterations);
    state.adhoc = true;
    state.storedKey = computeStoredKey(computeClientKey(salted));
    state.serverKey = computeServerKey(salted);
    return;
  }
  const secret = parseScramSecret(user.passwd);
  if (secret?.encodedSalt !== state.encodedSalt || secret.iterations !== state.iterations) return;
  state.adhoc = false;
  state.storedKey = secret.storedKey;
  state.serverKey = secret.serverKey;
}

/** `v=signature`: proves to the client that the pooler knows the secret. Only after verifyClientProof(). */
export function buildServerFinalMessage(state: ScramState): string {
  return `v=${computeSignature(state.serverKey as Buffer, state, digest).toString('base64')}`;
}

/** Stores the keys of a successful login for logins to servers, unless the secret was made for this exchange only. */
export function saveScramKeys(state: ScramState, credentials: ScramCredentials): void {
  if (state.adhoc || state.mock || state.clientKey === null || state.storedKey === null) return;
  // a later answer of auth_query may have changed the secret during the exchange
  if (parseScramSecret(credentials.passwd)?.storedKey.equals(state.storedKey) !== true) return;
  credentials.scramClientKey = state.clientKey;
  credentials.scramServerKey = state.serverKey;
  credentials.scramPassthroughValid = true;
}
