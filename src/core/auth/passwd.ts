/*
 * Checks the password sent by a client, for auth_type plain and md5 (PgBouncer's check_client_passwd()). The caller has
 * already rejected users that do not exist (mockAuth).
 */
import { logWarning } from '../base/log';
import { secretEqual } from '../base/strutil';
import { pgMd5Encrypt } from './md5';
import { computeServerKey, saltedPassword } from './scram';
import { base64Decode, MD5_PASSWD_LEN, PasswordType, parseScramSecret, passwordType } from './secret';

/** Checks `password` against a SCRAM secret. Derives the keys again, which costs the secret's number of iterations. */
function scramVerifyPlainPassword(user: string, password: string, secret: string): boolean {
  const parsed = parseScramSecret(secret);
  const salt = parsed === null ? null : base64Decode(parsed.encodedSalt);
  if (parsed === null || salt === null) {
    logWarning(`invalid SCRAM secret for user "${user}"`);
    return false;
  }
  const computed = computeServerKey(saltedPassword(password, salt, parsed.iterations));
  return secretEqual(computed, parsed.serverKey);
}

/**
 * Checks a password sent in plain text.
 * @param user name, which salts md5 secrets
 * @param stored the user's secret, of any type; an empty secret never matches
 */
export function checkPlainPassword(user: string, stored: string, password: string): boolean {
  if (stored === '') return false;
  switch (passwordType(stored)) {
    case PasswordType.PLAINTEXT:
      return secretEqual(stored, password);
    case PasswordType.MD5: {
      const md5 = pgMd5Encrypt(password, user);
      return md5 !== null && secretEqual(stored, md5);
    }
    case PasswordType.SCRAM_SHA_256:
      return scramVerifyPlainPassword(user, password, stored);
    default:
      return false;
  }
}

/**
 * Checks the response to an md5 request.
 * @param salt the 4 bytes sent with the request
 * @param answer the client's response
 */
export function checkMd5Password(user: string, stored: string, salt: Uint8Array, answer: string): boolean {
  if (stored === '' || answer.length !== MD5_PASSWD_LEN) return false;
  const type = passwordType(stored);
  // it became a SCRAM secret after the request; unlike an MD5 secret, it must not be enough for a login
  if (type === PasswordType.SCRAM_SHA_256) return false;
  const inner = type === PasswordType.PLAINTEXT ? pgMd5Encrypt(stored, user) : stored;
  if (inner === null) return false;
  const expected = pgMd5Encrypt(inner.slice(3), salt);
  return expected !== null && secretEqual(expected, answer);
}
