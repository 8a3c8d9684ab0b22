/*
 * PostgreSQL's md5 passwords. Stored: 'md5' and the hex of MD5(password, user). Sent: the same function applied to that
 * hex and a 4-byte salt.
 */
import { createHash } from 'node:crypto';
import { logError, slogError } from '../base/log';
import { PasswordType, passwordType } from './secret';

/**
 * 'md5' and 32 hex digits.
 * @param text byte string: the password, or the hex of an earlier hash
 * @param salt the user's name (byte string) or the bytes of a salt
 * @returns null if MD5 is not available (a machine in FIPS mode), after logging it
 */
export function pgMd5Encrypt(text: string, salt: string | Uint8Array): string | null {
  try {
    const hash = createHash('md5').update(text, 'latin1');
    if (typeof salt === 'string') hash.update(salt, 'latin1');
    else hash.update(salt);
    return `md5${hash.digest('hex')}`;
  } catch (err) {
    logError(`MD5 authentication failed: ${(err as Error).message}`);
    return null;
  }
}

/**
 * The response to a server's md5 request (login_md5_psw).
 * @param stored the user's secret: plain or md5
 * @param user the name sent to the server
 * @param salt 4 bytes from the server
 * @returns null if the secret is of another type, after logging it for `sock`. The caller then fails the pool's logins
 *   with "server login failed: wrong password type"
 */
export function md5Answer(sock: unknown, stored: string, user: string, salt: Uint8Array): string | null {
  let inner: string | null = stored;
  switch (passwordType(stored)) {
    case PasswordType.PLAINTEXT:
      inner = pgMd5Encrypt(stored, user);
      break;
    case PasswordType.MD5:
      break;
    default:
      slogError(sock, 'cannot do MD5 authentication: wrong password type');
      return null;
  }
  return inner === null ? null : pgMd5Encrypt(inner.slice(3), salt);
}
