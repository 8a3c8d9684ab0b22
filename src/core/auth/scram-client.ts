/*
 * SCRAM with a PostgreSQL server: the client's role. Used by the login of a server connection, in this order:
 *
 *     buildClientFirstMessage -> SASLInitialResponse
 *     readServerFirstMessage, buildClientFinalMessage -> SASLResponse
 *     readServerFinalMessage, verifyServerSignature
 *
 * The readers return null on success, else the text for slogError(). Either the password is known in plain text, or the
 * keys come from a client's login (pass-through).
 */

import { randomBytes } from 'node:crypto';
import { cstr, secretEqual } from '../base/strutil';
import {
  AttrReader,
  channelBinding,
  computeClientKey,
  computeServerKey,
  computeSignature,
  computeStoredKey,
  gs2Header,
  SCRAM_RAW_NONCE_LEN,
  type ScramCredentials,
  type ScramState,
  saltedPassword,
  xorKeys,
} from './scram';
import { base64Decode, PasswordType, parseLong, passwordType, SCRAM_KEY_LEN } from './secret';

/** The part of the credentials that the client role uses. */
export type ScramLogin = Pick<
  ScramCredentials,
  'passwd' | 'scramClientKey' | 'scramServerKey' | 'scramPassthroughValid'
>;

/**
 * Checks whether these credentials can log in by SCRAM. Returns null, or the text to log; the caller then fails the
 * pool's logins with "server login failed: wrong password type".
 */
export function checkScramLogin(credentials: ScramLogin): string | null {
  switch (passwordType(credentials.passwd)) {
    case PasswordType.PLAINTEXT:
      return null;
    case PasswordType.SCRAM_SHA_256:
      if (credentials.scramPassthroughValid) return null;
      return (
        'cannot do SCRAM authentication: password is SCRAM secret but client authentication did not provide ' +
        'SCRAM keys'
      );
    default:
      return 'cannot do SCRAM authentication: wrong password type';
  }
}

/**
 * `n,,n=,r=nonce`, without the user name, which the startup packet contains.
 * @param flag 'y' = this side can bind the channel, but the server does not offer it; 'p' = bound
 * @param certHash with 'p': the hash of the server's certificate
 */
export function buildClientFirstMessage(
  state: ScramState,
  flag: 'n' | 'y' | 'p' = 'n',
  certHash: Buffer | null = null,
): string {
  state.cbindFlag = flag;
  state.certHash = certHash;
  state.clientNonce = randomBytes(SCRAM_RAW_NONCE_LEN).toString('base64');
  state.clientFirstMessageBare = `n=,r=${state.clientNonce}`;
  return `${gs2Header(state)}${state.clientFirstMessageBare}`;
}

/** Limit for the iterations that a server may demand. They take some tenths of a second, and block the loop. */
const ITERATIONS_MAX = 1_000_000;

/** Reads `r=nonce,s=salt,i=iterations`. */
export function readServerFirstMessage(state: ScramState, message: string): string | null {
  const input = new AttrReader(cstr(message));
  state.serverFirstMessage = input.text;

  const nonce = input.value('r');
  if (nonce === null) return input.error;
  if (state.clientNonce === null || !nonce.startsWith(state.clientNonce)) {
    return 'invalid SCRAM response (nonce mismatch)';
  }
  const encodedSalt = input.value('s');
  if (encodedSalt === null) return input.error;
  const salt = base64Decode(encodedSalt);
  if (salt === null) return 'malformed SCRAM message (invalid salt)';
  const iterationsText = input.value('i');
  if (iterationsText === null) return input.error;
  const iterations = parseLong(iterationsText);
  if (iterations === null || iterations < 1 || iterations > ITERATIONS_MAX)
    return 'malformed SCRAM message (invalid iteration count)';
  if (!input.atEnd()) return 'malformed SCRAM message (garbage at end of server-first-message)';

  state.serverNonce = nonce;
  state.salt = salt;
  state.iterations = iterations;
  return null;
}

/** `c=binding,r=nonce,p=proof`. Derives the keys with the server's number of iterations, or uses the pass-through keys. */
export function buildClientFinalMessage(state: ScramState, credentials: ScramLogin): string {
  let clientKey: Buffer;
  // copy both keys now: a client's login may replace those in the credentials before the server's last message
  if (credentials.scramPassthroughValid && credentials.scramClientKey !== null) {
    clientKey = credentials.scramClientKey;
    state.serverKey = credentials.scramServerKey;
  } else {
    const salted = saltedPassword(credentials.passwd, state.salt as Buffer, state.iterations);
    clientKey = computeClientKey(salted);
    state.serverKey = computeServerKey(salted);
  }
  state.clientFinalMessageWithoutProof = `c=${channelBinding(state)},r=${state.serverNonce}`;
  const signature = computeSignature(computeStoredKey(clientKey), state);
  return `${state.clientFinalMessageWithoutProof},p=${xorKeys(clientKey, signature).toString('base64')}`;
}

/** Reads `v=signature`, or `e=error`. */
export function readServerFinalMessage(state: ScramState, message: string): string | null {
  const input = new AttrReader(cstr(message));
  if (input.peek() === 'e') {
    const error = input.value('e');
    return error === null ? input.error : `error received from server in SCRAM exchange: ${error}`;
  }
  const encoded = input.value('v');
  if (encoded === null) return input.error;
  if (!input.atEnd()) return 'malformed SCRAM message (garbage at end of server-final-message)';
  const signature = base64Decode(encoded);
  if (signature?.length !== SCRAM_KEY_LEN) return 'malformed SCRAM message (malformed server signature)';
  state.serverSignature = signature;
  return null;
}

/**
 * Checks whether the server knows the secret. If false, log "invalid server signature" and fail the pool's logins with
 * "server login failed: invalid server signature".
 */
export function verifyServerSignature(state: ScramState): boolean {
  if (state.serverKey === null || state.serverSignature === null) return false;
  return secretEqual(computeSignature(state.serverKey, state), state.serverSignature);
}
